/**
 * The search box of the run page: counts hits, lists them, and goes from one to the next.
 */
import { h, replace } from "../elements/dom.js";
import { count, counted, duration, shortName } from "../values/format.js";
import { statusMark } from "../values/status.js";
import { get } from "../server/requests.js";
import { localHits, nextOf } from "../tree/find.js";

const findboxDelay = 150; // ms after the last key
const findboxListed = 200;

export class FindBox {
  /**
   * @param {{hits: Function, go: Function, query: Function}} actions `hits(ids)` marks rows,
   *   `go(id)` selects one, `query(text)` keeps the text in the URL
   */
  constructor(model, context, actions) {
    this.model = model;
    this.context = context;
    this.actions = actions;
    this.more = false;
    this.input = h("input", {
      type: "search",
      placeholder: "find  /",
      aria: { label: "Find in the run" },
      on: { input: () => this.onInput(), keydown: (event) => this.onKey(event) },
    });
    this.status = h("span", { class: "find-count number" });
    this.back = this.button("↑", "Previous hit (N)", -1);
    this.forward = this.button("↓", "Next hit (n)", 1);
    this.list = h("ol", { class: "find-list overlay", hidden: true, aria: { label: "Hits" } });
    this.element = h(
      "div",
      { class: "find", role: "search" },
      this.input,
      this.status,
      this.back,
      this.forward,
      this.list,
    );
    this.element.addEventListener("focusout", (event) => {
      if (!this.element.contains(event.relatedTarget)) this.list.hidden = true;
    });
    this.element.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      event.preventDefault(); // the browser would empty the field
      event.stopPropagation();
      this.list.hidden = true;
      document.activeElement.blur();
    });
    this.draw();
  }

  close() {
    clearTimeout(this.timer);
    this.request?.abort();
  }

  focus() {
    this.input.focus();
    this.input.select();
    if (this.model.hits.size > 0) this.showList();
  }

  /** Search for `text` from a link. */
  start(text) {
    this.input.value = text;
    if (text !== "") this.search();
  }

  /** Go to the next hit, or with -1 to the one before. */
  step(by) {
    const hits = this.positions();
    const p = nextOf(hits, this.model.position(), by);
    if (p !== null) this.actions.go(this.model.tree.spans[p].id);
    this.draw();
  }

  /** Show which hit is selected, of how many. */
  draw() {
    const hits = this.positions();
    const at = hits.indexOf(this.model.position());
    const total = `${count(hits.length)}${this.more ? "+" : ""}`;
    const word = hits.length === 1 ? "hit" : "hits";
    const found = at < 0 ? `${total} ${word}` : `${at + 1} of ${total}`;
    const empty = this.input.value.trim() === "";
    this.status.textContent = empty ? "" : found;
    this.status.hidden = this.back.hidden = this.forward.hidden = empty;
    this.back.disabled = this.forward.disabled = hits.length === 0;
  }

  positions() {
    return [...this.model.hits];
  }

  button(text, label, by) {
    const on = { click: () => this.step(by) };
    return h("button", { type: "button", class: "plain", title: label, aria: { label }, on }, text);
  }

  onInput() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.search(), findboxDelay);
  }

  onKey(event) {
    if (event.key !== "Enter") return;
    event.preventDefault();
    this.step(event.shiftKey ? -1 : 1);
  }

  /** Show hits in what the page holds at once, and those in payloads when the server answers. */
  async search() {
    const text = this.input.value;
    this.request?.abort();
    this.request = new AbortController();
    const { signal } = this.request;
    this.actions.query(text.trim());
    this.take(localHits(this.model.tree, text).map((p) => this.model.tree.spans[p].id), false);
    if (text.trim() === "") return;
    try {
      const { ids, more } = await findboxSearch(this.model.run.id, text, signal);
      if (signal.aborted) return;
      this.take([...new Set([...this.model.hitIds, ...ids])], more);
      this.context.announce(counted(this.model.hits.size, "hit"));
    } catch (failure) {
      if (!signal.aborted) this.status.textContent = failure.message;
    }
  }

  take(ids, more) {
    this.more = more;
    this.actions.hits(ids);
    this.draw();
    if (this.element.contains(document.activeElement)) this.showList();
  }

  showList() {
    const { tree, hits } = this.model;
    const shown = [...hits].slice(0, findboxListed);
    const rest = hits.size - shown.length;
    replace(
      this.list,
      shown.map((p) => this.listItem(tree, p)),
      rest > 0 && h("li", { class: "muted" }, `and ${count(rest)} more: n goes to the next hit`),
      this.more && h("li", { class: "muted" }, "The server found more than it lists."),
    );
    this.list.hidden = hits.size === 0;
  }

  listItem(tree, p) {
    const { id, name, label, status, start } = tree.spans[p];
    const time = Number.isNaN(start) ? "" : duration(start - tree.from);
    const note = h("span", { class: "muted" }, label);
    const on = { click: () => this.actions.go(id) };
    return h(
      "li",
      null,
      h(
        "button",
        { type: "button", class: "plain find-hit", on },
        statusMark(status),
        h("span", { class: "ellipsis" }, shortName(name), " ", note),
        h("span", { class: "muted number" }, time),
      ),
    );
  }
}

/**
 * Search the whole spans, payloads and results included, on the server.
 *
 * @returns {Promise<{ids: string[], more: boolean}>} `more`: the server stopped counting
 */
async function findboxSearch(runId, text, signal) {
  const query = new URLSearchParams({ q: text.trim() });
  const answer = await get(`/-/runs/${encodeURIComponent(runId)}/search?${query}`, { signal });
  return { ids: answer.spans, more: answer.more };
}
