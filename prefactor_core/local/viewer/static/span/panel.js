/**
 * The panel of one span: its path, and the tabs Summary, Input, Result, Flags and Raw.
 */
import { announce, copyButton, h, replace } from "../elements/dom.js";
import { duration, kindOf, msOf, shortName } from "../values/format.js";
import { parseFlag, payloadFields } from "../values/payload.js";
import { statusMark } from "../values/status.js";
import { isExport } from "../server/exported.js";
import { get, now } from "../server/requests.js";
import { rawTab, summaryTab } from "./summary.js";

const SPAN_TABS = ["summary", "input", "result", "flags", "raw"];

/**
 * Show the span `spanId` in `container`. `tab` is the tab to open; `onTab(tab)` hears of another,
 * `onSelect(spanId)` of a step on its path that the reader chose.
 *
 * @returns {{close: () => void, refresh: () => Promise<void>}} `refresh` reads the span again
 */
export function showSpan(container, spanId, options = {}) {
  const panel = new SpanPanel(container, spanId, options);
  panel.refresh();
  return { close: () => panel.close(), refresh: () => panel.refresh() };
}

class SpanPanel {
  constructor(container, spanId, { tab, onTab, onSelect }) {
    this.id = spanId;
    this.onTab = onTab;
    this.onSelect = onSelect;
    this.tab = SPAN_TABS.includes(tab) ? tab : "summary";
    this.head = h("header", { class: "span-head" });
    this.tabs = h("div", { class: "tabs", role: "tablist", "aria-label": "Parts of the span" });
    this.tabs.addEventListener("keydown", (event) => this.keyed(event));
    this.body = h("div", {
      class: "span-body", role: "tabpanel", id: "span-body", tabindex: "0",
      "aria-labelledby": `span-tab-${this.tab}`,
    });
    this.element = h("section", { class: "span-panel", "aria-label": "Span" },
      this.head, this.tabs, this.body);
    this.ticker = setInterval(() => this.tick(), 500);
    replace(container, this.element);
  }

  close() {
    this.closed = true;
    clearInterval(this.ticker);
    this.reading?.abort();
    this.element.remove();
  }

  /** Read the span again; a part that is shown and did not change stays as it is. */
  async refresh() {
    this.reading?.abort();
    const reading = new AbortController();
    this.reading = reading;
    try {
      const path = `/-/spans/${encodeURIComponent(this.id)}`;
      const { span } = await get(path, { signal: reading.signal });
      if (!this.closed && this.reading === reading) this.show(span);
    } catch (failure) {
      if (failure.name === "AbortError" || this.closed) return;
      if (this.span === undefined) this.showFailure(failure);
    }
  }

  show(span) {
    this.span = span;
    this.flags = (span.flags ?? []).map(parseFlag);
    this.showHead();
    this.showTabs();
    const { payload_text: payload, result_text: result, flags } = span;
    const seen = { input: [payload, flags], result: [result, span.status, flags], flags: [flags] };
    const shown = JSON.stringify([this.tab, seen[this.tab] ?? span]);
    if (shown === this.shown) return;
    this.shown = shown;
    const { scrollTop } = this.body;
    this.showBody();
    this.body.scrollTop = scrollTop;
  }

  showFailure(failure) {
    const text = failure.status === 404 ? "There is no such span in this run." : failure.message;
    replace(this.head);
    replace(this.tabs);
    replace(this.body, h("p", { class: "problem", role: "alert" }, text));
  }

  showHead() {
    const { span } = this;
    this.length = h("span", { class: "span-length number" });
    const { schema_name: name, schema_title: title } = span;
    const heading = title && title !== name ? title : shortName(name);
    const key = JSON.stringify([name, span.status, span.path]);
    if (key !== this.headShown) {
      this.headShown = key;
      replace(this.head,
        h("div", { class: "span-title" },
          h("span", { class: `kind kind-${kindOf(name)}` }),
          h("h2", { title: name }, heading),
          h("span", { class: "muted mono" }, name),
          statusMark(span.status), this.length),
        this.pathView());
    } else {
      this.head.querySelector(".span-length").replaceWith(this.length);
    }
    this.tick();
  }

  /** The steps from the root of the run down to this one. */
  pathView() {
    const { span } = this;
    const steps = span.path.map(({ id, name }) => {
      const href = `/runs/${span.agent_instance_id}?span=${id}`;
      const click = (event) => {
        if (event.ctrlKey || event.metaKey || event.shiftKey || !this.onSelect) return;
        event.preventDefault();
        this.onSelect(id);
      };
      return h("li", null, h("a", { href, on: { click } }, shortName(name)));
    });
    const link = () => `${window.location.origin}/spans/${span.id}`;
    return h("nav", { class: "span-path", "aria-label": "Path of the span" },
      h("ol", null, steps,
        h("li", null, h("span", { "aria-current": "true" }, shortName(span.schema_name)))),
      isExport() ? null : copyButton(link, "Copy the link of this span"));
  }

  tick() {
    if (this.span === undefined || this.length === undefined) return;
    const { started_at: start, finished_at: end, status } = this.span;
    if (start === null || (end === null && status !== "active")) return;
    this.length.textContent = duration((end === null ? now() : msOf(end)) - msOf(start));
  }

  showTabs() {
    const names = {
      summary: "Summary", input: "Input", result: "Result", raw: "Raw",
      flags: this.flags.length > 0 ? `Flags ${this.flags.length}` : "Flags",
    };
    const focused = this.tabs.contains(document.activeElement);
    replace(this.tabs, SPAN_TABS.map((tab) => {
      const selected = tab === this.tab;
      const flagged = tab === "flags" && this.flags.length > 0;
      return h("button", {
        type: "button", role: "tab", id: `span-tab-${tab}`, class: flagged ? "flagged" : null,
        tabindex: selected ? "0" : "-1", "aria-controls": "span-body",
        aria: { selected }, on: { click: () => this.open(tab) },
      }, names[tab]);
    }));
    this.body.setAttribute("aria-labelledby", `span-tab-${this.tab}`);
    if (focused) this.tabs.querySelector('[aria-selected="true"]').focus();
  }

  open(tab) {
    if (tab === this.tab) return;
    this.tab = tab;
    this.show(this.span);
    this.body.scrollTop = 0;
    this.onTab?.(tab);
  }

  keyed(event) {
    const steps = { ArrowLeft: -1, ArrowRight: 1 };
    if (!(event.key in steps)) return;
    event.preventDefault();
    const at = SPAN_TABS.indexOf(this.tab) + steps[event.key];
    this.open(SPAN_TABS[(at + SPAN_TABS.length) % SPAN_TABS.length]);
    this.tabs.querySelector('[aria-selected="true"]').focus();
  }

  showBody() {
    const views = {
      summary: () => summaryTab(this.span, this.flags),
      input: () => this.fields("payload", this.span.payload_text),
      result: () => this.fields("result", this.span.result_text),
      flags: () => this.flagList(),
      raw: () => rawTab(this.span),
    };
    replace(this.body, views[this.tab]());
  }

  fields(part, text) {
    const { schema_name: name, status } = this.span;
    if (text !== null && text !== undefined) {
      return payloadFields(text, { part, name, flags: this.flags });
    }
    const open = status === "active" || status === "pending";
    return h("p", { class: "none muted" }, open ? "No result yet." : "No result was recorded.");
  }

  /** Every flag leads to the field it is about. */
  flagList() {
    if (this.flags.length === 0) {
      return h("p", { class: "none muted" }, "No flags: what was recorded fits the schema.");
    }
    return h("ul", { class: "flags" }, this.flags.map((flag) => {
      const { part, path, message } = flag;
      if (part === null) return h("li", null, h("span", { class: "flagged" }, "⚠ "), message);
      const show = () => this.openField(part, flag.field);
      return h("li", null, h("span", { class: "flagged" }, "⚠ "),
        h("button", { type: "button", class: "link mono", on: { click: show } }, part + path),
        " ", message);
    }));
  }

  openField(part, field) {
    this.open(part === "payload" ? "input" : "result");
    if (field === null) return;
    const element = this.body.querySelector(`[data-field="${CSS.escape(field)}"]`);
    element?.scrollIntoView({ block: "center" });
    element?.classList.add("found");
    announce(`${part} ${field}`);
  }
}
