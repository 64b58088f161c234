/**
 * One row of the waterfall: a span with its bar, or an idle gap. Rows are filled again as they are
 * scrolled into view.
 */
import { h, replace } from "../elements/dom.js";
import { count, duration, kindOf, shortName } from "../values/format.js";
import { glyphOf } from "../values/status.js";
import { TREE_RUN, endAt } from "../tree/tree.js";

const rowsIndent = 14; // px a level
const rowsDeepest = 30; // levels that are indented; a number tells the deeper ones
const rowsWaits = 60; // pale parts of one bar at most

/** Return a row without content: the elements that `fillRow` fills. */
export function newRow() {
  const twist = h("span", { class: "twist", "aria-hidden": "true" }, "");
  const mark = h("span", { class: "row-mark", role: "img" }, "");
  const title = document.createTextNode("");
  const note = h("span", { class: "row-label" }, "");
  const error = h("span", { class: "row-error" }, "");
  const link = h("a", { class: "row-link", tabindex: "-1" }, title, note, error);
  const facts = h("span", { class: "row-facts" });
  const bar = h("div", { class: "bar" });
  const label = h("span", { class: "bar-label" }, "");
  const name = h("div", { class: "cell-name", role: "gridcell" }, twist, mark, link, facts);
  const time = h("div", { class: "cell-time", role: "gridcell" }, bar, label);
  const element = h("div", { class: "row", role: "row", tabindex: "-1" }, name, time);
  const slot = { element, name, time, twist, mark, link, title, note, error, facts, bar, label };
  return Object.assign(slot, { end: null, critical: null, row: null, index: -1, known: new Map() });
}

/** Fill the row `slot` with what stands at `index` among the rows of the model. */
export function fillRow(slot, model, index) {
  const row = model.rows[index];
  slot.row = row;
  slot.index = index;
  rowsSet(slot, "element", "aria-rowindex", index + 2); // the first row is the header
  if (typeof row === "number") rowsFillSpan(slot, model, row);
  else rowsFillGap(slot, model, row);
  placeRow(slot, model, model.sight());
}

/** Move the bar of a filled row to its time; `sight` is the model's window and present time. */
export function placeRow(slot, model, sight) {
  const gap = typeof slot.row !== "number";
  const span = gap ? slot.row : model.tree.spans[slot.row];
  const start = gap ? span.from : span.start;
  const end = gap ? span.to : endAt(model.tree, slot.row, sight.now);
  const scale = 100 / (sight.to - sight.from);
  const left = (start - sight.from) * scale;
  const right = (end - sight.from) * scale;
  const seen = right >= 0 && left <= 100;
  rowsSet(slot, "time", "class", `cell-time${right < 0 ? " earlier" : left > 100 ? " later" : ""}`);
  rowsSet(slot, "bar", "hidden", seen ? null : "");
  rowsSet(slot, "label", "hidden", gap || (!seen && !Number.isNaN(left)) ? "" : null);
  const glyph = gap || !seen ? "" : rowsEndGlyph(span.status);
  rowsPlaceEnd(slot, glyph, span.status, Math.min(101, right));
  rowsPlaceCritical(slot, seen && !gap ? model.path?.parts.get(slot.row) : undefined, sight, scale);
  if (!gap) rowsText(slot.label, rowsLabel(span, end));
  if (!seen) return;
  const [shownLeft, shownRight] = [Math.max(-1, left), Math.min(101, right)];
  slot.bar.style.left = `${shownLeft}%`;
  slot.bar.style.width = `${shownRight - shownLeft}%`;
  if (gap) return;
  rowsPlaceLabel(slot, Math.max(0, left), Math.min(100, right));
  const waits = model.waitsOf(slot.row);
  rowsStyle(slot, "bar", "backgroundImage", rowsGradient(waits, sight, shownLeft, shownRight, end));
}

function rowsFillSpan(slot, model, p) {
  const { tree, folded, path } = model;
  const span = tree.spans[p];
  const parent = tree.last[p] > p + 1;
  const open = parent && !folded.has(span.id);
  const chosen = span.id === model.selected;
  const marks = [
    "row",
    chosen && "chosen",
    model.hits.has(p) && "hit",
    path !== null && !path.time.has(p) && "off-path",
  ];
  rowsSet(slot, "element", "class", marks.filter(Boolean).join(" "));
  rowsSet(slot, "element", "id", `row-${span.id}`);
  rowsSet(slot, "element", "aria-level", tree.depth[p] + 1);
  rowsSet(slot, "element", "aria-posinset", tree.rank[p]);
  rowsSet(slot, "element", "aria-setsize", tree.siblings[p]);
  rowsSet(slot, "element", "aria-expanded", parent ? open : null);
  rowsSet(slot, "element", "aria-selected", chosen);
  rowsSet(slot, "element", "tabindex", slot.index === model.cursorIndex ? 0 : -1);
  rowsIndentBy(slot, tree.depth[p]);
  rowsText(slot.twist, parent ? (open ? "▾" : "▸") : "");
  rowsText(slot.mark, glyphOf(span.status));
  rowsSet(slot, "mark", "hidden", null);
  rowsSet(slot, "mark", "aria-label", span.status);
  rowsSet(slot, "mark", "class", `row-mark status-${span.status}`);
  const id = encodeURIComponent(span.id);
  rowsSet(slot, "link", "href", `/runs/${encodeURIComponent(model.run.id)}?span=${id}`);
  rowsSet(slot, "link", "title", [span.name, span.label, span.error].filter(Boolean).join("\n"));
  rowsText(slot.title, shortName(span.name));
  rowsText(slot.note, span.label ? `\u2002${span.label}` : "");
  rowsText(slot.error, span.error ? `\u2002${span.error}` : "");
  rowsFillFacts(slot, model, p, span, parent && !open);
  rowsSet(slot, "bar", "class", `bar bar-${span.status} kind-${rowsKind(span.name)}`);
  rowsSet(slot, "bar", "title", parent ? rowsBarTitle(model, p, span) : null);
}

function rowsFillGap(slot, model, gap) {
  const inside = gap.parent === TREE_RUN ? "the run" : shortName(model.tree.spans[gap.parent].name);
  const depth = gap.parent === TREE_RUN ? 0 : model.tree.depth[gap.parent] + 1;
  const length = duration(gap.to - gap.from);
  const absent = ["id", "aria-posinset", "aria-setsize", "aria-expanded", "aria-selected"];
  for (const name of absent) rowsSet(slot, "element", name, null);
  rowsSet(slot, "element", "class", "row gap");
  rowsSet(slot, "element", "aria-level", depth + 1);
  rowsSet(slot, "element", "tabindex", -1);
  rowsIndentBy(slot, depth);
  rowsSet(slot, "mark", "hidden", "");
  rowsSet(slot, "link", "href", null);
  rowsSet(slot, "link", "title", `No step of ${inside} was active for ${length}`);
  rowsText(slot.title, `${length} idle`);
  for (const part of [slot.twist, slot.mark, slot.note, slot.error]) rowsText(part, "");
  replace(slot.facts);
  rowsSet(slot, "bar", "class", "bar bar-gap");
  rowsStyle(slot, "bar", "backgroundImage", "");
}

/** Set an attribute if it has changed: most are the same when a row is filled again. */
function rowsSet(slot, part, name, value) {
  const key = `${part} ${name}`;
  if (slot.known.get(key) === value) return;
  slot.known.set(key, value);
  if (value === null) slot[part].removeAttribute(name);
  else slot[part].setAttribute(name, String(value));
}

function rowsStyle(slot, part, property, value) {
  const key = `${part} ${property}`;
  if (slot.known.get(key) === value) return;
  slot.known.set(key, value);
  slot[part].style[property] = value;
}

/** Set the text of a text node, or of an element that holds one: that costs no new layout tree. */
function rowsText(node, text) {
  const holder = node.firstChild ?? node;
  if (holder.data !== text) holder.data = text;
}

const rowsKinds = new Map(); // kinds by name: names are few

function rowsKind(name) {
  if (!rowsKinds.has(name)) rowsKinds.set(name, kindOf(name));
  return rowsKinds.get(name);
}

function rowsIndentBy(slot, depth) {
  const indent = Math.min(depth, rowsDeepest) * rowsIndent;
  rowsStyle(slot, "name", "paddingLeft", `calc(8px + min(${indent}px, 45%))`);
  rowsStyle(slot, "name", "backgroundSize", `min(${indent}px, 45%) 100%`);
  rowsSet(slot, "name", "data-depth", depth > rowsDeepest ? depth : null);
}

function rowsFillFacts(slot, model, p, span, folded) {
  const share = model.path?.time.get(p);
  const facts = [
    share !== undefined && h("span", { class: "row-share" }, rowsPercent(share, model.path.total)),
    span.flags > 0 && h("span", { class: "flagged" }, `⚠${span.flags}`),
    span.tokens > 0 && h("span", { title: "tokens" }, `${count(span.tokens)}t`),
    folded && h("span", { class: "row-hidden" }, `+${count(model.tree.last[p] - p - 1)}`),
  ].filter(Boolean);
  if (facts.length > 0 || slot.facts.firstChild !== null) replace(slot.facts, facts);
}

function rowsPercent(part, whole) {
  if (!(whole > 0)) return "0 %";
  const percent = (100 * part) / whole;
  return percent < 1 ? "<1 %" : `${Math.round(percent)} %`;
}

function rowsLabel(span, end) {
  if (Number.isNaN(span.start)) return span.status;
  return span.status === "pending" ? "pending" : duration(end - span.start);
}

function rowsEndGlyph(status) {
  return status === "failed" || status === "cancelled" ? glyphOf(status) : "";
}

function rowsBarTitle(model, p, span) {
  const end = endAt(model.tree, p, model.now());
  const whole = end - span.start;
  if (Number.isNaN(whole)) return null;
  let waited = 0;
  for (const { from, to } of model.waitsOf(p)) waited += Math.max(0, Math.min(to, end) - from);
  const own = duration(whole - waited);
  return `${duration(whole)}: ${duration(waited)} waiting for a child, ${own} own`;
}

/** The label stands after the bar; if there is no room, before it; else on it. */
function rowsPlaceLabel(slot, left, right) {
  const after = right < 86 || Number.isNaN(right);
  const before = !after && left > 14;
  const side = after ? "after" : before ? "before" : "inside";
  const at = Number.isNaN(right) ? 0 : after ? right : before ? 100 - left : 100 - right;
  rowsSet(slot, "label", "class", `bar-label ${side}`);
  rowsStyle(slot, "label", "left", after ? `${at}%` : "auto");
  rowsStyle(slot, "label", "right", after ? "auto" : `${at}%`);
}

/** The glyph of a bar that ended badly. Few rows have one. */
function rowsPlaceEnd(slot, glyph, status, at) {
  if (glyph === "" && slot.end === null) return;
  if (slot.end === null) {
    slot.end = h("span", { "aria-hidden": "true" }, "");
    slot.bar.after(slot.end);
  }
  rowsText(slot.end, glyph);
  rowsSet(slot, "end", "hidden", glyph === "" ? "" : null);
  rowsSet(slot, "end", "class", `bar-end status-${status}`);
  slot.end.style.left = `${at}%`;
}

/** The background that makes a bar pale where its span waited for a child. */
function rowsGradient(waits, { from, to }, shownLeft, shownRight, end) {
  if (waits.length === 0 || !(shownRight > shownLeft)) return "";
  const percent = (time) => {
    const at = (100 * (Math.min(time, end) - from)) / (to - from);
    return Math.min(100, Math.max(0, (100 * (at - shownLeft)) / (shownRight - shownLeft)));
  };
  const parts = [];
  for (const wait of waits) {
    const [a, b] = [percent(wait.from), percent(wait.to)];
    const last = parts.at(-1);
    if (last && (a - last[1] < 0.3 || parts.length >= rowsWaits)) last[1] = Math.max(last[1], b);
    else if (b > 0 && a < 100) parts.push([a, b]);
  }
  const stops = parts.map(
    ([a, b]) => `transparent ${a}%, var(--wait) ${a}%, var(--wait) ${b}%, transparent ${b}%`,
  );
  return stops.length === 0 ? "" : `linear-gradient(to right, ${stops.join(", ")})`;
}

/** The line below the bar where the span is on the critical path. */
function rowsPlaceCritical(slot, parts, { from }, scale) {
  if (parts === undefined && slot.critical === null) return;
  if (slot.critical === null) {
    slot.critical = h("div", { class: "bar-critical" });
    slot.time.append(slot.critical);
  }
  const stops = (parts ?? []).slice(0, rowsWaits).map((segment) => {
    const [a, b] = [(segment.from - from) * scale, (segment.to - from) * scale];
    const end = `max(${b}%, ${a}% + 2px)`;
    return `transparent ${a}%, var(--critical) ${a}%, var(--critical) ${end}, transparent ${end}`;
  });
  const image = stops.length === 0 ? "" : `linear-gradient(to right, ${stops.join(", ")})`;
  rowsStyle(slot, "critical", "backgroundImage", image);
}
