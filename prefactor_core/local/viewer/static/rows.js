/**
 * One row of the waterfall: a span with its bar, or an idle gap. Rows are filled again as they are
 * scrolled into view.
 */
import { h, replace } from "./dom.js";
import { STATUS, count, duration, kindOf, shortName, statusMark } from "./format.js";
import { TREE_RUN, endAt } from "./tree.js";

const rowsIndent = 14; // px a level
const rowsDeepest = 30; // levels that are indented; a number tells the deeper ones
const rowsWaits = 60; // pale parts of one bar at most

/** Return a row without content: the elements that `fillRow` fills. */
export function newRow() {
  const twist = h("span", { class: "twist", "aria-hidden": "true" });
  const mark = h("span", { class: "row-mark" });
  const link = h("a", { class: "row-link", tabindex: "-1" });
  const facts = h("span", { class: "row-facts" });
  const bar = h("div", { class: "bar" });
  const end = h("span", { class: "bar-end", "aria-hidden": "true" });
  const label = h("span", { class: "bar-label" });
  const critical = h("div", { class: "bar-critical" });
  const track = h("div", { class: "track" }, critical, bar, end, label);
  const name = h("div", { class: "cell-name", role: "gridcell" }, twist, mark, link, facts);
  const time = h("div", { class: "cell-time", role: "gridcell" }, track);
  const element = h("div", { class: "row", role: "row", tabindex: "-1" }, name, time);
  return { element, name, twist, mark, link, facts, bar, end, label, critical, row: null };
}

/** Fill the row `slot` with what stands at `index` among the rows of the model. */
export function fillRow(slot, model, index) {
  const row = model.rows[index];
  slot.row = row;
  slot.index = index;
  slot.element.setAttribute("aria-rowindex", String(index + 2)); // the first row is the header
  if (typeof row === "number") rowsFillSpan(slot, model, row);
  else rowsFillGap(slot, model, row);
  placeRow(slot, model, model.now());
}

/** Move the bar of a filled row to its time in the window of the model. */
export function placeRow(slot, model, now) {
  const { from, to } = model.window();
  const gap = typeof slot.row !== "number";
  const span = gap ? slot.row : model.tree.spans[slot.row];
  const start = gap ? span.from : span.start;
  const end = gap ? span.to : endAt(model.tree, slot.row, now);
  const scale = 100 / (to - from);
  const left = (start - from) * scale;
  const right = (end - from) * scale;
  const seen = right >= 0 && left <= 100;
  slot.element.classList.toggle("earlier", right < 0);
  slot.element.classList.toggle("later", left > 100);
  slot.bar.hidden = !seen;
  slot.end.hidden = !seen || slot.end.textContent === "";
  slot.label.hidden = !seen && !Number.isNaN(left);
  slot.critical.hidden = !seen || !model.path || gap || !model.path.time.has(slot.row);
  if (!gap) slot.label.textContent = rowsLabel(span, end);
  if (!seen) return;
  const [shownLeft, shownRight] = [Math.max(-1, left), Math.min(101, right)];
  slot.bar.style.left = `${shownLeft}%`;
  slot.bar.style.width = `${shownRight - shownLeft}%`;
  slot.end.style.left = `${shownRight}%`;
  rowsPlaceLabel(slot, Math.max(0, left), Math.min(100, right));
  if (gap) return;
  slot.bar.style.backgroundImage = rowsWaitGradient(slot, model, shownLeft, shownRight, end);
  if (!slot.critical.hidden) rowsPlaceCritical(slot, model, scale);
}

function rowsFillSpan(slot, model, p) {
  const { tree, folded } = model;
  const span = tree.spans[p];
  const parent = tree.last[p] > p + 1;
  const open = parent && !folded.has(span.id);
  const { element } = slot;
  const chosen = span.id === model.selected;
  element.className = `row kind-${kindOf(span.name)}`;
  element.classList.toggle("chosen", chosen);
  element.classList.toggle("hit", model.hits.has(p));
  element.classList.toggle("failed", span.status === "failed");
  element.classList.toggle("off-path", model.path !== null && !model.path.time.has(p));
  element.id = `row-${span.id}`;
  rowsAttributes(element, {
    "aria-level": tree.depth[p] + 1,
    "aria-posinset": tree.rank[p],
    "aria-setsize": tree.siblings[p],
    "aria-expanded": parent ? open : null,
    "aria-selected": chosen,
    tabindex: slot.index === model.cursorIndex ? 0 : -1,
  });
  rowsIndentBy(slot, tree.depth[p]);
  slot.twist.textContent = parent ? (open ? "▾" : "▸") : "";
  replace(slot.mark, statusMark(span.status));
  slot.link.href = `/runs/${encodeURIComponent(model.run.id)}?span=${encodeURIComponent(span.id)}`;
  slot.link.title = [span.name, span.label, span.error].filter(Boolean).join("\n");
  replace(
    slot.link,
    shortName(span.name),
    span.label && h("span", { class: "row-label" }, span.label),
    span.error && h("span", { class: "row-error" }, span.error),
  );
  replace(slot.facts, rowsFacts(model, p, span, parent && !open));
  slot.bar.className = `bar bar-${span.status}`;
  slot.end.textContent = rowsEndGlyph(span.status);
  slot.end.className = `bar-end status-${span.status}`;
  slot.bar.title = rowsBarTitle(model, p, span);
}

function rowsFillGap(slot, model, gap) {
  const { element } = slot;
  const inside = gap.parent === TREE_RUN ? "the run" : shortName(model.tree.spans[gap.parent].name);
  const depth = gap.parent === TREE_RUN ? 0 : model.tree.depth[gap.parent] + 1;
  element.className = "row gap";
  element.removeAttribute("id");
  rowsAttributes(element, {
    "aria-level": depth + 1,
    "aria-posinset": null,
    "aria-setsize": null,
    "aria-expanded": null,
    "aria-selected": null,
    tabindex: -1,
  });
  rowsIndentBy(slot, depth);
  slot.twist.textContent = "";
  replace(slot.mark);
  slot.link.removeAttribute("href");
  slot.link.title = `No step of ${inside} was active for ${duration(gap.to - gap.from)}`;
  replace(slot.link, `${duration(gap.to - gap.from)} idle`);
  replace(slot.facts);
  slot.bar.className = "bar bar-gap";
  slot.bar.style.backgroundImage = "";
  slot.bar.title = slot.link.title;
  slot.end.textContent = "";
  slot.label.textContent = "";
}

function rowsAttributes(element, values) {
  for (const [name, value] of Object.entries(values)) {
    if (value === null) element.removeAttribute(name);
    else element.setAttribute(name, String(value));
  }
}

function rowsIndentBy(slot, depth) {
  const levels = Math.min(depth, rowsDeepest);
  slot.name.style.setProperty("--indent", `${levels * rowsIndent}px`);
  slot.name.dataset.depth = depth > rowsDeepest ? String(depth) : "";
}

function rowsFacts(model, p, span, folded) {
  const share = model.path?.time.get(p);
  const hidden = model.tree.last[p] - p - 1;
  return [
    share !== undefined && h("span", { class: "row-share" }, rowsPercent(share, model.path.total)),
    span.flags > 0 && h("span", { class: "flagged" }, `⚠${span.flags}`),
    span.tokens > 0 && h("span", { class: "row-tokens", title: "tokens" }, `${count(span.tokens)}t`),
    folded && h("span", { class: "row-hidden", title: "hidden spans" }, `+${count(hidden)}`),
  ];
}

function rowsPercent(part, whole) {
  if (!(whole > 0)) return "0 %";
  const percent = (100 * part) / whole;
  return percent < 1 ? "<1 %" : `${Math.round(percent)} %`;
}

function rowsLabel(span, end) {
  if (Number.isNaN(span.start)) return STATUS[span.status]?.word ?? span.status;
  return span.status === "pending" ? "pending" : duration(end - span.start);
}

function rowsEndGlyph(status) {
  return status === "failed" || status === "cancelled" ? STATUS[status].glyph : "";
}

function rowsBarTitle(model, p, span) {
  const end = endAt(model.tree, p, model.now());
  const whole = end - span.start;
  const waits = model.waitsOf(p);
  if (waits.length === 0 || Number.isNaN(whole)) return duration(whole);
  const waited = waits.reduce((sum, wait) => sum + Math.max(0, Math.min(wait.to, end) - wait.from), 0);
  return `${duration(whole)}: ${duration(waited)} waiting for a child, ${duration(whole - waited)} own`;
}

/** The label stands after the bar; if there is no room, before it; else on it. */
function rowsPlaceLabel(slot, left, right) {
  const after = right < 86 || Number.isNaN(right);
  const before = !after && left > 14;
  slot.label.className = `bar-label ${after ? "after" : before ? "before" : "inside"}`;
  const at = Number.isNaN(right) ? 0 : after ? right : before ? 100 - left : 100 - right;
  slot.label.style.left = after ? `${at}%` : "auto";
  slot.label.style.right = after ? "auto" : `${at}%`;
}

/** The background that makes a bar pale where its span waited for a child. */
function rowsWaitGradient(slot, model, shownLeft, shownRight, end) {
  const waits = model.waitsOf(slot.row);
  if (waits.length === 0 || !(shownRight > shownLeft)) return "";
  const { from, to } = model.window();
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

function rowsPlaceCritical(slot, model, scale) {
  const { from } = model.window();
  const parts = model.path.parts.get(slot.row);
  const stops = parts.slice(0, rowsWaits).map((segment) => {
    const [a, b] = [(segment.from - from) * scale, (segment.to - from) * scale];
    const end = `max(${b}%, ${a}% + 2px)`;
    return `transparent ${a}%, var(--critical) ${a}%, var(--critical) ${end}, transparent ${end}`;
  });
  slot.critical.style.backgroundImage = `linear-gradient(to right, ${stops.join(", ")})`;
}
