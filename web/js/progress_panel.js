// The elements of the progress widget, and how they show a view (see run_view.js).

import { formatNumber, formatSeconds } from "./format.js";
import { LossCurve } from "./loss_curve.js";

const ACTIONS = ["stop", "save", "validate"];

/** Elements of one widget; `onAction` is called with "stop", "save" or "validate". */
export class ProgressPanel {
  constructor({ strings, pictureUrl, onAction }) {
    this.strings = strings;
    this.pictureUrl = pictureUrl;
    this.element = make("div", "lumina2-progress");
    this.status = make("div", "lumina2-status");
    this.message = make("div", "lumina2-message");
    this.bar = make("div", "lumina2-bar");
    this.fill = make("div", "lumina2-fill");
    this.bar.append(this.fill);
    this.curve = new LossCurve();
    this.facts = make("div", "lumina2-facts");
    this.values = Object.fromEntries(
      ["loss", "learningRate", "secondsPerStep", "timeLeft"].map((name) => [name, this.#addFact(name)]),
    );
    this.caption = make("div", "lumina2-caption");
    this.gallery = make("div", "lumina2-gallery");
    this.buttons = make("div", "lumina2-buttons");
    this.actions = ACTIONS.map((action) => this.#addButton(action, onAction));
    this.element.append(
      this.status,
      this.message,
      this.bar,
      this.curve.element,
      this.facts,
      this.caption,
      this.gallery,
      this.buttons,
    );
  }

  #addFact(name) {
    const label = make("span", "lumina2-label", this.strings[name]);
    const value = make("span", "lumina2-value");
    value.dataset.fact = name;
    this.facts.append(label, value);
    return value;
  }

  #addButton(action, onAction) {
    const button = make("button", "lumina2-button", this.strings[action]);
    button.type = "button";
    button.title = this.strings[`${action}Tip`];
    button.dataset.action = action;
    button.addEventListener("click", () => onAction(action));
    this.buttons.append(button);
    return button;
  }

  /** Show a view. */
  show(view) {
    const words = this.strings;
    this.element.dataset.status = view.status;
    this.element.dataset.step = String(view.step);
    const steps = view.total ? `${words.step} ${view.step} ${words.of} ${view.total}` : "";
    this.status.textContent = [words[view.status] ?? view.status, steps].filter(Boolean).join(" · ");
    this.message.textContent = view.message || view.notice.message;
    this.message.dataset.level = view.message ? "warning" : view.notice.level;
    this.fill.style.width = view.total ? `${(100 * view.step) / view.total}%` : "0";
    this.curve.draw(view.losses, view.total, `${words.loss} ${formatNumber(view.loss)}`);
    this.values.loss.textContent = formatNumber(view.loss);
    this.values.learningRate.textContent = formatNumber(view.learningRate);
    this.values.secondsPerStep.textContent = formatSeconds(view.secondsPerStep);
    this.values.timeLeft.textContent = view.status === "running" ? formatSeconds(view.etaSeconds) : "";
    this.#showPictures(view);
    for (const button of this.actions) button.disabled = view.status !== "running";
  }

  #showPictures(view) {
    const urls = view.images.map(this.pictureUrl);
    const shown = [...this.gallery.children].map((child) => child.getAttribute("src"));
    if (urls.join("\n") === shown.join("\n")) return;
    this.caption.textContent = urls.length ? `${this.strings.pictures} ${view.imagesStep}` : "";
    this.gallery.style.gridTemplateColumns = `repeat(${Math.ceil(Math.sqrt(urls.length))}, 1fr)`;
    this.gallery.replaceChildren(
      ...urls.map((url) => {
        const picture = make("img", "lumina2-picture");
        picture.src = url;
        picture.alt = this.caption.textContent;
        return picture;
      }),
    );
  }
}

function make(tag, className, text = "") {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  return element;
}
