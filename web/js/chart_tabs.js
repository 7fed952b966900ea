// The charts of a run, one shown at a time, chosen by tabs.

import { LineChart } from "./line_chart.js";
import { NoiseBars } from "./noise_bars.js";

let numTabs = 0;

/** Tabs that work by mouse and by the arrow keys. */
export class ChartTabs {
  constructor(words) {
    this.words = words;
    this.charts = {
      loss: new LineChart({ isSmoothed: true }),
      byNoise: new NoiseBars(words),
      learningRate: new LineChart(),
      gradNorm: new LineChart({ isSmoothed: true }),
      memory: new LineChart(),
    };
    this.element = document.createElement("div");
    this.element.className = "lumina2-charts";
    this.list = document.createElement("div");
    this.list.className = "lumina2-tabs";
    this.list.setAttribute("role", "tablist");
    this.list.addEventListener("keydown", (event) => this.#move(event));
    this.names = Object.keys(this.charts);
    this.tabs = this.names.map((name) => this.#addTab(name));
    this.element.append(this.list, ...Object.values(this.charts).map((chart) => chart.element));
    this.select("loss");
  }

  #addTab(name) {
    const tab = document.createElement("button");
    tab.type = "button";
    tab.className = "lumina2-tab";
    tab.textContent = this.words[name];
    tab.dataset.chart = name;
    tab.id = `lumina2-tab-${(numTabs += 1)}`;
    tab.setAttribute("role", "tab");
    tab.addEventListener("click", () => this.select(name));
    this.list.append(tab);
    const panel = this.charts[name].element;
    panel.id = `${tab.id}-panel`;
    tab.setAttribute("aria-controls", panel.id);
    return tab;
  }

  /** Show one chart. */
  select(name) {
    this.selected = name;
    this.names.forEach((other, i) => {
      const isChosen = other === name;
      this.tabs[i].setAttribute("aria-selected", String(isChosen));
      this.tabs[i].tabIndex = isChosen ? 0 : -1;
      this.charts[other].element.hidden = !isChosen;
    });
    if (this.view) this.draw(this.view);
  }

  #move(event) {
    const way = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!way) return;
    event.preventDefault();
    event.stopPropagation(); // the canvas moves nodes by arrow keys
    const next = (this.names.indexOf(this.selected) + way + this.names.length) % this.names.length;
    this.select(this.names[next]);
    this.tabs[next].focus();
  }

  /** Draw the chart that is shown. */
  draw(view) {
    this.view = view;
    if (this.selected === "byNoise") {
      this.charts.byNoise.draw(view.lossByBin);
      return;
    }
    const others = this.selected === "loss" ? view.heldOut : [];
    this.charts[this.selected].draw(view.curves[this.selected], view.total, this.words[this.selected], others);
  }
}
