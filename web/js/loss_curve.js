// The loss over the steps, as an SVG that fills its box, with the largest and smallest value beside it.

import { formatNumber } from "./format.js";

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 300;
const HEIGHT = 90;
const SMOOTHING = 0.9;

/** A thin line for each step's loss and a thick one for its running mean. */
export class LossCurve {
  constructor() {
    this.element = document.createElement("div");
    this.element.className = "lumina2-curve";
    this.svg = document.createElementNS(SVG, "svg");
    this.svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    this.svg.setAttribute("preserveAspectRatio", "none");
    this.svg.setAttribute("role", "img");
    this.highest = document.createElement("span");
    this.lowest = document.createElement("span");
    this.element.append(this.svg, this.highest, this.lowest);
    this.steps = this.#addLine("lumina2-curve-steps");
    this.mean = this.#addLine("lumina2-curve-mean");
  }

  #addLine(className) {
    const line = document.createElementNS(SVG, "polyline");
    line.classList.add(className);
    line.setAttribute("vector-effect", "non-scaling-stroke");
    this.svg.append(line);
    return line;
  }

  /**
   * Draw the curve.
   * @param {[number, number][]} points Step and loss, in the order of the steps.
   * @param {number} total Steps of the run: the right edge.
   * @param {string} label What a screen reader says.
   */
  draw(points, total, label) {
    this.svg.setAttribute("aria-label", label);
    const losses = points.map((point) => point[1]);
    const low = Math.min(...losses);
    const high = Math.max(...losses);
    const range = high - low || 1;
    this.highest.textContent = formatNumber(high);
    this.lowest.textContent = formatNumber(low);
    const right = Math.max(total, points.length ? points[points.length - 1][0] : 1, 2);
    const place = (step, loss) => {
      const x = ((step - 1) / (right - 1)) * WIDTH;
      const y = HEIGHT - 4 - ((loss - low) / range) * (HEIGHT - 8);
      return `${x.toFixed(1)},${y.toFixed(1)}`;
    };
    this.steps.setAttribute("points", points.map(([step, loss]) => place(step, loss)).join(" "));
    this.mean.setAttribute("points", runningMean(points).map(([step, loss]) => place(step, loss)).join(" "));
  }
}

/** Exponential mean, with the bias of its start taken out. */
export function runningMean(points) {
  let sum = 0;
  let weight = 0;
  return points.map(([step, loss]) => {
    sum = SMOOTHING * sum + (1 - SMOOTHING) * loss;
    weight = SMOOTHING * weight + (1 - SMOOTHING);
    return [step, sum / weight];
  });
}
