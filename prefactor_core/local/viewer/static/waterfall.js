/**
 * The waterfall: a tree grid of which only the rows in view are in the document. Rows have one
 * height and stand on a spacer as high as all of them.
 */
import { drawAxis } from "./axis.js";
import { h } from "./dom.js";
import { fillRow, newRow, placeRow } from "./rows.js";
import { zoomed } from "./timeline.js";

const waterfallHeights = { wide: 26, narrow: 46 }; // px; run.css has the same
const waterfallMargin = 8; // rows that are drawn above and below the view

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
    this.free = [];
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
    this.resized = new ResizeObserver(() => this.draw());
    this.resized.observe(this.element);
  }

  close() {
    this.resized.disconnect();
  }

  /** The height of a row in pixels. */
  get rowHeight() {
    return this.narrow.matches ? waterfallHeights.narrow : waterfallHeights.wide;
  }

  /** Fills all rows again: folds, the selection, hits or times have changed. */
  draw() {
    this.stamp += 1;
    const { rows } = this.model;
    this.spacer.style.height = `${rows.length * this.rowHeight}px`;
    this.element.setAttribute("aria-rowcount", String(rows.length + 1));
    this.drawAxis();
    this.drawRows();
  }

  /** Moves the bars that have grown; all of them when the scale has changed. */
  tick() {
    const { from, to } = this.model.window();
    const rescaled = this.drawn === null || this.drawn.from !== from || this.drawn.to !== to;
    if (rescaled) this.drawAxis();
    const now = this.model.now();
    for (const slot of this.slots.values()) {
      const span = this.model.tree.spans[slot.row];
      if (rescaled || span?.status === "active") placeRow(slot, this.model, now);
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
    const chosen = this.model.rowOf.get(this.model.position());
    let index = chosen !== undefined && seen(chosen) ? chosen : Math.ceil(top / this.rowHeight);
    while (index < rows.length && typeof rows[index] !== "number") index += 1;
    if (index >= rows.length) return null;
    return { id: tree.spans[rows[index]].id, offset: index * this.rowHeight - top };
  }

  /** Draws changed rows with the row of `anchor` where it was. */
  drawAround(anchor) {
    this.spacer.style.height = `${this.model.rows.length * this.rowHeight}px`;
    const index = this.model.rowOf.get(this.model.tree.at.get(anchor?.id));
    if (index !== undefined) {
      const top = index * this.rowHeight - anchor.offset;
      if (Math.abs(top - this.element.scrollTop) >= 1) this.element.scrollTop = top;
    }
    this.draw();
  }

  /** Scrolls so that the row of position `p` is in view, and gives it the focus if asked. */
  show(p, { focus = false, center = false } = {}) {
    const index = this.model.rowOf.get(p);
    if (index === undefined) return;
    const top = index * this.rowHeight;
    const height = this.viewHeight();
    const hidden = top < this.element.scrollTop || top + this.rowHeight > this.element.scrollTop + height;
    if (hidden && center) this.element.scrollTop = top - height / 2;
    else if (top < this.element.scrollTop) this.element.scrollTop = top;
    else if (hidden) this.element.scrollTop = top + this.rowHeight - height;
    this.drawRows();
    if (focus) this.slots.get(this.model.tree.spans[p].id)?.element.focus({ preventScroll: true });
  }

  /** Index after the last row that is wholly in view. */
  bottomIndex() {
    return Math.floor((this.element.scrollTop + this.viewHeight()) / this.rowHeight);
  }

  viewHeight() {
    return this.element.clientHeight - this.axis.offsetHeight;
  }

  onScroll() {
    this.scrolling ??= requestAnimationFrame(() => {
      this.scrolling = undefined;
      this.drawRows();
      this.actions.scrolled();
    });
  }

  drawRows() {
    const { rows } = this.model;
    const top = this.element.scrollTop / this.rowHeight;
    const first = Math.max(0, Math.floor(top) - waterfallMargin);
    const shown = Math.ceil(this.element.clientHeight / this.rowHeight) + 2 * waterfallMargin;
    const end = Math.min(rows.length, first + shown);
    const wanted = new Map();
    const focused = this.focusedIndex();
    if (focused !== null && focused < first) wanted.set(this.keyOf(focused), focused);
    for (let index = first; index < end; index += 1) wanted.set(this.keyOf(index), index);
    if (focused !== null && focused >= end) wanted.set(this.keyOf(focused), focused);
    this.release(wanted);
    let next = this.spacer.firstChild;
    for (const [key, index] of wanted) {
      const slot = this.take(key, index);
      if (slot.element === next) next = next.nextSibling;
      else this.spacer.insertBefore(slot.element, next);
    }
  }

  /** The row that has the focus stays in the document, or the focus would be lost. */
  focusedIndex() {
    const row = document.activeElement?.closest?.(".row");
    if (!row || !this.spacer.contains(row)) return null;
    const p = this.model.tree.at.get(row.id.slice("row-".length));
    return this.model.rowOf.get(p) ?? null;
  }

  keyOf(index) {
    const row = this.model.rows[index];
    return typeof row === "number" ? this.model.tree.spans[row].id : `${row.parent} ${row.from}`;
  }

  release(wanted) {
    for (const [key, slot] of this.slots) {
      if (wanted.has(key)) continue;
      this.slots.delete(key);
      slot.element.remove();
      slot.stamp = -1;
      this.free.push(slot);
    }
  }

  take(key, index) {
    let slot = this.slots.get(key);
    if (slot === undefined) {
      slot = this.free.pop() ?? newRow();
      this.slots.set(key, slot);
    }
    if (slot.stamp === this.stamp && slot.index === index) return slot;
    slot.stamp = this.stamp;
    fillRow(slot, this.model, index);
    slot.element.style.transform = `translateY(${index * this.rowHeight}px)`;
    return slot;
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
