// Text on nodes that have something to say: the progress of a cache, the report on a dataset, the files written.

import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { formatSeconds } from "./format.js";
import { executionIds } from "./node_ids.js";
import { stringsFor } from "./strings.js";
import { addStyles } from "./styles.js";

const HEIGHTS = {
  Lumina2DatasetFolder: 130,
  Lumina2DatasetFromImages: 130,
  Lumina2CacheLatents: 28,
  Lumina2CacheTextEmbeds: 28,
  Lumina2SaveAdapter: 44,
};

const texts = new Map();

function attach(node) {
  const element = document.createElement("pre");
  element.className = "lumina2-text";
  // Nodes 2.0 makes a node as high as its content: a long report is scrolled instead.
  element.style.containIntrinsicHeight = `${HEIGHTS[node.comfyClass]}px`;
  const widget = node.addDOMWidget("text", "lumina2_text", element, {
    serialize: false,
    hideOnZoom: true,
    getMinHeight: () => HEIGHTS[node.comfyClass],
  });
  // Keeps the text out of saved workflows, which are shared.
  widget.serialize = false;
  texts.set(node, element);
  const { onExecuted, onRemoved } = node;
  node.onExecuted = function (output, ...args) {
    if (output?.text) element.textContent = output.text.join("\n");
    return onExecuted?.call(this, output, ...args);
  };
  node.onRemoved = function (...args) {
    texts.delete(node);
    return onRemoved?.apply(this, args);
  };
}

/** Such as "12 of 40, 3.1 a second, 9 s left". */
export function describeCount({ step, total, rate, eta_seconds: seconds }, words) {
  const parts = [`${step} ${words.of} ${total}`];
  if (rate) parts.push(`${rate.toFixed(1)} ${words.rate}`);
  if (seconds) parts.push(`${formatSeconds(seconds)} ${words.left}`);
  return parts.join(", ");
}

function showCount({ detail }) {
  if (detail.rate === undefined) return;
  const words = stringsFor(app.extensionManager?.setting?.get("Comfy.Locale") ?? navigator.language);
  for (const [node, element] of texts) {
    if (executionIds(node).includes(String(detail.node))) element.textContent = describeCount(detail, words);
  }
}

app.registerExtension({
  name: "Lumina2Trainer.NodeText",
  setup() {
    addStyles();
    api.addEventListener("lumina2_trainer.progress", showCount);
  },
  nodeCreated(node) {
    if (node.comfyClass in HEIGHTS) attach(node);
  },
});
