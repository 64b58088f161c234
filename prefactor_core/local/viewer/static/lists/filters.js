/**
 * Filters of the list of runs: all of them are in the address.
 */
import { h, replace } from "../elements/dom.js";
import { count, counted } from "../values/format.js";
import { STATUSES, glyphOf } from "../values/status.js";

const RUN_FILTERS = ["q", "status", "agent", "purpose", "since"];
const RUN_TIMES = {
  "": "Any time", "1h": "Last hour", "24h": "Last 24 hours", "7d": "Last 7 days",
};

/** Return the filters that `location` holds, as search parameters in one order. */
export function readRunFilters(location) {
  const filters = new URLSearchParams();
  for (const name of RUN_FILTERS) {
    const value = location.searchParams.get(name);
    if (value) filters.set(name, value);
  }
  return filters;
}

/** Return the address of the list with `filters`. */
export function runListUrl(filters) {
  const query = filters.toString().replaceAll("%2C", ",");
  return query === "" ? "/" : `/?${query}`;
}

/**
 * The row of controls above the list. `onChange(filters, {typing})` gets the new filters; while
 * one types, the address is replaced, so that "back" does not go letter by letter.
 */
export class RunFilters {
  constructor(onChange) {
    this.onChange = onChange;
    this.filters = new URLSearchParams();
    this.timer = null;
    this.search = h("input", {
      type: "search",
      class: "search",
      placeholder: "Find: id, name, text in payloads",
      "aria-label": "Find runs by id, name, or text in payloads",
      spellcheck: "false",
      on: { input: () => this.typed(), keydown: (event) => this.keyed(event) },
    });
    this.statuses = h("div", { class: "statuses segments", role: "group", "aria-label": "Status" });
    this.agent = this.select("agent", "Agent");
    this.purpose = this.select("purpose", "Purpose");
    this.since = this.select("since", "Time");
    this.total = h("span", { class: "muted number nowrap" });
    this.clear = h("button", { class: "plain", on: { click: () => this.changed(new Map()) } },
      "Clear filters");
    // What the server knows decides how wide they are: until then they are not shown.
    for (const control of [this.statuses, this.agent, this.purpose, this.since, this.clear]) {
      control.hidden = true;
    }
    this.element = h("form", { class: "filters", role: "search", "aria-label": "Runs" },
      this.search, this.statuses, this.agent, this.purpose, this.since, this.clear, this.total);
    this.element.addEventListener("submit", (event) => event.preventDefault());
  }

  /** Show what the server counted and knows: see `/-/runs`. */
  show({ total, matched, agents, statuses, purposes }) {
    const { filters } = this;
    this.statuses.hidden = this.agent.hidden = this.since.hidden = false;
    this.showStatuses(statuses);
    this.showOptions(this.agent, "agent", "All agents", agents.map(({ id, name }) => [id, name]));
    this.showOptions(this.purpose, "purpose", "All purposes", purposes.map((name) => [name, name]));
    this.showOptions(this.since, "since", RUN_TIMES[""], Object.entries(RUN_TIMES).slice(1));
    this.purpose.hidden = purposes.length === 0 && !filters.has("purpose");
    this.clear.hidden = filters.size === 0;
    const all = counted(total, "run");
    this.total.textContent =
      filters.size > 0 && matched !== null ? `${count(matched)} of ${all}` : all;
  }

  /** Take the filters of another address; a text that is being typed stays as it is. */
  take(filters) {
    this.filters = filters;
    const query = filters.get("q") ?? "";
    if (this.search.value.trim() !== query) this.search.value = query;
  }

  focus() {
    this.search.focus();
    this.search.select();
  }

  close() {
    clearTimeout(this.timer);
  }

  select(name, label) {
    const change = (event) => this.set(name, event.target.value);
    return h("select", { "aria-label": label, on: { change } });
  }

  showOptions(select, name, all, options) {
    const chosen = this.filters.get(name) ?? "";
    const known = ["", ...options.map(([value]) => value)].includes(chosen);
    const list = [["", all], ...options, ...(known ? [] : [[chosen, chosen]])];
    const shown = JSON.stringify(list);
    if (select.dataset.shown !== shown) {
      replace(select, list.map(([value, text]) => h("option", { value }, text)));
      select.dataset.shown = shown;
    }
    select.value = chosen;
  }

  showStatuses(statuses) {
    const chosen = (this.filters.get("status") ?? "").split(",").filter(Boolean);
    const names = Object.keys(STATUSES).filter(
      (status) => statuses[status] > 0 || chosen.includes(status),
    );
    const shown = JSON.stringify([names, chosen]);
    if (this.statuses.dataset.shown !== shown) {
      const focused = document.activeElement?.dataset?.status;
      replace(this.statuses, names.map((status) => this.statusButton(status, chosen)));
      this.statuses.dataset.shown = shown;
      if (focused) this.statuses.querySelector(`[data-status="${focused}"]`)?.focus();
    }
    for (const button of this.statuses.children) {
      button.lastChild.textContent = count(statuses[button.dataset.status] ?? 0);
    }
  }

  statusButton(status, chosen) {
    const pressed = chosen.includes(status);
    const rest = pressed ? chosen.filter((name) => name !== status) : [...chosen, status];
    const click = () => this.set("status", rest.join(","));
    return h(
      "button",
      { type: "button", aria: { pressed }, data: { status }, on: { click } },
      h("span", { class: `status-${status}`, "aria-hidden": "true" }, glyphOf(status)),
      status,
      h("span", { class: "muted number" }),
    );
  }

  typed() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.set("q", this.search.value.trim(), true), 200);
  }

  keyed(event) {
    if (event.key !== "Escape" && event.key !== "Enter") return;
    event.preventDefault();
    clearTimeout(this.timer);
    if (event.key === "Enter") this.set("q", this.search.value.trim(), true);
    this.search.blur();
  }

  set(name, value, typing = false) {
    if ((this.filters.get(name) ?? "") === value) return;
    const values = new Map(this.filters);
    if (value === "") values.delete(name);
    else values.set(name, value);
    this.changed(values, typing);
  }

  changed(values, typing = false) {
    const filters = new URLSearchParams();
    for (const name of RUN_FILTERS) if (values.has(name)) filters.set(name, values.get(name));
    this.onChange(filters, { typing });
  }
}
