// Numbers over the steps, as an SVG that fills its box, with the largest and smallest value beside it.

import { formatNumber } from "./format.js";

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 300;
const HEIGHT = 90;
const SMOOTHING = 0.9;

/** A line for each step's value; a smoothed chart has a thick one for the running mean, too. */
export class LineChart {
  constructor({ isSmoothed = false } = {}) {
    this.isSmoothed = isSmoothed;
    this.element = document.createElement("div");
    this.element.className = "lumina2-curve";
    this.svg = document.createElementNS(SVG, "svg");
    this.svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    this.svg.setAttribute("preserveAspectRatio", "none");
    this.svg.setAttribute("role", "img");
    this.highest = document.createElement("span");
    this.lowest = document.createElement("span");
    this.element.append(this.svg, this.highest, this.lowest);
    this.steps = this.#addLine(isSmoothed ? "lumina2-curve-steps" : "lumina2-curve-mean");
    this.mean = isSmoothed ? this.#addLine("lumina2-curve-mean") : null;
    this.other = this.#addLine("lumina2-curve-other");
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
   * @param {[number, number][]} points Step and value, in the order of the steps.
   * @param {number} total Steps of the run: the right edge.
   * @param {string} label What a screen reader says.
   * @param {[number, number][]} others Another curve on the same scale, such as the held-out loss.
   */
  draw(points, total, label, others = []) {
    this.svg.setAttribute("aria-label", label);
    const values = [...points, ...others].map((point) => point[1]);
    const low = Math.min(...values);
    const high = Math.max(...values);
    const range = high - low || 1;
    this.highest.textContent = formatNumber(high);
    this.lowest.textContent = low === high ? "" : formatNumber(low);
    const right = Math.max(total, points.length ? points[points.length - 1][0] : 1, 2);
    const place = ([step, value]) => {
      const x = ((Math.max(step, 1) - 1) / (right - 1)) * WIDTH;
      const y = HEIGHT - 4 - ((value - low) / range) * (HEIGHT - 8);
      return `${x.toFixed(1)},${y.toFixed(1)}`;
    };
    this.steps.setAttribute("points", points.map(place).join(" "));
    this.mean?.setAttribute("points", runningMean(points).map(place).join(" "));
    this.other.setAttribute("points", others.map(place).join(" "));
  }
}

/** Exponential mean, with the bias of its start taken out. */
export function runningMean(points) {
  let sum = 0;
  let weight = 0;
  return points.map(([step, value]) => {
    sum = SMOOTHING * sum + (1 - SMOOTHING) * value;
    weight = SMOOTHING * weight + (1 - SMOOTHING);
    return [step, sum / weight];
  });
}
