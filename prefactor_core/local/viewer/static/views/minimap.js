/**
 * The whole run in one small picture, with the window of time that the waterfall shows. Drag on the
 * picture to choose a window, drag the window or its sides to move it.
 */
import { h } from "../elements/dom.js";
import { kindOf } from "../values/format.js";
import { insideOf, panned, windowOf, zoomed } from "../tree/timeline.js";
import { endAt } from "../tree/tree.js";
import { palette } from "./palette.js";

const minimapLanes = 14; // levels of the tree that get a line of their own
const minimapKinds = ["", "llm", "tool", "retrieval", "agent", "chain", "other"];

export class Minimap {
  /** @param {(window: object|null) => void} onView called with the window that was chosen */
  constructor(model, onView) {
    this.model = model;
    this.onView = onView;
    this.canvas = h("canvas", { "aria-hidden": "true" });
    this.frame = h(
      "div",
      { class: "minimap-window" },
      h("div", { class: "minimap-side", data: { side: "from" } }),
      h("div", { class: "minimap-side", data: { side: "to" } }),
    );
    this.element = h(
      "div",
      {
        class: "minimap",
        role: "group",
        tabindex: "0",
        title: "Drag to zoom; double click to see all",
        aria: { label: "Overview of the run. Plus and minus zoom, left and right move." },
      },
      this.canvas,
      this.frame,
    );
    this.element.addEventListener("pointerdown", (event) => this.onPointer(event));
    this.element.addEventListener("dblclick", () => this.onView(null));
    this.element.addEventListener("wheel", (event) => this.onWheel(event), { passive: false });
    this.element.addEventListener("keydown", (event) => this.onKey(event));
    this.resized = new ResizeObserver(() => this.draw());
    this.resized.observe(this.element);
  }

  close() {
    this.resized.disconnect();
  }

  /** Draw the picture again. */
  draw() {
    const { clientWidth: width, clientHeight: height } = this.element;
    if (width === 0) return;
    const ratio = window.devicePixelRatio || 1;
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(height * ratio);
    const context = this.canvas.getContext("2d");
    const colours = palette(this.element);
    this.drawn = this.model.domain();
    this.paint(context, colours, this.canvas.width, this.canvas.height, ratio);
    this.place();
  }

  /** Move the frame to the window that is shown; draws again if the scale has changed. */
  place() {
    const domain = this.model.domain();
    if (this.drawn?.to !== domain.to || this.drawn?.from !== domain.from) return this.draw();
    const { view } = this.model;
    this.frame.hidden = view === null;
    if (view === null) return;
    const length = domain.to - domain.from;
    this.frame.style.left = `${(100 * (view.from - domain.from)) / length}%`;
    this.frame.style.width = `${(100 * (view.to - view.from)) / length}%`;
  }

  /**
   * Each lane is a line of pixels that spans mark with their kind; then runs of one kind are
   * filled. So the work depends on the pixels, hardly on the number of spans.
   */
  paint(context, colours, width, height, ratio) {
    const { tree } = this.model;
    const now = this.model.now();
    const scale = width / (this.drawn.to - this.drawn.from);
    const lanes = Array.from({ length: minimapLanes }, () => new Uint8Array(width));
    const kinds = new Map(); // kinds by name: names are few
    let deepest = 0;
    tree.spans.forEach((span, p) => {
      if (Number.isNaN(span.start)) return;
      const lane = Math.min(tree.depth[p], minimapLanes - 1);
      deepest = Math.max(deepest, lane);
      let kind = kinds.get(span.name);
      if (kind === undefined) {
        kind = minimapKinds.indexOf(kindOf(span.name));
        kinds.set(span.name, kind);
      }
      const left = Math.floor((span.start - this.drawn.from) * scale);
      const right = Math.ceil((endAt(tree, p, now) - this.drawn.from) * scale);
      lanes[lane].fill(kind, left, Math.max(left + 1, right));
    });
    const top = 4 * ratio;
    const line = (height - top) / Math.max(3, deepest + 1);
    lanes.slice(0, deepest + 1).forEach((pixels, lane) => {
      minimapRuns(pixels, (kind, left, right) => {
        context.fillStyle = colours[minimapKinds[kind]];
        const gap = line > 3 * ratio ? ratio : 0;
        context.fillRect(left, top + lane * line, right - left, Math.max(1, line - gap));
      });
    });
    this.paintMarks(context, scale, ratio, this.model.failed, colours.failed, height);
    this.paintMarks(context, scale, ratio, this.model.hits, colours.hit, height);
  }

  /** Mark failed spans and hits at the upper edge. */
  paintMarks(context, scale, ratio, positions, colour, height) {
    const places = new Set();
    for (const p of positions) {
      places.add(Math.floor((this.model.tree.spans[p].start - this.drawn.from) * scale));
    }
    places.delete(NaN);
    context.fillStyle = colour;
    for (const x of places) {
      context.fillRect(Math.max(0, x - ratio), 0, 2 * ratio, 4 * ratio);
      context.globalAlpha = 0.35;
      context.fillRect(x, 0, ratio, height);
      context.globalAlpha = 1;
    }
  }

  timeAt(clientX) {
    const box = this.element.getBoundingClientRect();
    const domain = this.model.domain();
    return domain.from + ((clientX - box.left) / box.width) * (domain.to - domain.from);
  }

  onPointer(event) {
    if (event.button !== 0) return;
    const domain = this.model.domain();
    const begun = this.timeAt(event.clientX);
    const { view } = this.model;
    const side = event.target.dataset.side;
    const inside = this.frame.contains(event.target);
    let choose = (time) => windowOf(begun, time, domain);
    if (side === "from") choose = (time) => windowOf(time, view.to, domain);
    else if (side === "to") choose = (time) => windowOf(view.from, time, domain);
    else if (inside) {
      choose = (time) =>
        insideOf({ from: view.from + time - begun, to: view.to + time - begun }, domain);
    }
    const move = (moved) => {
      const chosen = choose(this.timeAt(moved.clientX));
      if (chosen !== null) this.onView(chosen);
    };
    const stop = () => {
      this.element.removeEventListener("pointermove", move);
      this.element.removeEventListener("pointerup", stop);
      this.element.removeEventListener("pointercancel", stop);
    };
    this.element.setPointerCapture(event.pointerId);
    this.element.addEventListener("pointermove", move);
    this.element.addEventListener("pointerup", stop);
    this.element.addEventListener("pointercancel", stop);
  }

  onWheel(event) {
    event.preventDefault();
    const at = this.timeAt(event.clientX);
    const factor = 2 ** (-event.deltaY / 200);
    this.onView(zoomed(this.model.view, this.model.domain(), factor, at));
  }

  onKey(event) {
    const part = { ArrowLeft: -0.25, ArrowRight: 0.25 }[event.key];
    if (part === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    this.onView(panned(this.model.view, this.model.domain(), part));
  }
}

/** Call `each(kind, left, right)` for each run of one kind; kind 0 is empty. */
function minimapRuns(pixels, each) {
  let left = 0;
  for (let x = 1; x <= pixels.length; x += 1) {
    if (x < pixels.length && pixels[x] === pixels[left]) continue;
    if (pixels[left] !== 0) each(pixels[left], left, x);
    left = x;
  }
}
