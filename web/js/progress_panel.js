// The elements of the progress widget, and how they show a view (see run_view.js).

import { ChartTabs } from "./chart_tabs.js";
import { make } from "./elements.js";
import { formatNumber, formatRoughly, formatSeconds } from "./format.js";
import { Gallery } from "./gallery.js";

const ACTIONS = ["stop", "save", "validate"];
const FACTS = ["loss", "learningRate", "secondsPerStep", "timeLeft", "gradNorm", "memory"];
const HELD_OUT = "heldOut";
const AHEAD = ["waiting", "running"];

/** Elements of one widget; `onAction` is called with "stop", "save" or "validate". */
export class ProgressPanel {
  constructor({ strings, pictureUrl, onAction }) {
    this.strings = strings;
    this.element = make("div", "lumina2-progress");
    this.element.setAttribute("role", "group");
    this.element.setAttribute("aria-label", strings.panel);
    this.status = make("div", "lumina2-status");
    this.status.setAttribute("role", "status");
    this.message = make("div", "lumina2-message");
    this.message.setAttribute("role", "alert");
    this.bar = make("div", "lumina2-bar");
    this.bar.setAttribute("role", "progressbar");
    this.bar.setAttribute("aria-label", strings.panel);
    this.fill = make("div", "lumina2-fill");
    this.bar.append(this.fill);
    this.charts = new ChartTabs(strings);
    this.facts = make("div", "lumina2-facts");
    this.values = Object.fromEntries([...FACTS, HELD_OUT].map((name) => [name, this.#addFact(name)]));
    this.plan = make("div", "lumina2-caption");
    this.gallery = new Gallery({ strings, pictureUrl });
    this.buttons = make("div", "lumina2-buttons");
    this.actions = ACTIONS.map((action) => this.#addButton(action, onAction));
    this.element.append(
      this.status,
      this.message,
      this.bar,
      this.charts.element,
      this.facts,
      this.plan,
      this.gallery.element,
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

  /** Time that is left: measured, or guessed before the first step. */
  #timeLeft({ status, etaSeconds, predictedSeconds }) {
    if (!AHEAD.includes(status)) return "";
    if (Number.isFinite(etaSeconds)) return formatSeconds(etaSeconds);
    return Number.isFinite(predictedSeconds) ? `${this.strings.about} ${formatRoughly(predictedSeconds)}` : "";
  }

  /** Peak memory: measured, or predicted before the first step. */
  #memory({ status, memory, predictedPeak }) {
    if (Number.isFinite(memory)) return `${memory.toFixed(1)} GiB`;
    const isKnown = AHEAD.includes(status) && Number.isFinite(predictedPeak);
    return isKnown ? `${this.strings.fitsIn} ${predictedPeak.toFixed(1)} GiB` : "";
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
    this.bar.setAttribute("aria-valuemax", String(view.total));
    this.bar.setAttribute("aria-valuenow", String(view.step));
    this.charts.draw(view);
    this.values.loss.textContent = formatNumber(view.loss);
    this.values.learningRate.textContent = formatNumber(view.learningRate);
    this.values.secondsPerStep.textContent = formatSeconds(view.secondsPerStep);
    this.values.timeLeft.textContent = this.#timeLeft(view);
    this.values.gradNorm.textContent = formatNumber(view.gradNorm);
    this.values.memory.textContent = this.#memory(view);
    const measured = view.heldOut.at(-1);
    this.values.heldOut.textContent = measured ? `${formatNumber(measured[1])} (${words.step} ${measured[0]})` : "";
    for (const part of [this.values.heldOut, this.values.heldOut.previousSibling]) part.hidden = !measured;
    this.plan.textContent = view.memoryPlan;
    this.gallery.show(view.validations);
    for (const button of this.actions) button.disabled = view.status !== "running";
  }
}
