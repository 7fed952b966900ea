// The table on Caption Table: a row for each picture, with its captions and what is wrong about them.

import { app } from "../../../scripts/app.js";
import { make } from "./elements.js";
import { fill, stringsFor } from "./strings.js";
import { addStyles } from "./styles.js";

const NODE_TYPE = "Lumina2CaptionTable";
const HEIGHT = 280;
const NODE_WIDTH = 560;

/** The table's title, such as "40 pictures, 2 without caption; the first 30 are shown". */
export function describeTable({ total, counts, rows }, words) {
  const found = Object.entries(counts ?? {}).filter(([mark, count]) => count && words[`count_${mark}`]);
  const parts = [fill(words.tableTotal, { n: total })];
  for (const [mark, count] of found) parts.push(fill(words[`count_${mark}`], { n: count }));
  const title = parts.join(", ");
  return rows.length < total ? `${title}; ${fill(words.tableCut, { n: rows.length })}` : title;
}

function makeHead(unit, words) {
  const head = document.createElement("thead");
  const row = head.insertRow();
  for (const name of ["picture", "bucket", unit, "marks", "caption"]) {
    const cell = make("th", "", words[`column_${name}`] ?? name);
    cell.scope = "col";
    row.append(cell);
  }
  return head;
}

function makeRow(entry, limit, words) {
  const row = document.createElement("tr");
  if (entry.marks.length) row.dataset.marks = entry.marks.join(" ");
  const name = make("th", "", entry.picture);
  name.scope = "row";
  const marks = make("td", "lumina2-marks");
  for (const mark of entry.marks) {
    const values = { n: entry.num_sharing, length: entry.length, limit };
    marks.append(make("div", "", fill(words[`mark_${mark}`] ?? mark, values)));
  }
  const captions = make("td", "lumina2-captions");
  for (const caption of entry.captions) captions.append(make("div", "", caption));
  if (entry.problem) captions.append(make("div", "lumina2-problem", entry.problem));
  row.append(name, make("td", "", entry.bucket), make("td", "lumina2-value", String(entry.length)), marks, captions);
  return row;
}

function makeTable(view, words) {
  const table = document.createElement("table");
  const body = document.createElement("tbody");
  for (const entry of view.rows) body.append(makeRow(entry, view.limit, words));
  table.append(make("caption", "", describeTable(view, words)), makeHead(view.unit, words), body);
  return table;
}

function makeRegion(words) {
  const region = make("div", "lumina2-table", words.tableEmpty);
  region.tabIndex = 0; // arrow keys scroll it
  region.setAttribute("role", "region");
  region.setAttribute("aria-label", words.tableLabel);
  // The canvas takes the wheel, and Nodes 2.0 the pointer, from whatever does not ask for them.
  region.dataset.captureWheel = "true";
  region.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && region.scrollHeight > region.clientHeight) event.stopPropagation();
  });
  region.addEventListener("pointerdown", (event) => {
    if (event.button === 0) event.stopPropagation();
  });
  return region;
}

function attach(node) {
  const words = stringsFor(app.extensionManager?.setting?.get("Comfy.Locale") ?? navigator.language);
  const region = makeRegion(words);
  const frame = make("div", "lumina2-table-frame");
  frame.append(region);
  const widget = node.addDOMWidget("captions", "lumina2_captions", frame, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => HEIGHT,
  });
  // Keeps captions out of saved workflows, which are shared.
  widget.serialize = false;
  const { onExecuted } = node;
  node.onExecuted = function (output, ...args) {
    const [view] = output?.caption_table ?? [];
    if (view) region.replaceChildren(makeTable(view, words));
    return onExecuted?.call(this, output, ...args);
  };
  node.setSize([Math.max(node.size[0], NODE_WIDTH), node.computeSize()[1]]);
}

app.registerExtension({
  name: "Lumina2Trainer.CaptionTable",
  setup: addStyles,
  nodeCreated(node) {
    if (node.comfyClass === NODE_TYPE) attach(node);
  },
});
