// Keeps the decimal numbers typed into this pack's nodes as they were typed.

import { app } from "../../../scripts/app.js";

const NODE_PREFIX = "Lumina2";
const SIGNIFICANT_DIGITS = 12;
const MAX_DECIMALS = 20;

/** Digits behind the point that a number needs to be shown whole: 2 for 0.04, 8 for 1e-8. */
export function countDecimals(value) {
  const [digits, exponent = "0"] = String(value).split("e");
  return Math.max(0, (digits.split(".")[1]?.length ?? 0) - Number(exponent));
}

/**
 * Lets a number widget keep every digit.
 *
 * ComfyUI's frontend (1.27 to 1.49 at least) rounds a FLOAT to the digits of its step, whatever the node's `round` is:
 * with a step of 0.1 a typed 0.04 becomes 0. Not needed once `round` decides alone.
 */
function keepDigits(widget) {
  widget.options.round = undefined; // the widget's own callback then takes the value as it is
  Object.defineProperty(widget.options, "precision", {
    get: () => Math.min(Math.max(countDecimals(widget.value), 1), MAX_DECIMALS),
    enumerable: true,
  });
  const { callback } = widget;
  widget.callback = function (value, ...args) {
    // The arrows add the step: 0.1 + 0.2 shall be 0.3.
    return callback?.call(this, Number(Number(value).toPrecision(SIGNIFICANT_DIGITS)), ...args);
  };
}

app.registerExtension({
  name: "Lumina2Trainer.ExactNumbers",
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith(NODE_PREFIX)) return;
    // Only decimal numbers are rounded this way.
    for (const widget of node.widgets ?? []) if (widget.options?.round) keepDigits(widget);
  },
});
