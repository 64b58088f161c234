/**
 * The fields of a payload or result. Each is shown as text, Markdown or JSON; the choice is
 * remembered for this field of this type of span.
 */
import { copyButton, h, replace } from "../elements/dom.js";
import { remember, remembered } from "../elements/storage.js";
import {
  JsonList, JsonObject, isSensitive, parseHeldJson, parseJson, prettyJson, scalarText,
} from "./json_parse.js";
import { firstItems, jsonScalar, jsonTree, longText, sensitiveValue } from "./json_view.js";
import { conversation, isConversation, isToolCalls, prose, toolCalls } from "./messages.js";

const PAYLOAD_SHORT = 70;

/**
 * Return the fields of a stored JSON text.
 *
 * `part` is "payload" or "result", as in the paths of flags; `name` is the schema name, under
 * which choices are remembered; `flags` are those of {@link parseFlag}; `without` names fields
 * that are shown elsewhere.
 */
export function payloadFields(text, { part, name, flags = [], without = [] }) {
  const value = parseJson(text);
  if (value === undefined) {
    return h("div", { class: "fields" },
      h("p", { class: "muted" }, "This is no JSON. It is shown as it is stored."), longText(text));
  }
  if (!(value instanceof JsonObject) || isSensitive(value)) {
    return h("div", { class: "fields" }, payloadField("", value, { text, part, name, flags }));
  }
  const entries = value.entries.filter(([key]) => !without.includes(key));
  const whole = payloadFlags(flags.filter((flag) => flag.part === part && flag.field === null));
  const missing = payloadMissing(value, part, flags);
  const about = { text, part, name, flags };
  return h("div", { class: "fields" }, whole, missing,
    firstItems(entries, ([key, field]) => payloadField(key, field, about)),
    value.entries.length === 0 ? h("p", { class: "muted" }, "Empty: {}") : null);
}

/**
 * Return a flag in parts: `payload.messages[0].role: 1 is not of type 'string'` is about the field
 * "messages" of the payload, at the path ".messages[0].role". Other flags have no part.
 */
export function parseFlag(text) {
  const found = /^(payload|result)((?:\.[^.:[\]]+|\[\d+\])*): ([^]*)$/.exec(text);
  if (found === null) return { text, part: null, field: null, path: "", message: text };
  const [, part, path, message] = found;
  return { text, part, field: /^\.([^.[]+)/.exec(path)?.[1] ?? null, path, message };
}

function payloadFlags(flags, isWhole = true) {
  return flags.map(({ path, message }) =>
    h("p", { class: "flagged flag" }, `⚠ ${isWhole || path === "" ? "" : `${path.slice(1)}: `}`,
      message));
}

/** Flags of fields that the payload lacks, such as required ones, stand above the others. */
function payloadMissing(value, part, flags) {
  const keys = new Set(value.entries.map(([key]) => key));
  const missing = flags.filter(
    (flag) => flag.part === part && flag.field !== null && !keys.has(flag.field),
  );
  return payloadFlags(missing, false);
}

/** A short value stands beside its name; any other stands below it, with its modes. */
function payloadField(key, value, about) {
  const flags = about.flags.filter((flag) => flag.part === about.part && flag.field === key);
  const data = { field: key };
  const label = h("span", { class: "field-name" }, key === "" ? about.part : key);
  const notes = payloadFlags(flags, false);
  const short = payloadShort(value);
  if (short !== null) {
    const copy = copyButton(() => payloadStored(value, about.text), `Copy ${key}`);
    return h("div", { class: "field short", data },
      label, h("span", { class: "field-value" }, short, copy), notes);
  }
  return h("section", { class: "field", data, "aria-label": key }, payloadLong(key, value, about,
    label, notes));
}

function payloadShort(value) {
  if (isSensitive(value)) return sensitiveValue(value);
  if (typeof value === "string") {
    const fits = value.length <= PAYLOAD_SHORT && !value.includes("\n");
    if (!fits || parseHeldJson(value) !== undefined) return null;
    return h("span", { class: value === "" ? "muted" : null }, value === "" ? '""' : value);
  }
  if (value instanceof JsonList) return value.items.length === 0 ? "[]" : null;
  if (value instanceof JsonObject) return value.entries.length === 0 ? "{}" : null;
  return jsonScalar(value);
}

function payloadLong(key, value, about, label, notes) {
  const modes = payloadModes(value);
  const names = Object.keys(modes);
  const store = `prefactor-field:${about.name}:${about.part}.${key}`;
  const body = h("div", { class: "field-body" });
  const buttons = names.map((mode) =>
    h("button", { type: "button", on: { click: () => choose(mode) } }, mode));
  const show = (mode) => {
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(names[i] === mode)));
    replace(body, modes[mode]({ ...about, key }));
  };
  const choose = (mode) => {
    show(mode);
    remember(store, mode);
  };
  const last = remembered(store);
  show(names.includes(last) ? last : payloadFirstMode(value, names));
  return [
    h("div", { class: "field-head" }, label,
      h("span", { class: "modes", role: "group", "aria-label": `Show ${key} as` }, buttons),
      copyButton(() => payloadStored(value, about.text), `Copy ${key} as stored`)),
    notes,
    body,
  ];
}

function payloadModes(value) {
  if (typeof value === "string") {
    const held = parseHeldJson(value);
    const modes = { Text: () => prose(value, false), Markdown: () => prose(value, true) };
    return held === undefined ? modes : { ...modes, JSON: () => jsonTree(held, value) };
  }
  const tree = (about) => jsonTree(value, about.text, payloadFlagsAt(about));
  if (isConversation(value)) {
    return {
      Text: ({ text }) => conversation(value, text, false),
      Markdown: ({ text }) => conversation(value, text, true),
      JSON: tree,
    };
  }
  if (isToolCalls(value)) {
    return { Calls: ({ text }) => toolCalls(value, text), JSON: tree };
  }
  return { Text: () => longText(prettyJson(value)), JSON: tree };
}

/** Return the flags inside a field by path: paths of flags begin at the payload. */
function payloadFlagsAt({ key, flags, part }) {
  const start = key === "" ? "" : `.${key}`;
  const inside = flags.filter((flag) => flag.part === part && flag.path !== start);
  if (inside.length === 0) return undefined;
  return (path) =>
    inside.filter((flag) => flag.path === start + path).map(({ message }) => message);
}

function payloadFirstMode(value, names) {
  if (names[0] === "Calls" || isConversation(value)) return names[0];
  return names.includes("JSON") ? "JSON" : "Text";
}

/** Return a string itself, and of any other value the text that is stored. */
function payloadStored(value, text) {
  if (typeof value === "string") return value;
  if (value instanceof JsonList || value instanceof JsonObject) {
    return text.slice(value.start, value.end);
  }
  return scalarText(value);
}
