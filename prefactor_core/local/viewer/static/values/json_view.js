/**
 * JSON as a tree on nested <details>: the children of a part are built when it is opened.
 */
import { copyButton, h } from "../elements/dom.js";
import { bytes, count } from "./format.js";
import {
  JsonList, JsonNumber, JsonObject, isSensitive, parseHeldJson, scalarText, sensitiveLabels,
} from "./json_parse.js";

const JSON_SHOWN_ITEMS = 100;
const JSON_SHOWN_TEXT = 10_000;
const JSON_PREVIEW = 80;

/**
 * Return the tree of a parsed value. `source` is the text that the value's places point into;
 * `flags(path)` returns the flags at a path such as ".arguments[0]".
 */
export function jsonTree(value, source, flags = () => []) {
  const small = source.length < 3000;
  const build = { source, flags, open: (depth) => depth < (small ? 6 : 1) };
  return h("div", { class: "json" }, jsonRoot(value, build, 0));
}

/**
 * Return text that is cut, if it is very long, with a button that says how long and shows all.
 */
export function longText(text, tag = "pre", className = "text") {
  const element = h(tag, { class: className });
  if (text.length <= JSON_SHOWN_TEXT * 1.2) {
    element.textContent = text;
    return element;
  }
  const size = new Blob([text]).size;
  const rest = h("button", { type: "button", class: "more" }, `show all ${bytes(size)}`);
  rest.addEventListener("click", () => (element.textContent = text));
  element.append(`${text.slice(0, JSON_SHOWN_TEXT)}…\n`, rest);
  return element;
}

/**
 * Return the elements that `build(item)` makes of the first items, and a button that says how many
 * are left and shows as many again.
 */
export function firstItems(items, build, from = 0) {
  const upTo = from + JSON_SHOWN_ITEMS;
  const elements = items.slice(from, upTo).map(build);
  if (items.length <= upTo) return elements;
  const left = count(items.length - upTo);
  const more = h("button", { type: "button", class: "more" }, `show more: ${left} are left`);
  more.addEventListener("click", () => more.replaceWith(...firstItems(items, build, upTo)));
  return [...elements, more];
}

/** Return a button with the labels of a sensitive value; a click shows and hides the value. */
export function sensitiveValue(value) {
  const label = `•••• ${sensitiveLabels(value)}`;
  const secret = scalarText(value.get("value"));
  const button = h("button", { type: "button", class: "sensitive", aria: { pressed: "false" } });
  const show = (shown) => {
    button.textContent = shown ? secret : label;
    button.title = shown ? `${label}: hide` : "Sensitive: show";
    button.setAttribute("aria-pressed", String(shown));
  };
  button.addEventListener("click", (event) => {
    event.preventDefault();
    show(button.getAttribute("aria-pressed") === "false");
  });
  show(false);
  return button;
}

/** Return a string, number, boolean or null in its colour. */
export function jsonScalar(value) {
  if (typeof value === "string") {
    const lines = value.includes("\n") || value.length > 100;
    return longText(value, lines ? "pre" : "span", lines ? "json-string lines" : "json-string");
  }
  const kind = value instanceof JsonNumber ? "json-number" : "json-word";
  return h("span", { class: kind }, scalarText(value));
}

/** Return the beginning of a value on one line. */
function jsonPreview(value) {
  const parts = [];
  jsonPreviewInto(value, parts, 0);
  const text = parts.join("");
  return text.length > JSON_PREVIEW ? `${text.slice(0, JSON_PREVIEW - 1)}…` : text;
}

/** The outermost list or object needs no row of its own: only its children are shown. */
function jsonRoot(value, build, depth) {
  const branch = value instanceof JsonObject || value instanceof JsonList;
  const list = branch && !isSensitive(value) ? jsonEntries(value) : [];
  if (list.length === 0) return [jsonPart(null, value, build, "", depth)];
  return jsonChildren(list, value, build, "", depth);
}

function jsonEntries(value) {
  return value instanceof JsonList ? [...value.items.entries()] : value.entries;
}

function jsonPart(key, value, build, path, depth) {
  if (isSensitive(value)) return jsonRow(key, sensitiveValue(value), build, path);
  if (value instanceof JsonObject || value instanceof JsonList) {
    return jsonBranch(key, value, build, path, depth);
  }
  const held = typeof value === "string" ? parseHeldJson(value) : undefined;
  if (held !== undefined) return jsonHeld(key, value, held, depth);
  return jsonRow(key, jsonScalar(value), build, path);
}

function jsonRow(key, content, build, path) {
  return h("div", { class: "json-row" }, jsonKey(key), content, jsonFlags(build.flags(path)));
}

function jsonKey(key) {
  if (key === null) return null;
  const index = typeof key === "number";
  return [h("span", { class: index ? "json-index" : "json-key" }, String(key)), ": "];
}

function jsonBranch(key, value, build, path, depth) {
  const list = jsonEntries(value);
  if (list.length === 0) {
    return jsonRow(key, h("span", { class: "muted" }, jsonPreview(value)), build, path);
  }
  const what = value instanceof JsonList ? `[${count(list.length)}]` : `{${count(list.length)}}`;
  const summary = h("summary", null,
    jsonKey(key), h("span", { class: "muted" }, what, " "),
    h("span", { class: "json-preview" }, jsonPreview(value)),
    jsonFlags(build.flags(path)));
  const details = jsonLazy(summary, build.open(depth), () =>
    jsonChildren(list, value, build, path, depth + 1));
  const stored = () => build.source.slice(value.start, value.end);
  return jsonCopied(details, stored, `Copy ${key ?? "this"} as stored`);
}

/** A string that holds JSON is shown as the tree it holds, and named as a string. */
function jsonHeld(key, text, held, depth) {
  const inside = { source: text, flags: () => [], open: (level) => level <= depth + 1 };
  const summary = h("summary", null,
    jsonKey(key), h("span", { class: "muted" }, "JSON in a string "),
    h("span", { class: "json-preview" }, jsonPreview(held)));
  const details = jsonLazy(summary, true, () => jsonRoot(held, inside, depth + 1));
  return jsonCopied(details, () => text, `Copy ${key ?? "this"} as stored`);
}

/** The button stands beside the part: a summary is itself a button, and holds no other. */
function jsonCopied(details, read, label) {
  return h("div", { class: "json-branch" }, details, copyButton(read, label));
}

function jsonLazy(summary, open, build) {
  const details = h("details", null, summary);
  const fill = () => {
    if (details.childNodes.length > 1) return;
    details.append(h("div", { class: "json-children" }, build()));
  };
  if (open) {
    details.open = true;
    fill();
  } else {
    details.addEventListener("toggle", fill, { once: true });
  }
  return details;
}

function jsonChildren(list, value, build, path, depth) {
  return firstItems(list, ([key, item]) => {
    const step = value instanceof JsonList ? `[${key}]` : `.${key}`;
    return jsonPart(key, item, build, path + step, depth);
  });
}

function jsonFlags(flags) {
  return flags.map((flag) => h("span", { class: "flagged json-flag" }, `⚠ ${flag}`));
}

function jsonPreviewInto(value, parts, length) {
  if (length > JSON_PREVIEW) return length;
  const add = (text) => {
    parts.push(text);
    length += text.length;
  };
  if (isSensitive(value)) add(`[${sensitiveLabels(value)}]`);
  else if (value instanceof JsonList) {
    add("[");
    value.items.slice(0, JSON_PREVIEW).forEach((item, i) => {
      if (i > 0) add(", ");
      length = jsonPreviewInto(item, parts, length);
    });
    add("]");
  } else if (value instanceof JsonObject) {
    add("{");
    value.entries.slice(0, JSON_PREVIEW).forEach(([key, item], i) => {
      add(i > 0 ? `, ${key.slice(0, JSON_PREVIEW)}: ` : `${key.slice(0, JSON_PREVIEW)}: `);
      length = jsonPreviewInto(item, parts, length);
    });
    add("}");
  } else if (typeof value === "string") {
    add(JSON.stringify(value.slice(0, JSON_PREVIEW)));
  } else add(scalarText(value));
  return length;
}
