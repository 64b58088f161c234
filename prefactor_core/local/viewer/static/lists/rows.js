/**
 * Rows of the list of runs.
 */
import { h, replace } from "../elements/dom.js";
import {
  count, dateTime, duration, fullTime, money, msOf, shortId, zoneOffset,
} from "../values/format.js";
import { SILENT_AFTER, statusMark } from "../values/status.js";
import { now } from "../server/requests.js";

/** The columns: heading, class, and the content of a cell from a row of `/-/runs`. */
const RUN_COLUMNS = [
  { title: "Status", name: "state", show: rowStatus },
  { title: "Run", name: "run", show: rowName },
  { title: "Started", name: "started number", show: rowStarted },
  { title: "Duration", name: "duration number", show: rowDuration },
  { title: "Spans", name: "spans number", show: rowSpans },
  { title: "LLM", name: "llm number", show: (run) => rowNumber(run.llm_calls, count) },
  { title: "Tokens", name: "tokens number", show: (run) => rowNumber(run.tokens, count) },
  { title: "Cost", name: "cost number", show: (run) => rowNumber(run.cost, money) },
  { title: "Purpose", name: "purpose", show: (run) => run.purpose ?? "" },
];

/** Return the head of the table. The zone of its times stands in its column. */
export function runHead() {
  const zone = h("span", { class: "muted" }, ` ${zoneOffset(new Date())}`);
  const cells = RUN_COLUMNS.map(({ title, name }) =>
    h("th", { scope: "col", class: name }, title, title === "Started" ? zone : null),
  );
  return h("thead", null, h("tr", null, cells));
}

/** Return a table row for `run`, with the cells that `updateRunRow` changes in place. */
export function runRow(run) {
  const element = h("tr", { data: { id: run.id } });
  const row = { run, element, cells: [] };
  for (const { name, show } of RUN_COLUMNS) {
    const cell = h("td", { class: name }, show(run));
    row.cells.push(cell);
    element.append(cell);
  }
  return row;
}

/** Show newer values of a run. Cells that say the same stay, so that focus and selection do. */
export function updateRunRow(row, run) {
  row.run = run;
  RUN_COLUMNS.forEach((column, i) => rowShowCell(row.cells[i], column, run));
}

/** Show how long an active run lasts now. */
export function tickRunRow(row) {
  if (row.run.status !== "active") return;
  RUN_COLUMNS.forEach((column, i) => {
    const grows = column.show === rowDuration || column.show === rowName;
    if (grows) rowShowCell(row.cells[i], column, row.run);
  });
}

/** Return how long a run lasted, in milliseconds; up to now while it is active. */
function rowMs(run) {
  const end = run.finished_at ?? run.stopped_at;
  if (run.started_at === null) return NaN;
  if (end === null && run.status !== "active") return NaN;
  return (end === null ? now() : msOf(end)) - msOf(run.started_at);
}

/**
 * Return a badge if an active run was silent for five minutes, else null. Whether it failed, the
 * viewer cannot know, so it does not guess.
 */
function rowSilence(run) {
  if (run.status !== "active" || run.last_activity_at === null) return null;
  const silent = now() - msOf(run.last_activity_at);
  if (silent < SILENT_AFTER) return null;
  const minutes = Math.floor(silent / 60_000);
  const text = minutes < 120 ? `${minutes} min` : `${Math.floor(minutes / 60)} h`;
  const title = `The last news of this run came ${fullTime(run.last_activity_at)}`;
  return h("span", { class: "badge silent", title }, `silent for ${text}`);
}

function rowShowCell(cell, { name, show }, run) {
  const fresh = h("td", { class: name }, show(run));
  if (!fresh.isEqualNode(cell)) replace(cell, ...fresh.childNodes);
}

function rowStatus(run) {
  const title = run.termination_reason;
  return [
    statusMark(run.status),
    h("span", { class: "word", "aria-hidden": "true", title }, run.status),
  ];
}

function rowName(run) {
  const name = run.agent_name ?? shortId(run.agent_id);
  return h("div", { class: "run-name" },
    h("a", { href: `/runs/${run.id}` }, name),
    h("span", { class: "detail", title: run.id }, run.external_identifier ?? shortId(run.id)),
    rowSilence(run));
}

function rowStarted(run) {
  const time = run.started_at ?? run.inserted_at;
  const [day, clock] = dateTime(time).split(" ");
  const today = dateTime(new Date().toISOString()).startsWith(day);
  return h("time", { datetime: time, title: fullTime(time) }, [
    h("span", { class: today ? "day today" : "day" }, day), " ", clock,
  ]);
}

/** Zeros say nothing in a long list: they stay empty. */
function rowNumber(value, show) {
  return value ? show(value) : "";
}

function rowDuration(run) {
  const ms = rowMs(run);
  return Number.isNaN(ms) ? "" : duration(ms);
}

function rowSpans(run) {
  const { failed, total } = run.spans;
  return [
    failed > 0 && h("span", { class: "status-failed", title: `${failed} failed` }, `✕${failed}`),
    run.flagged > 0 && h("span", { class: "flagged", title: `${run.flagged} flagged` },
      `⚠${run.flagged}`),
    h("span", { class: total === 1 ? "total one" : "total" }, count(total)),
  ];
}
