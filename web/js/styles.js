// Looks of the progress widget, in the colours of the user's theme.

const CSS = `
.lumina2-progress { box-sizing: border-box; width: 100%; height: 100%; padding: 6px 8px; overflow: hidden auto;
  display: flex; flex-direction: column; gap: 5px; font: 12px/1.35 sans-serif; color: var(--input-text, #ddd);
  background: var(--comfy-input-bg, #222); border: 1px solid var(--border-color, #444); border-radius: 6px; }
.lumina2-status { font-weight: 600; flex: none; }
.lumina2-message:empty, .lumina2-caption:empty, .lumina2-gallery:empty { display: none; }
.lumina2-message { color: var(--error-text, #f66); overflow-wrap: anywhere; }
.lumina2-bar { height: 6px; flex: none; border-radius: 3px; background: var(--border-color, #444); overflow: hidden; }
.lumina2-fill { height: 100%; width: 0; background: var(--p-primary-color, #4a90d9); }
.lumina2-curve { width: 100%; height: 80px; flex: none; }
.lumina2-curve polyline { fill: none; stroke: var(--p-primary-color, #4a90d9); }
.lumina2-curve-steps { stroke-width: 1px; opacity: 0.35; }
.lumina2-curve-mean { stroke-width: 2px; }
.lumina2-facts { display: grid; grid-template-columns: auto 1fr auto 1fr; gap: 2px 8px; flex: none; }
.lumina2-label, .lumina2-caption { color: var(--descrip-text, #999); }
.lumina2-value { font-variant-numeric: tabular-nums; }
.lumina2-gallery { display: flex; gap: 4px; overflow-x: auto; flex: 1 0 72px; min-height: 72px; }
.lumina2-picture { height: 100%; max-height: 256px; min-height: 64px; border-radius: 4px; object-fit: contain; }
.lumina2-buttons { display: flex; gap: 4px; flex: none; }
.lumina2-button { flex: 1; padding: 3px 6px; font: inherit; color: inherit; cursor: pointer; border-radius: 4px;
  background: var(--comfy-menu-bg, #333); border: 1px solid var(--border-color, #444); }
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
