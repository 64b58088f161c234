/**
 * The run as plain text: every span on a line, so that the browser finds, selects and copies it.
 */
import { copyButton, h } from "../elements/dom.js";
import { count, duration } from "../values/format.js";
import { glyphOf } from "../values/status.js";
import { get } from "../server/requests.js";
import { TREE_RUN, endAt, visibleRows } from "../tree/tree.js";

const textviewChunk = 500; // rows in one element: the browser lays out those in view alone
const textviewStep = 8 * textviewChunk; // rows that are written without a pause
const textviewAtOnce = 6; // requests for payloads

/** Return the rows of the whole run, whatever is folded: see `visibleRows`. */
export function textRows(model) {
  const { from, to } = model.domain();
  const least = Math.max(1, (to - from) * 0.02);
  return visibleRows(model.tree, new Set(), { now: model.now(), least });
}

/**
 * Return the text of rows: a line for each, and two more for a span whose payloads are known.
 *
 * @param {Map<string, {payload_text, result_text}>} payloads by id of the span
 */
export function textOf(model, rows, payloads) {
  const now = model.now();
  const lines = [];
  for (const row of rows) {
    if (typeof row === "number") textviewSpan(lines, model.tree, row, now, payloads);
    else lines.push(textviewGap(model.tree, row));
  }
  return `${lines.join("\n")}\n`;
}

export class TextView {
  constructor(model) {
    this.model = model;
    this.payloads = new Map();
    this.text = h("div", { class: "text-lines", tabindex: "0", role: "region" });
    this.text.setAttribute("aria-label", "The run as text");
    this.more = h("button", { type: "button", on: { click: () => this.loadPayloads() } });
    const all = () => textOf(this.model, textRows(this.model), this.payloads);
    const copy = copyButton(all, "Copy all");
    const note = h("span", { class: "muted" }, "start of the step, its duration, the step");
    const head = h("div", { class: "text-head" }, note, this.more, copy);
    this.element = h("div", { class: "text-view" }, head, this.text);
  }

  close() {
    this.closed = true;
  }

  /** Write the text in steps, so that a long run does not stop the page. */
  draw() {
    const total = this.model.tree.spans.length;
    const missing = total - this.payloads.size;
    this.more.hidden = missing <= 0;
    this.more.textContent = `Add inputs and results of ${count(missing)} spans`;
    const rows = textRows(this.model);
    const draft = {};
    this.draft = draft;
    const write = (from) => {
      if (this.closed || this.draft !== draft) return;
      const to = Math.min(rows.length, from + textviewStep);
      for (let at = from; at < to; at += textviewChunk) {
        this.writeChunk(at / textviewChunk, rows.slice(at, at + textviewChunk));
      }
      if (to < rows.length) setTimeout(() => write(to));
    };
    while (this.text.children.length > Math.ceil(rows.length / textviewChunk)) {
      this.text.lastChild.remove();
    }
    write(0);
  }

  /** Replace the text of a chunk only if it has changed: a selection elsewhere stays. */
  writeChunk(index, rows) {
    const text = textOf(this.model, rows, this.payloads);
    let chunk = this.text.children[index];
    if (chunk === undefined) {
      chunk = h("pre", { class: "text-chunk" });
      this.text.append(chunk);
    }
    if (chunk.textContent === text) return;
    chunk.textContent = text;
    chunk.style.setProperty("contain-intrinsic-size", `auto ${rows.length * 18}px`);
  }

  tick() {}

  show() {}

  async loadPayloads() {
    this.more.disabled = true;
    const ids = this.model.tree.spans.map(({ id }) => id).filter((id) => !this.payloads.has(id));
    const next = async () => {
      for (let id = ids.pop(); id !== undefined && !this.closed; id = ids.pop()) {
        const { span } = await get(`/-/spans/${encodeURIComponent(id)}`);
        this.payloads.set(id, { payload_text: span.payload_text, result_text: span.result_text });
        this.more.textContent = `${count(ids.length)} spans to load …`;
      }
    };
    try {
      await Promise.all(Array.from({ length: textviewAtOnce }, next));
    } finally {
      this.more.disabled = false;
      if (!this.closed) this.draw();
    }
  }
}

function textviewSpan(lines, tree, p, now, payloads) {
  const span = tree.spans[p];
  const indent = "  ".repeat(Math.min(60, tree.depth[p]));
  const facts = [
    span.label,
    span.status,
    span.error,
    span.flags > 0 && `${span.flags} flags`,
    span.tokens > 0 && `${count(span.tokens)} tokens`,
    span.id,
  ];
  const start = Number.isNaN(span.start) ? "–" : duration(span.start - tree.from);
  const length = Number.isNaN(span.start) ? "–" : duration(endAt(tree, p, now) - span.start);
  const head = `${start.padStart(11)} ${length.padStart(11)}  ${indent}`;
  lines.push(`${head}${glyphOf(span.status)} ${span.name}  ${facts.filter(Boolean).join(" · ")}`);
  const texts = payloads.get(span.id);
  const margin = " ".repeat(head.length);
  if (texts) lines.push(`${margin}  input  ${texts.payload_text}`);
  if (texts?.result_text) lines.push(`${margin}  result ${texts.result_text}`);
}

function textviewGap(tree, { parent, from, to }) {
  const depth = parent === TREE_RUN ? 0 : tree.depth[parent] + 1;
  const times = [from - tree.from, to - from].map((ms) => duration(ms).padStart(11));
  return `${times.join(" ")}  ${"  ".repeat(Math.min(60, depth))}·· idle`;
}
