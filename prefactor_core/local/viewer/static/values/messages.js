/**
 * Messages of a chat as a conversation, and the calls of tools in them.
 */
import { h } from "../elements/dom.js";
import { JsonList, JsonObject, isSensitive, parseHeldJson } from "./json_parse.js";
import { firstItems, jsonTree, longText, sensitiveValue } from "./json_view.js";
import { MARKDOWN_MAX, markdown } from "./markdown.js";

/** Return whether `value` is a list of messages: objects with a role. */
export function isConversation(value) {
  return (
    value instanceof JsonList && value.items.length > 0 && value.items.every(messageHasRole)
  );
}

/** Return whether `value` is a list of calls of tools, as models answer them. */
export function isToolCalls(value) {
  return (
    value instanceof JsonList && value.items.length > 0 &&
    value.items.every((item) => messageCall(item) !== null)
  );
}

/**
 * Return the messages of a conversation. `source` is the JSON text they were read from; texts in
 * them are shown as Markdown if `asMarkdown`.
 */
export function conversation(list, source, asMarkdown) {
  const show = { source, asMarkdown };
  return h("ol", { class: "messages" },
    firstItems(list.items, (message) => messageItem(message, show)));
}

/** Return a list of calls of tools: the name of the tool, and its arguments as a tree. */
export function toolCalls(list, source) {
  return h("ul", { class: "calls" },
    firstItems(list.items, (item) => h("li", null, messageCallView(item, { source }))));
}

/** Return a text in the chosen mode. Markdown is shown up to a size; longer texts stay text. */
export function prose(text, asMarkdown) {
  if (!asMarkdown) return longText(text);
  if (text.length <= MARKDOWN_MAX) return markdown(text);
  return h("div", null,
    h("p", { class: "muted" }, "This text is too long to be shown as Markdown."), longText(text));
}

function messageHasRole(message) {
  if (!(message instanceof JsonObject)) return false;
  const role = messageRole(message);
  return typeof role === "string" && MESSAGE_BODIES.some((key) => message.get(key) !== undefined);
}

const MESSAGE_BODIES = ["content", "parts", "text", "tool_calls", "function_call"];
const MESSAGE_TYPES = ["human", "ai", "system", "tool", "function", "user", "assistant"];

/** The role, under the names that frameworks give it. */
function messageRole(message) {
  const type = message.get("type");
  return message.get("role") ?? (MESSAGE_TYPES.includes(type) ? type : undefined);
}

function messageItem(message, show) {
  const role = messageRole(message);
  const known = new Set(["role", ...MESSAGE_BODIES]);
  if (message.get("role") === undefined) known.add("type");
  const rest = message.entries.filter(([key, value]) => !known.has(key) && value !== null);
  const calls = message.get("tool_calls");
  return h("li", { class: `message role-${role.replace(/[^a-z]/gi, "").toLowerCase()}` },
    h("div", { class: "role" }, role, rest.map(([key, value]) => messageDetail(key, value))),
    h("div", { class: "content" },
      MESSAGE_BODIES.slice(0, 3).map((key) => messageContent(message.get(key), show)),
      calls instanceof JsonList ? toolCalls(calls, show.source) : null,
      messageContent(message.get("function_call"), show)));
}

function messageDetail(key, value) {
  if (typeof value !== "string" || value.length > 60) return null;
  return h("span", { class: "muted detail" }, ` ${key} ${value}`);
}

function messageContent(content, show) {
  if (content === null || content === undefined || content === "") return null;
  if (typeof content === "string") {
    const held = parseHeldJson(content);
    return held === undefined ? prose(content, show.asMarkdown) : jsonTree(held, content);
  }
  if (isSensitive(content)) return sensitiveValue(content);
  if (content instanceof JsonList) return content.items.map((part) => messagePart(part, show));
  return messagePart(content, show);
}

function messagePart(part, show) {
  if (typeof part === "string" || isSensitive(part)) return messageContent(part, show);
  if (!(part instanceof JsonObject)) return jsonTree(part, show.source);
  if (messageCall(part) !== null) return messageCallView(part, show);
  const kind = part.get("type");
  const text = part.get("text") ?? part.get("content");
  const plain = kind === undefined || ["text", "input_text", "output_text"].includes(kind);
  if (plain && typeof text === "string") return messageContent(text, show);
  if (kind === "thinking" || kind === "reasoning") {
    const thought = part.get("thinking") ?? part.get("text");
    if (typeof thought === "string") return messageNamed(kind, messageContent(thought, show));
  }
  if (kind === "tool_result") return messageNamed("tool result", messageContent(text, show));
  return messageNamed(String(kind ?? "part"), jsonTree(part, show.source));
}

function messageNamed(name, content) {
  return h("div", null, h("div", { class: "muted" }, name), content);
}

/** Return `{name, input}` of a call of a tool, in the forms that model APIs have, else null. */
function messageCall(item) {
  if (!(item instanceof JsonObject)) return null;
  const inner = item.get("function");
  const call = inner instanceof JsonObject ? inner : item;
  const name = call.get("name") ?? (call === item ? item.get("tool") : undefined);
  const keys = ["arguments", "args", "input"];
  const input = keys.map((key) => call.get(key)).find((value) => value !== undefined);
  return typeof name === "string" && input !== undefined ? { name, input } : null;
}

function messageCallView(item, show) {
  const call = messageCall(item);
  if (call === null) return jsonTree(item, show.source);
  const id = item.get("id");
  const held = typeof call.input === "string" ? parseHeldJson(call.input) : undefined;
  const tree = held === undefined ? jsonTree(call.input, show.source) : jsonTree(held, call.input);
  return h("div", { class: "call" },
    h("div", null, h("span", { class: "call-name" }, `→ ${call.name}`),
      typeof id === "string" ? h("span", { class: "muted detail" }, ` ${id}`) : null),
    tree);
}
