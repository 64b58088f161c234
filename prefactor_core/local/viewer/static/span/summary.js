/**
 * The tabs Summary and Raw of a span.
 */
import { copyButton, h } from "../elements/dom.js";
import { bytes, count, duration, fullTime, money, msOf } from "../values/format.js";
import { JsonNumber, JsonObject, parseJson } from "../values/json_parse.js";
import { jsonTree, longText } from "../values/json_view.js";
import { payloadFields } from "../values/payload.js";

/** Return the tab Summary: a failed step's error first, then facts, result and input. */
export function summaryTab(span, flags) {
  const result = span.result_text == null ? undefined : parseJson(span.result_text);
  const payload = span.payload_text == null ? undefined : parseJson(span.payload_text);
  const error = summaryError(result);
  const { view, shown } = summaryFacts(span, payload, result);
  const without = error === null ? shown : [...shown, "error"];
  return h("div", { class: "summary" },
    error === null ? null : summaryErrorView(error),
    span.summary && error === null ? h("p", { class: "summary-text" }, span.summary) : null,
    view,
    flags.filter(({ part }) => part === null).map(({ text }) =>
      h("p", { class: "flagged flag" }, `⚠ ${text}`)),
    summaryPart("Input", "payload", span.payload_text, span, flags, shown),
    summaryPart("Result", "result", span.result_text, span, flags, without),
    h("p", { class: "span-times muted" }, ...summaryTimes(span)));
}

/** Return the tab Raw: the stored texts exactly, the schemas, and the other stored facts. */
export function rawTab(span) {
  const facts = {
    id: span.id, agent_instance_id: span.agent_instance_id, parent_span_id: span.parent_span_id,
    schema_name: span.schema_name, status: span.status,
    started_at: span.started_at, finished_at: span.finished_at,
    inserted_at: span.inserted_at, updated_at: span.updated_at,
    sensitive_encoding: span.sensitive_encoding,
  };
  return h("div", { class: "raw" },
    rawText("payload", span.payload_text),
    rawText("result_payload", span.result_text),
    h("section", null, h("h3", null, "Span"), h("dl", { class: "facts mono" },
      Object.entries(facts).map(([name, value]) => summaryFact(name, value ?? "null")))),
    rawJson("data_risk", span.data_risk),
    rawJson("params_schema", span.params_schema),
    rawJson("result_schema", span.result_schema));
}

/** The error of a step: `result.error` with a type or message. */
function summaryError(result) {
  const error = result instanceof JsonObject ? result.get("error") : undefined;
  if (typeof error === "string" && error !== "") return { message: error };
  if (!(error instanceof JsonObject)) return null;
  const texts = ["type", "message", "stacktrace"].map((key) => error.get(key));
  const [type, message, stacktrace] = texts.map((text) =>
    typeof text === "string" ? text : undefined);
  return type === undefined && message === undefined ? null : { type, message, stacktrace };
}

function summaryErrorView({ type, message, stacktrace }) {
  return h("section", { class: "error", "aria-label": "Error" },
    h("div", { class: "error-head" },
      h("strong", { class: "status-failed" }, `✕ ${type ?? "Error"}`),
      copyButton(() => [type, message, stacktrace].filter(Boolean).join("\n"), "Copy the error")),
    message ? longText(message) : null,
    stacktrace
      ? h("details", null, h("summary", null, "Stack trace"), longText(stacktrace, "pre", "code"))
      : null);
}

/**
 * The facts of a step, and the names of the fields that they show: in the summary these fields
 * are not repeated. `inputs` and `ai` are copies that another dashboard reads.
 */
function summaryFacts(span, payload, result) {
  const [sent, got] = [summaryReader(payload), summaryReader(result)];
  const model = got("model") ?? sent("model");
  const usage = got("token_usage") ?? sent("token_usage");
  const [cost, finish, first] = [got("cost"), got("finish_reason"), got("time_to_first_token")];
  const isModel = typeof model === "string";
  const rows = [
    [isModel, ["model", "inputs"], "Model", () => model],
    [usage instanceof JsonObject, ["token_usage"], "Tokens", () => summaryTokens(usage)],
    [cost instanceof JsonNumber, ["cost"], "Cost", () => money(Number(cost.text))],
    [typeof finish === "string", ["finish_reason", "ai"], "Finish", () => finish],
    [first instanceof JsonNumber, ["time_to_first_token"], "First token",
      () => duration(Number(first.text) * 1000)],
  ].filter(([known]) => known);
  const facts = rows.map(([, , name, show]) => summaryFact(name, show()));
  const risk = summaryRisk(span.data_risk);
  if (risk !== null) facts.push(summaryFact("Risk", risk));
  return {
    view: facts.length === 0 ? null : h("dl", { class: "facts" }, facts),
    shown: rows.flatMap(([, fields]) => fields),
  };
}

function summaryReader(value) {
  return (key) => (value instanceof JsonObject ? value.get(key) : undefined);
}

/** A total opens into its parts: cached tokens are in the prompt's, reasoning in the answer's. */
function summaryTokens(usage) {
  const parts = ["prompt_tokens", "completion_tokens", "total_tokens", "cache_read_tokens",
    "cache_write_tokens", "reasoning_tokens"].map((key) => usage.get(key));
  const [prompt, completion, total, cacheRead, cacheWrite, reasoning] = parts.map((value) =>
    value instanceof JsonNumber ? Number(value.text) : null);
  const inside = (texts) => {
    const known = texts.filter(([n]) => n !== null).map(([n, word]) => `${count(n)} ${word}`);
    return known.length === 0 ? "" : ` (${known.join(", ")})`;
  };
  const all = total ?? (prompt === null && completion === null ? null : prompt + completion);
  const split = [
    prompt !== null && `${count(prompt)} in${inside([
      [cacheRead, "from cache"], [cacheWrite, "to cache"]])}`,
    completion !== null && `${count(completion)} out${inside([[reasoning, "reasoning"]])}`,
  ].filter(Boolean);
  return split.length === 0 ? count(all) : `${count(all)} = ${split.join(" + ")}`;
}

/** The actions and data that the type of span declares; "unknown" says nothing. */
function summaryRisk(risk) {
  if (risk === null || typeof risk !== "object") return null;
  const silent = new Set(["unknown", "excluded", "disallowed", "public", "", null]);
  const words = new Set();
  for (const group of Object.values(risk)) {
    if (group === null || typeof group !== "object") continue;
    for (const [name, value] of Object.entries(group)) {
      if (typeof value !== "string" || silent.has(value)) continue;
      words.add(name === "classification" ? value : name.replaceAll("_", " "));
    }
  }
  if (words.size === 0) return null;
  return [...words].map((word) => h("span", { class: "badge" }, word));
}

function summaryFact(name, value) {
  return h("div", null, h("dt", null, name), h("dd", null, value));
}

function summaryPart(title, part, text, { schema_name: name }, flags, without) {
  if (text === null || text === undefined) return null;
  const fields = payloadFields(text, { part, name, flags, without });
  if (without.length > 0 && fields.childNodes.length === 0) return null;
  return h("section", { class: "part" }, h("h3", null, title), fields);
}

function summaryTimes({ started_at: start, finished_at: end }) {
  const texts = [];
  if (start !== null) texts.push(h("div", null, `started ${fullTime(start)}`));
  if (end !== null) texts.push(h("div", null, `ended ${fullTime(end)}`));
  if (start !== null && end !== null) {
    texts.push(h("div", null, `lasted ${duration(msOf(end) - msOf(start))}`));
  }
  return texts;
}

function rawText(title, text) {
  if (text === null || text === undefined) return null;
  const size = new Blob([text]).size;
  return h("section", null,
    h("div", { class: "field-head" }, h("h3", null, title),
      h("span", { class: "muted" }, bytes(size)),
      copyButton(() => text, `Copy ${title} as stored`)),
    rawHidden(text));
}

/** A text with values that are marked as sensitive is shown only after a click. */
function rawHidden(text) {
  const sensitive = text.split('"$sensitive"').length - 1;
  if (sensitive === 0) return longText(text, "pre", "code");
  const values = sensitive === 1 ? "a sensitive value" : `${sensitive} sensitive values`;
  const button = h("button", { type: "button" }, `Holds ${values}: show`);
  button.addEventListener("click", () => button.replaceWith(longText(text, "pre", "code")));
  return button;
}

function rawJson(title, value) {
  if (value === null || value === undefined) return null;
  const text = JSON.stringify(value);
  return h("section", null, h("h3", null, title), jsonTree(parseJson(text), text));
}
