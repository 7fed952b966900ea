// Puts the progress widget on the Train nodes and keeps it up to date.

import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { executionIds } from "./node_ids.js";
import { ProgressPanel } from "./progress_panel.js";
import { emptyView, viewAfterEvent, viewFromState } from "./run_view.js";
import { stringsFor } from "./strings.js";
import { addStyles } from "./styles.js";

const NODE_TYPES = ["Lumina2TrainLoRA", "Lumina2TrainFull"];
const EVENT_KINDS = [
  "forecast",
  "planned",
  "progress",
  "validation",
  "checkpoint",
  "finished",
  "stopped",
  "failed",
  "notice",
  "held_out",
];
// A page that missed something asks the server; so does one whose prompt ended before a run that was forecast.
const RESTORED_AFTER = ["reconnected", "execution_success", "execution_error", "execution_interrupted"];
const RESTORE_DELAY = 500; // milliseconds in which the server ends what it says has ended
const HEIGHT = 380;
const NODE_WIDTH = 360;

/** One widget on one node. */
class TrainProgress {
  constructor(node) {
    this.node = node;
    this.view = emptyView();
    this.lastQuestion = 0; // number of the newest one asked of the server
    this.panel = new ProgressPanel({
      strings: stringsFor(app.extensionManager?.setting?.get("Comfy.Locale") ?? navigator.language),
      pictureUrl: (picture) => api.apiURL(`/view?${new URLSearchParams(picture)}`),
      onAction: (action) => this.ask(action),
    });
    this.panel.show(this.view);
  }

  /** Name in the node's run_name widget; null if it is linked from another node. */
  get runName() {
    const input = this.node.inputs?.find((slot) => slot.name === "run_name");
    if (input?.link != null) return null;
    return this.node.widgets?.find((widget) => widget.name === "run_name")?.value ?? null;
  }

  /** Whether the server means this node by an id. */
  isCalled(id) {
    return executionIds(this.node).includes(String(id));
  }

  isFor(detail) {
    if (!this.isCalled(detail.node)) return false;
    const name = this.runName;
    // Another job under a taken name gets a number: "my_lora-2".
    return name === null || detail.run === name || detail.run.startsWith(`${name}-`);
  }

  take(kind, detail) {
    if (!this.isFor(detail)) return;
    if (kind === "forecast") this.lastQuestion += 1; // an answer on its way is older
    const isNews = this.view.run !== detail.run || this.view.status === "waiting";
    this.view = viewAfterEvent(this.view, kind, detail);
    this.panel.show(this.view);
    // A page that opened later, or whose run_name is linked, hears of a run in its middle.
    if ((isNews && kind !== "forecast") || kind === "finished" || kind === "stopped") this.restore(detail.run);
  }

  /** Show the state the server knows, of a run or of the newest one under this node's run_name. */
  async restore(run = null) {
    const name = run ?? this.runName ?? this.view.run;
    if (!name) return;
    const question = (this.lastQuestion += 1);
    const nodes = executionIds(this.node).map((id) => ["node", id]);
    const query = run ? "" : `?${new URLSearchParams([["newest", "1"], ...nodes])}`;
    const response = await api.fetchApi(`/lumina2_trainer/runs/${encodeURIComponent(name)}${query}`);
    const state = response.ok ? await response.json() : null;
    if (question !== this.lastQuestion) return;
    const own = state && !this.isOfAnother(state) ? state : null;
    if (!own && this.view.status !== "waiting") return;
    this.view = own ? viewFromState(own) : emptyView();
    this.panel.show(this.view);
    this.panel.gallery.retry();
  }

  /** Whether another node on this canvas trains the run, under the same run_name. */
  isOfAnother({ node }) {
    return !this.isCalled(node) && [...widgets].some((other) => other.isCalled(node));
  }

  async ask(action) {
    const response = await api.fetchApi(`/lumina2_trainer/runs/${encodeURIComponent(this.view.run)}/${action}`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: "{}",
    });
    if (response.ok) return;
    const { error } = await response.json();
    app.extensionManager.toast.add({ severity: "warn", summary: this.panel.strings[action], detail: error, life: 8000 });
  }
}

const widgets = new Set();

function attach(node) {
  const progress = new TrainProgress(node);
  // Nodes 2.0 makes a node as high as its content: that must not grow while it trains.
  progress.panel.element.style.containIntrinsicHeight = `${HEIGHT}px`;
  const widget = node.addDOMWidget("progress", "lumina2_progress", progress.panel.element, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => HEIGHT,
  });
  // options.serialize keeps the widget out of the prompt, this one keeps it out of the saved widget values.
  widget.serialize = false;
  widgets.add(progress);
  const { onAdded, onConfigure, onRemoved } = node;
  node.onAdded = function (...args) {
    widgets.add(progress); // again, where a node is put back or into a subgraph
    return onAdded?.apply(this, args);
  };
  node.onConfigure = function (...args) {
    setTimeout(() => progress.restore()); // when the rest of the graph is there as well
    return onConfigure?.apply(this, args);
  };
  node.onRemoved = function (...args) {
    widgets.delete(progress);
    return onRemoved?.apply(this, args);
  };
  node.setSize([Math.max(node.size[0], NODE_WIDTH), node.computeSize()[1]]);
}

function restoreAll() {
  for (const progress of widgets) progress.restore();
}

app.registerExtension({
  name: "Lumina2Trainer.TrainProgress",
  setup() {
    addStyles();
    for (const kind of EVENT_KINDS) {
      api.addEventListener(`lumina2_trainer.${kind}`, ({ detail }) => {
        for (const progress of widgets) progress.take(kind, detail);
      });
    }
    for (const kind of RESTORED_AFTER) api.addEventListener(kind, () => setTimeout(restoreAll, RESTORE_DELAY));
  },
  nodeCreated(node) {
    if (NODE_TYPES.includes(node.comfyClass)) attach(node);
  },
});
