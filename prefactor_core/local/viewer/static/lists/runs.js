/**
 * The page `/`: all runs, the newest first, live.
 *
 * Rows that are being read never move: while the list is scrolled, pointed at or focused, new runs
 * wait behind the button "3 new ↑".
 */
import { copyText, h, replace } from "../elements/dom.js";
import { counted } from "../values/format.js";
import { subscribe } from "../server/events.js";
import { get } from "../server/requests.js";
import { emptyRuns } from "./empty.js";
import { RunFilters, readRunFilters, runListUrl } from "./filters.js";
import { runHead, runRow, tickRunRow, updateRunRow } from "./rows.js";

const RUNS_PAGE = 100;
const RUNS_REFRESH_MS = 1000;

/** The list that was left last, so that "back" shows it at once and where it was. */
let runsLeft = null;

/** Open the list of runs in `root`. */
export function openRuns(root, location, context) {
  const page = new RunsPage(root, context);
  page.update(location);
  return page;
}

class RunsPage {
  constructor(root, context) {
    this.context = context;
    this.filters = new RunFilters((filters, how) => this.filtered(filters, how));
    this.body = h("tbody");
    this.table = h("table", { class: "runs" },
      h("caption", { class: "offscreen" }, "Runs, the newest first"), runHead(), this.body);
    this.fresh = h("button", { class: "fresh primary", hidden: true,
      on: { click: () => this.showWaiting() } });
    this.end = h("div", { class: "end muted" });
    this.notice = h("div");
    root.className = "runs-page";
    this.list = h("div", { class: "list" },
      h("div", { class: "fresh-place" }, this.fresh), this.table, this.notice, this.end);
    const heading = h("h1", { class: "offscreen" }, "Runs");
    replace(root, heading, this.filters.element, this.list);
    this.keys = this.makeKeys();
    this.ticker = setInterval(() => this.tick(), 1000);
    this.observer = new IntersectionObserver(([entry]) => {
      if (entry.isIntersecting) this.loadMore();
    }, { root: this.list, rootMargin: "600px" });
    this.observer.observe(this.end);
    context.setCrumbs([{ text: "Runs" }]);
    context.setTitle("Runs");
  }

  /** Show the list of another address. */
  update(location) {
    const query = readRunFilters(location);
    if (this.query?.toString() === query.toString()) return;
    this.query = query;
    this.restart();
    this.filters.take(query);
    if (this.facts !== undefined) this.filters.show(this.facts);
    if (runsLeft?.query === query.toString()) this.restore();
    else this.load();
  }

  close() {
    this.keep();
    this.loading?.abort();
    this.subscription?.close();
    this.observer.disconnect();
    this.filters.close();
    clearInterval(this.ticker);
    clearTimeout(this.refreshing);
  }

  filtered(filters, { typing }) {
    this.context.navigate(runListUrl(filters), { replace: typing });
  }

  restart() {
    this.loading?.abort();
    this.subscription?.close();
    this.rows = new Map();
    this.waiting = new Map();
    this.next = null;
    clearTimeout(this.refreshing);
    this.refreshing = null;
    this.showFresh();
  }

  /** Remember the list for "back". */
  keep() {
    const runs = [...this.rows.values()].map(({ run }) => run);
    if (runs.length === 0) return;
    const read = this.body.contains(document.activeElement) ? document.activeElement : null;
    runsLeft = {
      query: this.query.toString(), runs, next: this.next, facts: this.facts,
      top: this.list.scrollTop, read: read?.closest("tr").dataset.id,
    };
  }

  restore() {
    const { runs, next, facts, top, read } = runsLeft;
    replace(this.body);
    this.append(runs);
    this.next = next;
    this.showFacts(facts);
    this.list.scrollTop = top;
    this.rows.get(read)?.element.querySelector("a").focus({ preventScroll: true });
    this.follow(facts.revision);
    this.refreshSoon();
  }

  async load() {
    this.table.setAttribute("aria-busy", "true");
    const answer = await this.read(null);
    if (answer === null) return;
    this.table.removeAttribute("aria-busy");
    replace(this.body);
    this.append(answer.runs);
    this.next = answer.next;
    this.showFacts(answer);
    this.follow(answer.revision);
    if (this.query.size > 0) {
      this.context.announce(`${counted(answer.matched ?? answer.runs.length, "run")} found`);
    }
  }

  async loadMore() {
    if (this.next === null || this.more) return;
    this.more = true;
    this.end.textContent = "Loading older runs…";
    const answer = await this.read(this.next);
    this.more = false;
    if (answer === null) return;
    this.append(answer.runs);
    this.next = answer.next;
    this.showEnd();
    // The observer tells only changes, and the end may still be in sight.
    this.observer.unobserve(this.end);
    this.observer.observe(this.end);
  }

  /** Return a page of the list, or null if another list is wanted by now, or the server failed. */
  async read(before) {
    const loading = new AbortController();
    if (before === null) this.loading = loading;
    const { query } = this;
    const parameters = new URLSearchParams(query);
    parameters.set("limit", RUNS_PAGE);
    if (before !== null) parameters.set("before", before);
    try {
      const answer = await get(`/-/runs?${parameters}`, { signal: loading.signal });
      return query === this.query ? answer : null;
    } catch (failure) {
      if (failure.name !== "AbortError" && query === this.query) this.showFailure(failure);
      return null;
    }
  }

  follow(revision) {
    this.subscription = subscribe({ after: revision }, {
      onRuns: (changes) => this.apply(changes),
      onState: (state) => {
        if (state !== "live" || this.facts === undefined) return;
        this.mayHaveDeleted = true; // while the stream was not read
        this.refreshSoon();
      },
    });
  }

  apply({ runs, total, deleted }) {
    this.mayHaveDeleted ||= deleted;
    if (this.openFirst(runs, total)) return;
    for (const run of runs) {
      const row = this.rows.get(run.id);
      if (row !== undefined) this.showNewer(row, run);
      else if (this.waiting.has(run.id)) this.waiting.set(run.id, run);
      else if (this.query.size === 0 && this.isNew(run)) this.waiting.set(run.id, run);
    }
    this.offerWaiting();
    this.refreshSoon();
  }

  /** Open the first run of a file that was empty, whichever tells of it: the stream, or a request
   * that the stream caused. Return whether there is one. */
  openFirst(runs, total) {
    if (this.facts?.total !== 0 || runs.length === 0) return false;
    this.facts.total = total ?? runs.length;
    this.context.navigate(`/runs/${runs[0].id}`);
    return true;
  }

  /** Ask for counts, and for new runs that match the filters, at most once a second. */
  refreshSoon() {
    this.refreshing ??= setTimeout(async () => {
      const answer = await this.read(null);
      this.refreshing = null;
      if (answer === null || this.openFirst(answer.runs, answer.total)) return;
      for (const run of answer.runs) {
        const row = this.rows.get(run.id);
        if (row !== undefined) this.showNewer(row, run);
        else if (this.isNew(run)) this.waiting.set(run.id, run);
      }
      if (this.mayHaveDeleted) await this.removeDeleted(answer);
      this.showFacts(answer);
      this.offerWaiting();
    }, RUNS_REFRESH_MS);
  }

  /** Remove the runs that the server has deleted; `answer` is the first page of those it has. */
  async removeDeleted({ runs, next }) {
    const known = [...this.rows.keys()];
    const kept = new Set(runs.map(({ id }) => id));
    for (let before = next; before !== null && before > known.at(-1);) {
      const older = await this.read(before);
      if (older === null) return;
      for (const { id } of older.runs) kept.add(id);
      before = older.next;
    }
    this.mayHaveDeleted = false;
    for (const id of known) {
      if (kept.has(id)) continue;
      this.rows.get(id).element.remove();
      this.rows.delete(id);
    }
    for (const id of this.waiting.keys()) if (!kept.has(id)) this.waiting.delete(id);
  }

  showNewer(row, run) {
    if (run.revision >= row.run.revision) updateRunRow(row, run);
  }

  isNew(run) {
    const oldest = [...this.rows.keys()].at(-1);
    return oldest === undefined || run.id > oldest || this.next === null;
  }

  append(runs) {
    for (const run of runs) {
      if (this.rows.has(run.id)) continue;
      const row = runRow(run);
      this.rows.set(run.id, row);
      this.body.append(row.element);
    }
  }

  isBeingRead() {
    return this.list.scrollTop > 0 || this.body.matches(":hover, :focus-within");
  }

  offerWaiting() {
    if (this.waiting.size > 0 && !this.isBeingRead()) this.insertWaiting();
    this.showFresh();
  }

  showWaiting() {
    this.insertWaiting();
    this.showFresh();
    this.list.scrollTop = 0;
    this.body.querySelector("a")?.focus();
  }

  /** Put the waiting runs where their ids belong; mostly that is the top. */
  insertWaiting() {
    const runs = [...this.waiting.values(), ...[...this.rows.values()].map(({ run }) => run)];
    runs.sort((a, b) => (a.id < b.id ? 1 : -1));
    this.waiting.clear();
    const rows = new Map();
    let previous = null;
    for (const run of runs) {
      const row = this.rows.get(run.id) ?? runRow(run);
      rows.set(run.id, row);
      const place = previous === null ? this.body.firstChild : previous.element.nextSibling;
      if (place !== row.element) this.body.insertBefore(row.element, place);
      previous = row;
    }
    this.rows = rows;
    this.showEnd();
  }

  showFresh() {
    this.fresh.hidden = this.waiting.size === 0;
    this.fresh.textContent = `${this.waiting.size} new ↑`;
  }

  showFacts(answer) {
    this.facts = { ...answer, runs: undefined };
    this.filters.show(this.facts);
    this.showEnd();
  }

  showEnd() {
    const none = this.rows.size === 0 && this.facts !== undefined;
    this.table.hidden = none;
    this.filters.element.hidden = none && this.facts.total === 0;
    replace(this.notice, none ? this.emptyNotice() : null);
    this.end.textContent = this.next === null || none ? "" : "…";
  }

  emptyNotice() {
    if (this.facts.total === 0) return emptyRuns(this.context.about);
    const clear = () => this.filtered(new URLSearchParams(), { typing: false });
    return h("div", { class: "notice" },
      h("h2", null, "No run matches these filters"),
      h("p", null, `${this.context.about.database} holds ${counted(this.facts.total, "run")}.`),
      h("button", { on: { click: clear } }, "Clear filters"));
  }

  showFailure(failure) {
    this.table.removeAttribute("aria-busy");
    const again = () => this.load();
    replace(this.notice,
      h("div", { class: "problem", role: "alert" }, failure.message, " ",
        h("button", { on: { click: again } }, "Try again")));
  }

  tick() {
    if (document.hidden) return;
    for (const row of this.rows.values()) tickRunRow(row);
  }

  makeKeys() {
    return {
      j: () => this.moveTo((links, at) => links[at + 1] ?? links.at(-1)),
      k: () => this.moveTo((links, at) => links[Math.max(at - 1, 0)]),
      g: () => this.moveTo((links) => links[0]),
      G: () => this.moveTo((links) => links.at(-1)),
      e: () => this.moveToError(1),
      E: () => this.moveToError(-1),
      "/": () => this.filters.focus(),
      c: async () => {
        const link = this.body.contains(document.activeElement) && document.activeElement.href;
        await copyText(link || window.location.href);
        this.context.announce("Link copied");
      },
    };
  }

  moveTo(choose) {
    const links = [...this.body.querySelectorAll("td.run a")];
    const link = choose(links, links.indexOf(document.activeElement));
    link?.focus({ preventScroll: true });
    link?.closest("tr").scrollIntoView({ block: "nearest" });
  }

  moveToError(step) {
    this.moveTo((links, at) => {
      const from = at < 0 && step < 0 ? links.length : at;
      for (let i = from + step; i >= 0 && i < links.length; i += step) {
        const { run } = this.rows.get(links[i].closest("tr").dataset.id);
        if (run.status === "failed" || run.spans.failed > 0) return links[i];
      }
      return links[at];
    });
  }
}
