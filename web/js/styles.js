// Looks of the widgets, in the colours of the user's theme. Its warning colours are too pale for small text on a light ground,
// so they are mixed with the colour of text.

const CSS = `
.lumina2-progress { --lumina2-warning: color-mix(in srgb, var(--error-text, #f66) 45%, var(--input-text, #ddd));
  --lumina2-other: color-mix(in srgb, var(--p-orange-400, #f0a050) 35%, var(--input-text, #ddd));
  box-sizing: border-box; width: 100%; height: 100%; contain: size; padding: 6px 8px; overflow: hidden auto;
  display: flex; flex-direction: column; gap: 5px; font: 12px/1.35 sans-serif; color: var(--input-text, #ddd);
  background: var(--comfy-input-bg, #222); border: 1px solid var(--border-color, #444); border-radius: 6px; }
.lumina2-status { font-weight: 600; flex: none; }
.lumina2-message:empty, .lumina2-caption:empty, .lumina2-gallery:empty { display: none; }
.lumina2-progress [hidden] { display: none; }
.lumina2-tabs { display: flex; gap: 2px; flex: none; }
.lumina2-tab { flex: 0 1 auto; padding: 1px 6px; font: inherit; font-size: 11px; cursor: pointer; background: none;
  color: var(--descrip-text, #999); border: 0; border-bottom: 2px solid transparent; white-space: nowrap; overflow: hidden;
  text-overflow: ellipsis; }
.lumina2-tab[aria-selected="true"] { color: inherit; border-color: var(--p-primary-color, #4a90d9); }
.lumina2-bars { position: relative; box-sizing: border-box; height: 80px; padding-bottom: 13px; display: flex; align-items: flex-end; gap: 2px; }
.lumina2-noise-bar { flex: 1; min-width: 0; background: var(--p-primary-color, #4a90d9); opacity: 0.8; }
.lumina2-bars span { position: absolute; top: 0; font-size: 10px; color: var(--descrip-text, #999); right: 2px; }
.lumina2-bars span[data-side="left"] { top: auto; bottom: 0; left: 2px; right: auto; }
.lumina2-bars span[data-side="right"] { top: auto; bottom: 0; }
.lumina2-validations { display: flex; flex-direction: column; gap: 3px; flex: 1 0 auto; min-height: 96px; }
.lumina2-slider { width: 100%; margin: 0; flex: none; accent-color: var(--p-primary-color, #4a90d9); }
.lumina2-picture-button { position: relative; display: flex; min-height: 0; min-width: 0; padding: 0; border: 0; background: none;
  cursor: zoom-in; }
.lumina2-mark { position: absolute; left: 2px; bottom: 2px; padding: 0 4px; border-radius: 3px; font-size: 10px;
  color: #fff; background: rgb(0 0 0 / 65%); }
.lumina2-viewer { max-width: 92vw; max-height: 94vh; padding: 12px; border-radius: 8px; overflow: auto;
  font: 13px/1.4 sans-serif; color: var(--input-text, #ddd); background: var(--comfy-menu-bg, #222);
  border: 1px solid var(--border-color, #444); }
.lumina2-viewer::backdrop { background: rgb(0 0 0 / 70%); }
.lumina2-viewer-frame { position: relative; display: grid; justify-content: center; }
.lumina2-viewer-frame img { grid-area: 1 / 1; width: min(86vw, 74vh); height: min(86vw, 74vh); object-fit: contain; }
.lumina2-viewer-swipe { display: flex; gap: 8px; align-items: center; margin: 8px 0; white-space: nowrap; }
.lumina2-viewer-swipe .lumina2-slider { flex: 1; width: auto; min-width: 0; }
.lumina2-viewer-prompt { margin: 8px 0; max-width: 86vw; overflow-wrap: anywhere; user-select: text; }
.lumina2-message { color: var(--lumina2-warning); overflow-wrap: anywhere; }
.lumina2-message[data-level="info"] { color: inherit; }
.lumina2-bar { height: 6px; flex: none; border-radius: 3px; background: var(--border-color, #444); overflow: hidden; }
.lumina2-fill { height: 100%; width: 0; background: var(--p-primary-color, #4a90d9); }
.lumina2-curve { position: relative; height: 80px; flex: none; }
.lumina2-curve svg { width: 100%; height: 100%; display: block; }
.lumina2-curve span { position: absolute; font-size: 10px; color: var(--descrip-text, #999); }
.lumina2-curve span:nth-of-type(1) { top: 0; right: 2px; }
.lumina2-curve span:nth-of-type(2) { bottom: 0; left: 2px; }
.lumina2-curve polyline { fill: none; stroke: var(--p-primary-color, #4a90d9); }
.lumina2-curve-steps { stroke-width: 1px; opacity: 0.35; }
.lumina2-curve-mean { stroke-width: 2px; }
.lumina2-curve .lumina2-curve-other { stroke: var(--lumina2-other); stroke-width: 2px; }
.lumina2-facts { display: grid; grid-template-columns: auto 1fr auto 1fr; gap: 2px 8px; flex: none; }
.lumina2-progress :focus-visible, .lumina2-viewer :focus-visible { outline: 2px solid var(--p-primary-color, #4a90d9); }
.lumina2-label, .lumina2-caption { color: var(--descrip-text, #999); }
[data-fact="heldOut"] { color: var(--lumina2-other); }
.lumina2-value { font-variant-numeric: tabular-nums; }
.lumina2-gallery { display: grid; grid-auto-rows: minmax(64px, 1fr); gap: 4px; flex: 1 0 72px; min-height: 72px; }
.lumina2-picture { width: 100%; height: 100%; min-height: 0; border-radius: 4px; object-fit: contain; }
.lumina2-buttons { display: flex; gap: 4px; flex: none; }
.lumina2-button { flex: 1; padding: 3px 6px; font: inherit; color: inherit; cursor: pointer; border-radius: 4px;
  background: var(--comfy-menu-bg, #333); border: 1px solid var(--border-color, #444); }
.lumina2-text { box-sizing: border-box; width: 100%; height: 100%; contain: size; margin: 0; padding: 4px 8px; overflow: auto;
  font: 12px/1.35 sans-serif; color: var(--descrip-text, #999); white-space: pre-wrap; overflow-wrap: anywhere;
  user-select: text; }
.lumina2-table-frame { position: relative; width: 100%; height: 100%; min-height: 200px; }
.lumina2-table { position: absolute; inset: 0; box-sizing: border-box; overflow: auto; padding: 0 4px; font: 12px/1.35 sans-serif;
  color: var(--input-text, #ddd); background: var(--comfy-input-bg, #222); border: 1px solid var(--border-color, #444);
  border-radius: 6px; user-select: text; }
.lumina2-table table { width: 100%; border-collapse: collapse; }
.lumina2-table caption { padding: 4px; text-align: left; font-weight: 600; }
.lumina2-table th, .lumina2-table td { padding: 2px 6px; text-align: left; vertical-align: top; font-weight: 400;
  border-top: 1px solid var(--border-color, #444); }
.lumina2-table thead th { position: sticky; top: 0; color: var(--descrip-text, #999); background: var(--comfy-input-bg, #222); }
.lumina2-table th[scope="row"] { overflow-wrap: anywhere; min-width: 70px; }
.lumina2-table td:nth-child(2) { white-space: nowrap; }
.lumina2-captions { width: 60%; overflow-wrap: anywhere; }
.lumina2-captions div + div { border-top: 1px dashed var(--border-color, #444); }
.lumina2-marks, .lumina2-problem { color: var(--error-text, #f66); }
.lumina2-table:focus-visible { outline: 2px solid var(--p-primary-color, #4a90d9); }
.lumina2-button:disabled { opacity: 0.45; cursor: default; }
`;

const ID = "lumina2-trainer-styles";

/** Put the style sheet into the page, once. */
export function addStyles() {
  if (document.getElementById(ID)) return;
  const style = document.createElement("style");
  style.id = ID;
  style.textContent = CSS;
  document.head.append(style);
}
