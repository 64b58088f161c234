/**
 * The waterfall: a tree grid of which only the rows in view are in the document. Rows have one
 * height and stand on a spacer as high as all of them.
 */
import { h } from "../elements/dom.js";
import { zoomed } from "../tree/timeline.js";
import { drawAxis } from "./axis.js";
import { fillRow, newRow, placeRow } from "./rows.js";

const waterfallHeights = { wide: 26, narrow: 46 }; // px; views.css has the same
const waterfallHead = 24; // px
const waterfallMargin = 6; // rows that are drawn above and below the view

export class Waterfall {
  /**
   * @param {object} model
   * @param {{select: Function, toggle: Function, view: Function, scrolled: Function}} actions
   *   `select(id)`, `toggle(id)` a fold, `view(window)` to zoom, `scrolled()` after a scroll
   */
  constructor(model, actions) {
    this.model = model;
    this.actions = actions;
    this.narrow = window.matchMedia("(max-width: 699px)");
    this.slots = new Map();
    this.height = 0; // of the view, and the scroll position: read before rows change, in pixels
    this.top = 0;
    this.stamp = 0;
    this.drawn = null;
    this.axis = h("div", { class: "axis", role: "columnheader", aria: { label: "Time" } });
    const head = h(
      "div",
      { class: "tree-head", role: "row", aria: { rowindex: 1 } },
      h("div", { class: "cell-name", role: "columnheader" }, "Step"),
      this.axis,
    );
    this.spacer = h("div", { class: "spacer", role: "rowgroup" });
    this.element = h(
      "div",
      { class: "tree", role: "treegrid", aria: { label: "Spans of the run", colcount: 2 } },
      head,
      this.spacer,
    );
    this.element.addEventListener("scroll", () => this.onScroll(), { passive: true });
    this.spacer.addEventListener("click", (event) => this.onClick(event));
    this.spacer.addEventListener("dblclick", (event) => this.onDoubleClick(event));
    this.axis.addEventListener("wheel", (event) => this.onWheel(event), { passive: false });
    this.resized = new ResizeObserver(() => {
      this.height = this.element.clientHeight;
      this.draw();
    });
    this.resized.observe(this.element);
  }

  close() {
    this.resized.disconnect();
  }

  /** The height of a row in pixels. */
  get rowHeight() {
    return this.narrow.matches ? waterfallHeights.narrow : waterfallHeights.wide;
  }

  /** Fill all rows again: folds, the selection, hits or times have changed. */
  draw() {
    this.stamp += 1;
    this.height ||= this.element.clientHeight;
    const { rows } = this.model;
    this.spacer.style.height = `${rows.length * this.rowHeight}px`;
    this.element.setAttribute("aria-rowcount", String(rows.length + 1));
    this.drawAxis();
    this.drawRows();
  }

  /** Move the bars that have grown; all of them when the scale has changed. */
  tick() {
    const { from, to } = this.model.window();
    const rescaled = this.drawn === null || this.drawn.from !== from || this.drawn.to !== to;
    if (rescaled) this.drawAxis();
    const sight = this.model.sight();
    for (const slot of this.slots.values()) {
      const span = this.model.tree.spans[slot.row];
      if (rescaled || span?.status === "active") placeRow(slot, this.model, sight);
    }
  }

  /** The place of a row that must stay where it is while rows are added. */
  anchor() {
    const { rows, tree } = this.model;
    const top = this.element.scrollTop;
    const seen = (index) => {
      const at = index * this.rowHeight - top;
      return at >= 0 && at < this.viewHeight() - this.rowHeight;
    };
    const chosen = this.model.rowOf(this.model.selected);
    let index = chosen >= 0 && seen(chosen) ? chosen : Math.ceil(top / this.rowHeight);
    while (index < rows.length && typeof rows[index] !== "number") index += 1;
    if (index >= rows.length) return null;
    return { id: tree.spans[rows[index]].id, offset: index * this.rowHeight - top };
  }

  /** Draw changed rows with the row of `anchor` where it was. */
  drawAround(anchor) {
    this.spacer.style.height = `${this.model.rows.length * this.rowHeight}px`;
    const index = this.model.rowOf(anchor?.id);
    if (index >= 0) {
      const top = index * this.rowHeight - anchor.offset;
      if (Math.abs(top - this.element.scrollTop) >= 1) this.element.scrollTop = top;
    }
    this.draw();
  }

  /** Scroll so that the row of position `p` is in view, and gives it the focus if asked. */
  show(p, { focus = false, center = false } = {}) {
    const index = this.model.rowIndex[p] ?? -1;
    if (index < 0) return;
    const top = index * this.rowHeight;
    const height = this.viewHeight();
    const { scrollTop } = this.element;
    const above = top < scrollTop;
    const below = top + this.rowHeight > scrollTop + height;
    if (center && (above || below)) this.element.scrollTop = top - height / 2;
    else if (above) this.element.scrollTop = top;
    else if (below) this.element.scrollTop = top + this.rowHeight - height;
    this.drawRows();
    if (focus) this.slots.get(this.model.tree.spans[p].id)?.element.focus({ preventScroll: true });
  }

  /** Index after the last row that is wholly in view. */
  bottomIndex() {
    return Math.floor((this.top + this.viewHeight()) / this.rowHeight);
  }

  viewHeight() {
    return this.height - waterfallHead;
  }

  onScroll() {
    this.scrolling ??= requestAnimationFrame(() => {
      this.scrolling = undefined;
      const jumped = Math.abs(this.element.scrollTop - this.top) > this.height;
      // After a jump all rows are filled: those in view now, the ones around them in a later frame.
      this.drawRows(jumped ? 1 : waterfallMargin);
      this.actions.scrolled();
      if (jumped) this.onScroll();
    });
  }

  drawRows(margin = waterfallMargin) {
    const { rows } = this.model;
    this.top = this.element.scrollTop;
    const top = this.top / this.rowHeight;
    const first = Math.max(0, Math.floor(top) - margin);
    const shown = Math.ceil(this.height / this.rowHeight) + 2 * margin;
    const end = Math.min(rows.length, first + shown);
    const wanted = new Map();
    const focused = this.focusedIndex();
    if (focused !== null && focused < first) wanted.set(this.keyOf(focused), focused);
    for (let index = first; index < end; index += 1) wanted.set(this.keyOf(index), index);
    if (focused !== null && focused >= end) wanted.set(this.keyOf(focused), focused);
    this.arrangeRows(wanted);
  }

  /**
   * Give each wanted row an element, in the order of rows. Rows that stay keep theirs, where they
   * are. Elements of rows that went are filled again in place, or moved to where rows are missing.
   */
  arrangeRows(wanted) {
    const free = new Set();
    for (const [key, slot] of this.slots) {
      if (wanted.has(key)) continue;
      this.slots.delete(key);
      free.add(slot);
    }
    const slotAt = new Map([...free].map((slot) => [slot.element, slot]));
    let next = this.spacer.firstChild;
    for (const [key, index] of wanted) {
      let slot = this.slots.get(key);
      while (slot !== undefined && slotAt.has(next)) next = next.nextSibling;
      slot ??= slotAt.get(next) ?? free.values().next().value ?? newRow();
      if (free.delete(slot)) {
        slotAt.delete(slot.element);
        slot.stamp = -1;
      }
      this.slots.set(key, slot);
      this.fill(slot, index);
      if (slot.element === next) next = next.nextSibling;
      else this.spacer.insertBefore(slot.element, next);
    }
    for (const slot of free) slot.element.remove();
  }

  fill(slot, index) {
    if (slot.stamp === this.stamp && slot.index === index) return;
    slot.stamp = this.stamp;
    fillRow(slot, this.model, index);
    slot.element.style.transform = `translateY(${index * this.rowHeight}px)`;
  }

  /** The row that has the focus stays in the document, or the focus would be lost. */
  focusedIndex() {
    const row = document.activeElement?.closest?.(".row");
    if (!row || !this.spacer.contains(row)) return null;
    const index = this.model.rowOf(row.id.slice("row-".length));
    return index < 0 ? null : index;
  }

  keyOf(index) {
    const row = this.model.rows[index];
    return typeof row === "number" ? this.model.tree.spans[row].id : `${row.parent} ${row.from}`;
  }

  drawAxis() {
    this.drawn = this.model.window();
    if (this.axis.clientWidth === 0) return;
    const { step, first } = drawAxis(this.axis, this.model);
    this.element.style.setProperty("--grid-step", `${step}px`);
    this.element.style.setProperty("--grid-offset", `${first}px`);
  }

  onClick(event) {
    const span = this.spanOf(event);
    if (span === null) return;
    if (event.target.closest(".twist")?.textContent) return this.actions.toggle(span.id);
    if (event.ctrlKey || event.metaKey || event.shiftKey || event.button !== 0) return;
    event.preventDefault();
    this.actions.select(span.id);
  }

  onDoubleClick(event) {
    const span = this.spanOf(event);
    if (span === null || event.target.closest(".cell-name")) return;
    const end = Number.isNaN(span.end) ? this.model.now() : span.end;
    const domain = this.model.domain();
    const factor = (domain.to - domain.from) / Math.max(0.01, (end - span.start) * 1.2);
    this.actions.view(zoomed(null, domain, factor, (span.start + end) / 2));
  }

  onWheel(event) {
    event.preventDefault();
    const view = this.model.window();
    const box = this.axis.getBoundingClientRect();
    const at = view.from + ((event.clientX - box.left) / box.width) * (view.to - view.from);
    this.actions.view(zoomed(this.model.view, this.model.domain(), 2 ** (-event.deltaY / 200), at));
  }

  spanOf(event) {
    const row = event.target.closest(".row");
    const p = row && this.model.tree.at.get(row.id.slice("row-".length));
    return p === undefined || p === null ? null : this.model.tree.spans[p];
  }
}
