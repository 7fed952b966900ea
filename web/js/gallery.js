// The validation pictures of a run: those of one step at a time, chosen by a slider.

import { make } from "./elements.js";
import { PictureViewer } from "./picture_viewer.js";

/** Slider, pictures, and the viewer that a click on one opens. */
export class Gallery {
  constructor({ strings, pictureUrl }) {
    this.strings = strings;
    this.pictureUrl = pictureUrl;
    this.element = document.createElement("div");
    this.element.className = "lumina2-validations";
    this.caption = document.createElement("div");
    this.caption.className = "lumina2-caption";
    this.slider = document.createElement("input");
    this.slider.type = "range";
    this.slider.min = "0";
    this.slider.className = "lumina2-slider";
    this.slider.setAttribute("aria-label", strings.pictures);
    this.slider.addEventListener("input", () => this.#choose(Number(this.slider.value)));
    this.slider.addEventListener("keydown", (event) => event.stopPropagation());
    this.pictures = document.createElement("div");
    this.pictures.className = "lumina2-gallery";
    this.element.append(this.caption, this.slider, this.pictures);
    this.validations = [];
    this.chosen = 0;
  }

  /** Show what a run has drawn so far; a slider at the right end follows. */
  show(validations) {
    const follows = this.chosen >= this.validations.length - 1;
    this.validations = validations;
    this.slider.max = String(Math.max(validations.length - 1, 0));
    this.slider.hidden = validations.length < 2;
    this.#choose(follows ? validations.length - 1 : Math.min(this.chosen, validations.length - 1));
  }

  /** Ask once more for pictures that could not be had, as while the server restarted. */
  retry() {
    for (const picture of this.pictures.querySelectorAll("img")) {
      if (picture.complete && picture.naturalWidth === 0) picture.src = picture.getAttribute("src");
    }
  }

  #choose(index) {
    this.chosen = Math.max(index, 0);
    this.slider.value = String(this.chosen);
    const validation = this.validations[this.chosen];
    this.caption.textContent = validation ? `${this.strings.pictures} ${validation.step}` : "";
    this.slider.setAttribute("aria-valuetext", this.caption.textContent);
    const urls = (validation?.images ?? []).map(this.pictureUrl);
    const shown = [...this.pictures.querySelectorAll("img")].map((picture) => picture.getAttribute("src"));
    if (urls.join("\n") === shown.join("\n")) return;
    this.pictures.style.gridTemplateColumns = `repeat(${Math.ceil(Math.sqrt(urls.length)) || 1}, 1fr)`;
    this.pictures.replaceChildren(...urls.map((url, number) => this.#makePicture(url, number)));
  }

  /** What one picture of a validation was drawn from. */
  #describe(validation, number) {
    const weights = validation.weights?.[number] ?? "live";
    return { prompt: validation.prompts?.[number] ?? "", mark: this.strings[`weights_${weights}`] ?? "" };
  }

  #makePicture(url, number) {
    const { prompt, mark } = this.#describe(this.validations[this.chosen], number);
    const text = [prompt || this.caption.textContent, mark].filter(Boolean).join(", ");
    const button = make("button", "lumina2-picture-button");
    button.type = "button";
    button.title = text;
    button.addEventListener("click", () => this.#enlarge(number));
    const picture = make("img", "lumina2-picture");
    picture.src = url;
    picture.alt = text;
    button.append(picture);
    if (mark) button.append(make("span", "lumina2-mark", mark));
    return button;
  }

  #enlarge(number) {
    const [first, now] = [this.validations[0], this.validations[this.chosen]];
    const image = now.images[number];
    // The same prompt, size and weights have the same name at every step.
    const earlier = first === now ? null : first.images.find((other) => other.filename === image.filename);
    const { prompt, mark } = this.#describe(now, number);
    const show = (picture, step) => ({ url: this.pictureUrl(picture), label: `${this.strings.step} ${step}` });
    PictureViewer.open({
      strings: this.strings,
      prompt: [prompt, mark].filter(Boolean).join(", "),
      after: show(image, now.step),
      before: earlier ? show(earlier, first.step) : null,
    });
  }
}
