/**
 * The run as plain text: every span on a line, so that the browser finds, selects and copies it.
 */
import { copyButton, h } from "../elements/dom.js";
import { counted, duration } from "../values/format.js";
import { parseJson, prettyJson } from "../values/json_parse.js";
import { glyphOf } from "../values/status.js";
import { get } from "../server/requests.js";
import { TREE_RUN, endAt, visibleRows } from "../tree/tree.js";

const textviewChunk = 500; // rows in one element: the browser lays out those in view alone
const textviewStep = 8 * textviewChunk; // rows that are written without a pause
const textviewBatch = 100; // spans whose payloads one request may ask for
const textviewNote = "start of the step, its duration, the step";

export class TextView {
  constructor(model) {
    this.model = model;
    this.payloads = new Map();
    this.text = h("div", { class: "text-lines", tabindex: "0", role: "region" });
    this.text.setAttribute("aria-label", "The run as text");
    this.more = h("button", { type: "button", on: { click: () => this.loadPayloads() } });
    const all = () => textviewText(this.model, textviewRows(this.model), this.payloads);
    const copy = copyButton(all, "Copy all");
    this.note = h("span", { class: "muted", role: "status" }, textviewNote);
    const head = h("div", { class: "text-head" }, this.note, this.more, copy);
    this.element = h("div", { class: "text-view" }, head, this.text);
  }

  close() {
    this.closed = true;
  }

  /** Write the text in steps, so that a long run does not stop the page. */
  draw() {
    const missing = this.missing().length;
    this.more.hidden = missing === 0;
    this.more.textContent = `Add inputs and results of ${counted(missing, "span")}`;
    const rows = textviewRows(this.model);
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
    const text = textviewText(this.model, rows, this.payloads);
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

  /** The ids of the spans whose payloads were not read in the status that they have now. */
  missing() {
    const missing = this.model.tree.spans.filter(
      ({ id, status }) => this.payloads.get(id)?.status !== status,
    );
    return missing.map(({ id }) => id);
  }

  /** Read the missing payloads in batches; the server may leave some of a batch for the next. */
  async loadPayloads() {
    this.more.disabled = true;
    const left = this.missing();
    const { spans, at } = this.model.tree;
    const statuses = new Map(left.map((id) => [id, spans[at.get(id)].status]));
    try {
      while (left.length > 0 && !this.closed) {
        const ids = left.splice(0, textviewBatch).map(encodeURIComponent).join(",");
        const answer = await get(`/-/spans?ids=${ids}`);
        for (const { id, ...texts } of answer.spans) {
          this.payloads.set(id, { status: statuses.get(id), ...texts });
        }
        left.unshift(...answer.left);
        this.more.textContent = `${counted(left.length, "span")} to load …`;
      }
      this.note.textContent = textviewNote;
    } catch (failure) {
      this.note.textContent = failure.message;
    }
    this.more.disabled = false;
    if (!this.closed) this.draw();
  }
}

/** The rows of the whole run, whatever is folded: see `visibleRows`. */
function textviewRows(model) {
  const { from, to } = model.domain();
  const least = Math.max(1, (to - from) * 0.02);
  return visibleRows(model.tree, new Set(), { now: model.now(), least });
}

/**
 * The text of rows: a line for each, and two more for a span whose payloads are known.
 *
 * @param {Map<string, {payload_text, result_text}>} payloads by id of the span
 */
function textviewText(model, rows, payloads) {
  const now = model.now();
  const lines = [];
  for (const row of rows) {
    if (typeof row === "number") textviewSpan(lines, model.tree, row, now, payloads);
    else lines.push(textviewGap(model.tree, row));
  }
  return `${lines.join("\n")}\n`;
}

function textviewSpan(lines, tree, p, now, payloads) {
  const span = tree.spans[p];
  const indent = "  ".repeat(Math.min(60, tree.depth[p]));
  const facts = [
    span.label,
    span.status,
    span.error,
    span.flags > 0 && counted(span.flags, "flag"),
    span.tokens > 0 && counted(span.tokens, "token"),
    span.id,
  ];
  const start = Number.isNaN(span.start) ? "–" : duration(span.start - tree.from);
  const length = Number.isNaN(span.start) ? "–" : duration(endAt(tree, p, now) - span.start);
  const head = `${start.padStart(11)} ${length.padStart(11)}  ${indent}`;
  lines.push(`${head}${glyphOf(span.status)} ${span.name}  ${facts.filter(Boolean).join(" · ")}`);
  const texts = payloads.get(span.id);
  const margin = " ".repeat(head.length);
  if (texts) lines.push(`${margin}  input  ${textviewStored(texts.payload_text)}`);
  if (texts?.result_text) lines.push(`${margin}  result ${textviewStored(texts.result_text)}`);
}

/** A stored text; on one line with labels for sensitive values, if it holds any. */
function textviewStored(text) {
  const value = text.includes('"$sensitive"') ? parseJson(text) : undefined;
  return value === undefined ? text : prettyJson(value).replaceAll(/\n */g, " ");
}

function textviewGap(tree, { parent, from, to }) {
  const depth = parent === TREE_RUN ? 0 : tree.depth[parent] + 1;
  const times = [from - tree.from, to - from].map((ms) => duration(ms).padStart(11));
  return `${times.join(" ")}  ${"  ".repeat(Math.min(60, depth))}·· idle`;
}
