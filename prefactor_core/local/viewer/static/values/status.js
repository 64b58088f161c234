/**
 * The status of a run or a span.
 */
import { h } from "../elements/dom.js";

/** Every status in the order of a life: a glyph, and the class `status-…` for its colour. */
export const STATUSES = {
  pending: "○",
  active: "◐",
  complete: "✓",
  failed: "✕",
  cancelled: "⊘",
  terminated: "■",
};

/** After this long without a write, an active run counts as silent, in milliseconds. */
export const SILENT_AFTER = 5 * 60_000;

/** Return the glyph of `status`; "?" for one that this page does not know. */
export function glyphOf(status) {
  return STATUSES[status] ?? "?";
}

/** Return the glyph of `status` in its colour, with its word for a screen reader. */
export function statusMark(status) {
  return h(
    "span",
    { class: `status status-${status}`, title: status },
    h("span", { "aria-hidden": "true" }, glyphOf(status)),
    h("span", { class: "offscreen" }, status),
  );
}

/** True if a span or a run with this status has not ended. */
export function isOpen(status) {
  return status === "active" || status === "pending";
}
