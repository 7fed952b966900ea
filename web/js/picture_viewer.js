// A validation picture in full size, with the first one of the run under a line that can be moved across.

import { make } from "./elements.js";

/** A dialog; Escape or a click beside the picture closes it. */
export class PictureViewer {
  /**
   * Open a picture.
   * @param {{strings: object, prompt: string, after: Picture, before: Picture | null}} options
   *   Picture is {url, label}; without `before` there is nothing to compare with.
   */
  static open({ strings, prompt, after, before }) {
    const dialog = make("dialog", "lumina2-viewer");
    const frame = make("div", "lumina2-viewer-frame");
    frame.append(makePicture(after, "lumina2-viewer-after"));
    dialog.append(frame);
    if (before) {
      const under = makePicture(before, "lumina2-viewer-before");
      frame.append(under);
      dialog.append(makeSwipe(strings, before, after, (share) => {
        under.style.clipPath = `inset(0 ${100 - share}% 0 0)`;
      }));
    }
    dialog.append(make("div", "lumina2-viewer-prompt", prompt));
    const close = make("button", "lumina2-button", strings.close);
    close.type = "button";
    close.addEventListener("click", () => dialog.close());
    dialog.append(close);
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
    dialog.addEventListener("keydown", (event) => event.stopPropagation());
    dialog.addEventListener("close", () => dialog.remove());
    document.body.append(dialog);
    dialog.showModal();
  }
}

function makePicture({ url, label }, className) {
  const picture = make("img", className);
  picture.src = url;
  picture.alt = label;
  return picture;
}

function makeSwipe(strings, before, after, onMove) {
  const row = make("div", "lumina2-viewer-swipe");
  const slider = make("input", "lumina2-slider");
  slider.type = "range";
  slider.value = "50";
  slider.setAttribute("aria-label", strings.swipe);
  slider.addEventListener("input", () => onMove(Number(slider.value)));
  row.append(make("span", "", before.label), slider, make("span", "", after.label));
  onMove(50);
  return row;
}
