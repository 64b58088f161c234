/**
 * The head of the run page: state, times, counts, and what can be done with the run.
 */
import { h, replace } from "../elements/dom.js";
import { menu } from "../elements/menu.js";
import {
  clock, count, counted, duration, fullTime, money, msOf, shortId,
} from "../values/format.js";
import { parseJson, prettyJson } from "../values/json_parse.js";
import { SILENT_AFTER, isOpen, statusMark } from "../values/status.js";
import { isExport } from "../server/exported.js";
import { get } from "../server/requests.js";
import { openTerminateDialog, terminationState } from "./terminate.js";

const headerFormats = [
  ["html", "One HTML file to send to a colleague"],
  ["json", "JSON, as the API answers"],
  ["otlp", "OpenTelemetry (OTLP/JSON)"],
];
const headerUsage = [
  ["calls", "calls"],
  ["prompt_tokens", "prompt"],
  ["completion_tokens", "completion"],
  ["cache_read_tokens", "cache read"],
  ["cache_write_tokens", "cache write"],
  ["reasoning_tokens", "reasoning"],
  ["total_tokens", "total"],
];

export class RunHeader {
  /** @param {{nextError: Function}} actions */
  constructor(model, context, actions) {
    this.model = model;
    this.context = context;
    this.title = h("h1", { class: "run-title" });
    this.badges = h("span", { class: "run-badges" });
    this.time = h("span", { class: "number" });
    this.facts = h("span", { class: "run-facts" });
    this.errors = h("button", {
      type: "button",
      class: "plain run-errors status-failed",
      title: "Go to the next failed step (e)",
      on: { click: () => actions.nextError() },
    });
    this.tokens = menu("Tokens and cost, by model", (panel) => this.fillUsage(panel));
    this.quality = menu("Quality of the run", (panel) => this.fillQuality(panel));
    this.stopped = h("span", { class: "run-stopped" });
    this.terminate = h(
      "button",
      { type: "button", class: "danger", title: "t", on: { click: () => this.openTerminate() } },
      "Terminate…",
    );
    const offered = isExport() ? null : this.exportMenu();
    this.element = h(
      "header",
      { class: "run-head" },
      h("div", { class: "run-who" }, this.title, this.badges),
      h(
        "div",
        { class: "run-numbers" },
        this.time,
        this.facts,
        this.errors,
        this.tokens.element,
        this.quality.element,
        this.stopped,
      ),
      h("div", { class: "run-actions" }, offered, this.terminate),
    );
  }

  /** Show the run as it is now. */
  draw() {
    const { run } = this.model;
    const { spans } = run;
    const id = run.external_identifier ?? shortId(run.id);
    const name = h("span", { class: "run-id mono", title: run.id }, id);
    replace(this.title, statusMark(run.status), " ", run.agent_name ?? "run", name);
    this.drawTime();
    const facts = [
      counted(spans.total, "span"),
      run.llm_calls > 0 && `${count(run.llm_calls)} LLM`,
      run.flagged > 0 &&
        h("span", { class: "flagged", title: "spans with flags" }, `⚠${count(run.flagged)}`),
      run.caused_by && headerCause(run.caused_by),
    ];
    replace(this.facts, facts.filter(Boolean).map((fact) => h("span", { class: "fact" }, fact)));
    this.errors.hidden = spans.failed === 0;
    const failed = h("span", { class: "offscreen" }, " failed spans");
    replace(this.errors, `✕${count(spans.failed)}`, failed);
    this.tokens.element.hidden = !(run.tokens > 0 || run.cost > 0);
    const cost = run.cost > 0 ? ` · ${money(run.cost)}` : "";
    replace(this.tokens.summary, `${count(run.tokens)} tok${cost} ▾`);
    const quality = run.quality ?? [];
    this.quality.element.hidden = quality.length === 0;
    replace(this.quality.summary, `quality ${quality.length} ▾`);
    this.terminate.hidden = !isOpen(run.status) || isExport() || this.context.about.read_only;
    this.drawStopped();
  }

  /** Show the time that has passed; called each second. */
  tick() {
    const { run } = this.model;
    if (document.hidden) return;
    if (isOpen(run.status)) this.drawTime();
    else if (run.status === "terminated" && !run.stopped_at) this.drawStopped();
  }

  /** Show when a terminated run was asked to stop, heard it, and stopped. */
  drawStopped() {
    const { run } = this.model;
    const reason = run.termination_reason && ` “${run.termination_reason}”`;
    replace(this.stopped, terminationState(run), reason);
  }

  /** Show how long the run takes or took, and whether it has gone silent. */
  drawTime() {
    const { run, tree } = this.model;
    const open = isOpen(run.status);
    const start = msOf(run.started_at ?? run.inserted_at);
    const silence = this.model.silence();
    const silent = silence > SILENT_AFTER;
    const reached = open && !silent ? this.model.clock() : tree.to;
    const end = run.finished_at ? msOf(run.finished_at) : reached;
    this.time.textContent = `${run.status} ${duration(Math.max(0, end - start))}`;
    this.time.title = `started ${fullTime(run.started_at ?? run.inserted_at)}`;
    const live = open && !silent && !isExport() && h("span", { class: "badge live" }, "live");
    const title = `The last write was at ${clock(run.last_activity_at)}`;
    const words = `silent for ${duration(silence)}`;
    const badge = this.model.deleted
      ? h("span", { class: "badge silent", title: "The server has deleted this run" }, "deleted")
      : silent ? h("span", { class: "badge silent", title }, words) : live;
    if ((badge.textContent ?? "") !== this.badges.textContent) replace(this.badges, badge);
  }

  /** Open the dialog that terminates the run, if that is offered. */
  openTerminate() {
    if (!this.terminate.hidden) openTerminateDialog(this.model.run);
  }

  exportMenu() {
    const { element, summary } = menu("Export the run", (panel) => {
      const path = `/-/runs/${encodeURIComponent(this.model.run.id)}/export?format=`;
      replace(
        panel,
        headerFormats.map(([format, text]) =>
          h("a", { class: "menu-item", href: path + format, download: true }, text),
        ),
      );
    });
    summary.className = "button";
    replace(summary, "Export ▾");
    return element;
  }

  async fillUsage(panel) {
    replace(panel, h("p", { class: "muted" }, "…"));
    try {
      const { models } = await get(`/-/runs/${encodeURIComponent(this.model.run.id)}/usage`);
      replace(panel, headerUsageTable(models), h("p", { class: "muted" }, headerUsageNote));
    } catch (failure) {
      replace(panel, h("p", null, failure.message));
    }
  }

  fillQuality(panel) {
    const entries = this.model.run.quality.map(({ name, payload_text: text, flags, summary }) => [
      h("h3", null, name),
      summary && h("p", null, summary),
      flags.map((flag) => h("p", { class: "flagged" }, `⚠ ${flag}`)),
      h("pre", { class: "menu-text", tabindex: "0" }, headerPretty(text)),
    ]);
    replace(panel, entries);
  }
}

/** Return the step that caused the run: a link, if it is in this file. */
function headerCause({ run_id: run, span_id: span, traceparent, is_stored: stored }) {
  const text = `caused by ${run === null ? traceparent : shortId(run)}`;
  if (!stored || isExport()) return h("span", { title: run ?? traceparent }, text);
  const place = span === null ? "" : `?span=${encodeURIComponent(span)}`;
  return h("a", { href: `/runs/${encodeURIComponent(run)}${place}`, title: run }, text);
}

const headerUsageNote =
  "Each call is counted once: an LLM call that holds another one does not count.";

function headerUsageTable(models) {
  const shown = headerUsage.filter(([field]) => models.some((model) => model[field] > 0));
  const cost = models.some((model) => model.cost > 0);
  const line = (model) => [
    h("th", { scope: "row" }, model.model ?? "unknown model"),
    shown.map(([field]) => h("td", null, count(model[field]))),
    cost && h("td", null, money(model.cost)),
  ];
  const head = ["model", ...shown.map(([, word]) => word), ...(cost ? ["cost"] : [])];
  return h(
    "table",
    { class: "usage" },
    h("thead", null, h("tr", null, head.map((word) => h("th", { scope: "col" }, word)))),
    h("tbody", null, models.map((model) => h("tr", null, line(model)))),
    models.length > 1 && h("tfoot", null, h("tr", null, line(headerTotal(models)))),
  );
}

function headerTotal(models) {
  const total = { model: "all", cost: 0 };
  for (const model of models) {
    total.cost += model.cost ?? 0;
    for (const [field] of headerUsage) total[field] = (total[field] ?? 0) + (model[field] ?? 0);
  }
  return total;
}

function headerPretty(text) {
  const value = parseJson(text);
  return value === undefined ? text : prettyJson(value);
}
