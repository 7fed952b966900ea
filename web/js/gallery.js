// The validation pictures of a run: those of one step at a time, chosen by a slider.

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

  #makePicture(url, number) {
    const prompt = this.validations[this.chosen].prompts?.[number] ?? "";
    const button = document.createElement("button");
    button.type = "button";
    button.className = "lumina2-picture-button";
    button.title = prompt || this.caption.textContent;
    button.addEventListener("click", () => this.#enlarge(number));
    const picture = document.createElement("img");
    picture.className = "lumina2-picture";
    picture.src = url;
    picture.alt = prompt || this.caption.textContent;
    button.append(picture);
    return button;
  }

  #enlarge(number) {
    const [first, now] = [this.validations[0], this.validations[this.chosen]];
    const before = first !== now && first.images[number] ? first : null;
    PictureViewer.open({
      strings: this.strings,
      prompt: now.prompts?.[number] ?? "",
      after: { url: this.pictureUrl(now.images[number]), label: `${this.strings.step} ${now.step}` },
      before: before && { url: this.pictureUrl(before.images[number]), label: `${this.strings.step} ${before.step}` },
    });
  }
}
