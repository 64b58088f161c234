/**
 * The flame strip: children under their parents, side by side in time. Spans that overlap at one
 * level stand on lanes below each other.
 */
import { announce, h } from "../elements/dom.js";
import { duration, kindOf, shortName } from "../values/format.js";
import { glyphOf } from "../values/status.js";
import { zoomed } from "../tree/timeline.js";
import { TREE_RUN, endAt } from "../tree/tree.js";
import { drawAxis } from "./axis.js";
import { palette } from "./palette.js";

const flameLane = 20; // px
const flameProbes = 200; // lanes that are tried; after that spans are drawn over each other

export class Flame {
  /** @param {{select: Function, view: Function}} actions as of the waterfall */
  constructor(model, actions) {
    this.model = model;
    this.actions = actions;
    this.version = null;
    this.axis = h("div", { class: "axis" });
    this.canvas = h("canvas", { "aria-hidden": "true" });
    this.spacer = h("div", { class: "flame-spacer" }, this.canvas);
    this.scroller = h("div", { class: "flame-scroller" }, this.spacer);
    this.caption = h("div", { class: "flame-caption" });
    this.element = h(
      "div",
      {
        class: "flame",
        role: "group",
        tabindex: "0",
        aria: { label: "Flame chart. Arrow keys go to the parent, a child or a neighbour." },
      },
      h("div", { class: "flame-head" }, this.axis),
      this.scroller,
      this.caption,
    );
    this.scroller.addEventListener("scroll", () => this.tick(), { passive: true });
    this.canvas.addEventListener("pointermove", (event) => this.onMove(event));
    this.canvas.addEventListener("pointerleave", () => this.say(this.model.position()));
    this.canvas.addEventListener("click", (event) => this.onClick(event));
    this.canvas.addEventListener("wheel", (event) => this.onWheel(event), { passive: false });
    this.element.addEventListener("keydown", (event) => this.onKey(event));
    this.resized = new ResizeObserver(() => this.draw());
    this.resized.observe(this.element);
  }

  close() {
    this.resized.disconnect();
  }

  /** Draw the lanes in view. */
  draw() {
    this.colours = palette(this.element);
    this.tick();
  }

  /** Draw the lanes in view as they are now, in the colours of the last `draw`. */
  tick() {
    const { clientWidth: width, clientHeight: height } = this.scroller;
    if (width === 0) return;
    if (this.version !== this.model.version) {
      this.version = this.model.version;
      this.layout = flameLanes(this.model.tree, Infinity);
      this.spacer.style.height = `${Math.max(this.layout.lanes.length * flameLane, height)}px`;
    }
    drawAxis(this.axis, this.model);
    const ratio = window.devicePixelRatio || 1;
    this.canvas.width = width * ratio;
    this.canvas.height = height * ratio;
    this.canvas.style.width = `${width}px`;
    this.canvas.style.height = `${height}px`;
    const context = this.canvas.getContext("2d");
    context.scale(ratio, ratio);
    context.font = "11px ui-monospace, Menlo, Consolas, monospace";
    context.textBaseline = "middle";
    const view = this.model.window();
    const pen = {
      context,
      width,
      colours: this.colours,
      from: view.from,
      scale: width / (view.to - view.from),
      letter: context.measureText("0").width,
      now: this.model.now(),
      chosen: this.model.position(),
    };
    const top = this.scroller.scrollTop;
    const first = Math.floor(top / flameLane);
    const last = Math.min(this.layout.lanes.length, Math.ceil((top + height) / flameLane));
    for (let k = first; k < last; k += 1) this.drawLane(pen, k, k * flameLane - top);
    this.say(pen.chosen);
  }

  drawLane(pen, k, y) {
    let reached = -1;
    for (const p of this.layout.lanes[k]) {
      const left = (this.model.tree.spans[p].start - pen.from) * pen.scale;
      if (left > pen.width) return;
      const right = (endAt(this.model.tree, p, pen.now) - pen.from) * pen.scale;
      const chosen = p === pen.chosen;
      if (right < 0 || (right < reached && !chosen)) continue;
      reached = Math.max(left + 1, right - 0.5);
      this.drawSpan(pen, p, Math.max(-2, left), Math.min(pen.width + 2, right), y);
    }
  }

  drawSpan({ context, colours, letter, chosen }, p, left, right, y) {
    const span = this.model.tree.spans[p];
    const width = Math.max(1, right - left - (right - left > 4 ? 1 : 0));
    const height = flameLane - 2;
    const off = this.model.path !== null && !this.model.path.time.has(p);
    const pale = off || span.status === "cancelled";
    context.globalAlpha = off ? 0.25 : pale ? 0.45 : 1;
    context.fillStyle = colours[kindOf(span.name)];
    context.fillRect(left, y + 1, width, height);
    context.globalAlpha = off ? 0.6 : 1;
    if (span.status === "failed") {
      context.fillStyle = colours.failed;
      context.fillRect(left, y + height - 2, width, 3);
    }
    const room = Math.floor((width - 8) / letter);
    if (room >= 3) {
      const ended = span.status === "failed" || span.status === "cancelled";
      const mark = ended ? `${glyphOf(span.status)} ` : "";
      const text = `${mark}${shortName(span.name)}${span.label ? ` ${span.label}` : ""}`;
      context.fillStyle = pale ? colours.fg : colours.bg;
      const shown = text.length > room ? `${text.slice(0, room - 1)}…` : text;
      context.fillText(shown, Math.max(0, left) + 4, y + flameLane / 2);
    }
    context.globalAlpha = 1;
    if (p !== chosen && !this.model.hits.has(p)) return;
    context.lineWidth = 2;
    context.strokeStyle = p === chosen ? colours.fg : colours.hit;
    context.strokeRect(left + 1, y + 2, Math.max(1, width - 2), height - 2);
  }

  /** The span at a place of the canvas, or null. */
  at(event) {
    const { tree } = this.model;
    const { from, to } = this.model.window();
    const perPixel = (to - from) / this.scroller.clientWidth;
    const time = from + event.offsetX * perPixel;
    const y = event.offsetY + this.scroller.scrollTop;
    const lane = this.layout?.lanes[Math.floor(y / flameLane)];
    const now = this.model.now();
    const slack = 2 * perPixel;
    const found = lane?.findLast((p) => {
      return tree.spans[p].start <= time + slack && endAt(tree, p, now) >= time - slack;
    });
    return found ?? null;
  }

  /** Scroll to the lane of the span at `p`. */
  show(p) {
    this.draw();
    const y = (this.layout?.lane[p] ?? 0) * flameLane;
    const { scrollTop, clientHeight } = this.scroller;
    if (y < scrollTop || y + flameLane > scrollTop + clientHeight) {
      this.scroller.scrollTop = y - clientHeight / 2;
    }
  }

  say(p) {
    const known = this.model.tree.spans[p] !== undefined;
    this.caption.textContent = known ? this.text(p) : "Point at a bar, or use the arrow keys.";
  }

  text(p) {
    const { name, label, status, start, error } = this.model.tree.spans[p];
    const time = duration(endAt(this.model.tree, p, this.model.now()) - start);
    const parts = [name, label, status, time, error];
    return parts.filter(Boolean).join(" · ");
  }

  onMove(event) {
    const p = this.at(event);
    this.canvas.style.cursor = p === null ? "default" : "pointer";
    this.say(p ?? this.model.position());
  }

  onClick(event) {
    const p = this.at(event);
    if (p !== null) this.actions.select(this.model.tree.spans[p].id);
  }

  onWheel(event) {
    if (!event.ctrlKey) return;
    event.preventDefault();
    const { from, to } = this.model.window();
    const at = from + (event.offsetX / this.scroller.clientWidth) * (to - from);
    this.actions.view(zoomed(this.model.view, this.model.domain(), 2 ** (-event.deltaY / 100), at));
  }

  onKey(event) {
    const { tree } = this.model;
    const p = this.model.position();
    const to = p === null ? 0 : this.neighbour(p, event.key);
    if (!event.key.startsWith("Arrow") || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    event.stopPropagation();
    if (to === null || to === undefined || tree.spans.length === 0) return;
    this.actions.select(tree.spans[to].id);
    announce(this.text(to));
  }

  neighbour(p, key) {
    const { tree } = this.model;
    const lane = this.layout.lanes[this.layout.lane[p]] ?? [];
    if (key === "ArrowUp") return tree.parent[p] === TREE_RUN ? null : tree.parent[p];
    if (key === "ArrowDown") return tree.last[p] > p + 1 ? p + 1 : null;
    return lane[lane.indexOf(p) + (key === "ArrowLeft" ? -1 : 1)];
  }
}

/**
 * Return the spans by lane, in the order of their starts. A span is on a lane below its parent's.
 *
 * @returns {{lane: Int32Array, lanes: Array<number[]>}} lane by position, positions by lane
 */
function flameLanes(tree, now) {
  const lane = new Int32Array(tree.spans.length);
  const lanes = [];
  const ends = [];
  tree.spans.forEach(({ start }, p) => {
    let chosen = tree.parent[p] === TREE_RUN ? 0 : lane[tree.parent[p]] + 1;
    const limit = chosen + flameProbes;
    while (ends[chosen] > start && chosen < limit) chosen += 1;
    lane[p] = chosen;
    if (Number.isNaN(start)) return;
    (lanes[chosen] ??= []).push(p);
    ends[chosen] = Math.max(ends[chosen] ?? -Infinity, endAt(tree, p, now));
  });
  for (let k = 0; k < lanes.length; k += 1) lanes[k] ??= [];
  for (const positions of lanes) {
    positions.sort((a, b) => tree.spans[a].start - tree.spans[b].start);
  }
  return { lane, lanes };
}
