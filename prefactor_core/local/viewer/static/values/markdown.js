/**
 * A small Markdown parser that builds elements: no HTML, no images, links to http(s) only.
 *
 * Headings, paragraphs, lists, quotes, fenced code, tables, rules; code, strong, emphasis, strike
 * and links inside them.
 */
import { h } from "../elements/dom.js";

const MARKDOWN_MAX_DEPTH = 12;
const MARKDOWN_MAX_COLUMNS = 50;

/** The longest text, in characters, that is shown as Markdown. */
export const MARKDOWN_MAX = 150_000;

/** Return the elements of a Markdown text of at most {@link MARKDOWN_MAX} characters. */
export function markdown(text) {
  const lines = text.replaceAll("\r\n", "\n").split("\n");
  return h("div", { class: "markdown" }, markdownBlocks(lines, 0));
}

const MARKDOWN_BLOCKS = [
  [/^ {0,3}(```+|~~~+)/, markdownFence],
  [/^ {0,3}#{1,6}(?:\s|$)/, markdownHeading],
  [/^ {0,3}(?:(?:-\s*){3,}|(?:\*\s*){3,}|(?:_\s*){3,})$/, markdownRule],
  [/^ {0,3}>/, markdownQuote],
  [/^ {0,3}(?:[-*+]|\d{1,9}[.)])(?:\s|$)/, markdownList],
  [/^\s*\|.*\|\s*$/, markdownTable],
];

/** Each reader of a block takes its lines off the front of `lines`. */
function markdownBlocks(source, depth) {
  const lines = source.slice().reverse(); // Taken from the end, which is cheap.
  const nodes = [];
  while (lines.length > 0) {
    if (lines.at(-1).trim() === "") {
      lines.pop();
      continue;
    }
    nodes.push(markdownBlockReader(lines, depth)(lines, depth));
  }
  return nodes;
}

function markdownBlockReader(lines, depth) {
  if (depth >= MARKDOWN_MAX_DEPTH) return markdownParagraph;
  const line = lines.at(-1);
  const found = MARKDOWN_BLOCKS.find(([pattern]) => pattern.test(line));
  if (found === undefined) return markdownParagraph;
  if (found[1] === markdownTable && !markdownIsTable(lines)) return markdownParagraph;
  return found[1];
}

function markdownFence(lines) {
  const [, fence, language] = /^ {0,3}(`{3,}|~{3,})\s*(\S*)/.exec(lines.pop());
  const code = [];
  while (lines.length > 0) {
    const line = lines.pop();
    if (line.trim().startsWith(fence) && line.trim().replaceAll(fence[0], "") === "") break;
    code.push(line);
  }
  return h("pre", { class: "code", data: { language } }, h("code", null, code.join("\n")));
}

function markdownHeading(lines) {
  const [, marks, text] = /^ {0,3}(#{1,6})\s*(.*)$/.exec(lines.pop());
  const level = Math.min(6, marks.length + 2); // Below the headings of the page.
  return h(`h${level}`, { class: `level-${marks.length}` },
    markdownInline(text.replace(/\s#+\s*$/, "")));
}

function markdownRule(lines) {
  lines.pop();
  return h("hr");
}

function markdownQuote(lines, depth) {
  const inner = [];
  while (lines.length > 0 && /^ {0,3}>/.test(lines.at(-1))) {
    inner.push(lines.pop().replace(/^ {0,3}> ?/, ""));
  }
  return h("blockquote", null, markdownBlocks(inner, depth + 1));
}

function markdownList(lines, depth) {
  const first = markdownMarker(lines.at(-1));
  const items = [];
  while (lines.length > 0) {
    const marker = markdownMarker(lines.at(-1));
    if (marker === null || marker.ordered !== first.ordered) break;
    items.push(h("li", null, markdownItem(lines, marker, depth)));
  }
  const start = first.ordered && first.number !== 1 ? first.number : null;
  return h(first.ordered ? "ol" : "ul", { start }, items);
}

function markdownMarker(line) {
  const found = /^( {0,3})([-*+]|(\d{1,9})[.)])(\s+|$)/.exec(line);
  if (found === null) return null;
  const ordered = found[3] !== undefined;
  return { ordered, number: Number(found[3]), width: found[1].length + found[2].length + 1 };
}

/** An item holds the lines that are indented by its marker, and blank lines between them. */
function markdownItem(lines, { width }, depth) {
  const inner = [lines.pop().slice(width)];
  while (lines.length > 0) {
    const line = lines.at(-1);
    const indent = /^\s*/.exec(line)[0].length;
    const blank = line.trim() === "";
    if (blank && !/^\s{2,}\S/.test(lines.at(-2) ?? "")) break;
    if (!blank && indent < 2) break;
    inner.push(lines.pop().slice(Math.min(indent, width)));
  }
  const isBlank = () => lines.at(-1).trim() === "";
  while (lines.length > 1 && isBlank() && markdownMarker(lines.at(-2))) lines.pop();
  const blocks = markdownBlocks(inner, depth + 1);
  const plain = blocks.length > 0 && blocks[0].tagName === "P";
  return plain ? [...blocks[0].childNodes, ...blocks.slice(1)] : blocks;
}

function markdownIsTable(lines) {
  const below = lines.at(-2) ?? "";
  if (markdownCells(lines.at(-1)).length > MARKDOWN_MAX_COLUMNS) return false;
  return below.includes("-") && below.includes("|") && /^[\s|:-]+$/.test(below);
}

function markdownTable(lines) {
  const head = markdownCells(lines.pop());
  const sides = markdownCells(lines.pop()).map((cell) =>
    cell.endsWith(":") ? (cell.startsWith(":") ? "center" : "right") : "left",
  );
  const row = (cells, tag) =>
    h("tr", null, head.map((_, i) =>
      h(tag, { style: { "text-align": sides[i] ?? "left" } }, markdownInline(cells[i] ?? ""))));
  const rows = [];
  while (lines.length > 0 && /^\s*\|/.test(lines.at(-1))) {
    rows.push(row(markdownCells(lines.pop()), "td"));
  }
  return h("div", { class: "table", tabindex: "0" },
    h("table", null, h("thead", null, row(head, "th")), h("tbody", null, rows)));
}

function markdownCells(line) {
  const inner = line.trim().replace(/^\|/, "").replace(/\|$/, "");
  return inner.split("|").map((cell) => cell.trim());
}

function markdownParagraph(lines, depth) {
  const text = [lines.pop()];
  while (lines.length > 0 && lines.at(-1).trim() !== "") {
    if (markdownBlockReader(lines, depth) !== markdownParagraph) break;
    text.push(lines.pop());
  }
  return h("p", null, markdownInline(text.join("\n")));
}

/** Every pattern reads at most one line or 1,000 characters on, so that any text takes short. */
const MARKDOWN_INLINE = new RegExp(
  [
    "\\\\(?<escaped>[!-/:-@[-`{-~])",
    "(?<ticks>`{1,3})(?<code>[^`\\n]{1,1000})\\k<ticks>",
    "\\*\\*(?<strong>[^\\s*][^*\\n]{0,1000})\\*\\*",
    "\\*(?<em>[^\\s*][^*\\n]{0,1000})\\*",
    "(?<![\\w])_(?<em2>[^\\s_][^_\\n]{0,1000})_(?![\\w])",
    "~~(?<strike>[^~\\n]{1,1000})~~",
    "!?\\[(?<label>[^[\\]\\n]{0,500})\\]" +
      "\\((?<target>[^()\\s]{1,1000}(?:\\([^()\\s]{0,200}\\)[^()\\s]{0,200})?)\\)",
    "(?<bare>https?://[^\\s<>\"'`)\\]]{1,1000})",
  ].join("|"),
  "g",
);

function markdownInline(text, depth = 0) {
  if (depth > 4) return [text];
  const nodes = [];
  let at = 0;
  for (const found of text.matchAll(MARKDOWN_INLINE)) {
    if (found.index > at) nodes.push(text.slice(at, found.index));
    nodes.push(markdownSpan(found, depth + 1));
    at = found.index + found[0].length;
  }
  nodes.push(text.slice(at));
  return nodes;
}

function markdownSpan({ 0: whole, groups }, depth) {
  const { escaped, code, strong, em, em2, strike, label, target, bare } = groups;
  if (escaped !== undefined) return escaped;
  if (code !== undefined) return h("code", null, code);
  if (strong !== undefined) return h("strong", null, markdownInline(strong, depth));
  if (em !== undefined || em2 !== undefined) return h("em", null, markdownInline(em ?? em2, depth));
  if (strike !== undefined) return h("s", null, markdownInline(strike, depth));
  if (bare !== undefined) return markdownLink(bare, [bare]);
  if (!/^https?:\/\//i.test(target)) return whole;
  return markdownLink(target, label === "" ? [target] : markdownInline(label, depth));
}

function markdownLink(href, content) {
  return h("a", { href, rel: "noreferrer noopener", target: "_blank", title: href }, content);
}
