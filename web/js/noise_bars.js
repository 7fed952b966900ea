// The mean loss of each noise level, from pure noise at the left to the finished picture at the right.

import { formatNumber } from "./format.js";

const NUM_BINS = 20;

/** A bar for each of the 20 levels. */
export class NoiseBars {
  constructor(words) {
    this.words = words;
    this.element = document.createElement("div");
    this.element.className = "lumina2-bars";
    this.element.setAttribute("role", "img");
    this.bars = Array.from({ length: NUM_BINS }, () => {
      const bar = document.createElement("div");
      bar.className = "lumina2-noise-bar";
      this.element.append(bar);
      return bar;
    });
    this.highest = document.createElement("span");
    this.element.append(this.highest);
    for (const [side, word] of [["left", words.noise], ["right", words.picture]]) {
      const label = document.createElement("span");
      label.textContent = word;
      label.dataset.side = side;
      this.element.append(label);
    }
  }

  /**
   * Draw the bars.
   * @param {Record<string, number>} lossByBin Mean loss by number of the level; levels without a sample are left out.
   */
  draw(lossByBin) {
    const highest = Math.max(...Object.values(lossByBin), 0);
    this.highest.textContent = highest ? formatNumber(highest) : "";
    this.bars.forEach((bar, number) => {
      const loss = lossByBin[number];
      bar.style.height = loss === undefined ? "0" : `${(100 * loss) / (highest || 1)}%`;
      const range = `t ${(number / NUM_BINS).toFixed(2)}-${((number + 1) / NUM_BINS).toFixed(2)}`;
      bar.title = loss === undefined ? range : `${range}: ${formatNumber(loss)}`;
    });
    const known = Object.entries(lossByBin).map(([number, loss]) => `${number}: ${formatNumber(loss)}`);
    this.element.setAttribute("aria-label", `${this.words.byNoise} ${known.join(", ")}`);
  }
}
