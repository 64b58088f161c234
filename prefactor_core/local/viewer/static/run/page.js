/**
 * The page of a run: it joins the header, the views of the tree, the search and the span beside.
 *
 * The address holds what is shown: /runs/{id}?span&tab&view&q. A selection replaces the entry of
 * the history; on a phone, where the span is a page of its own, it adds one.
 */
import { h, replace } from "../elements/dom.js";
import { splitter } from "../elements/splitter.js";
import { shortId } from "../values/format.js";
import { isExport } from "../server/exported.js";
import { get, now } from "../server/requests.js";
import { RunModel } from "../tree/model.js";
import { buildTree } from "../tree/tree.js";
import { showSpan } from "../span/panel.js";
import { Flame } from "../views/flame.js";
import { Minimap } from "../views/minimap.js";
import { watchTheme } from "../views/palette.js";
import { TextView } from "../views/text.js";
import { Waterfall } from "../views/waterfall.js";
import { FindBox } from "./findbox.js";
import { RunHeader } from "./header.js";
import { runKeys } from "./keys.js";
import { legend } from "./legend.js";
import { Frames, followRun } from "./live.js";
import { RunTools } from "./tools.js";

const runViews = { waterfall: Waterfall, flame: Flame, text: TextView };
const runPanelDelay = 90; // ms: a row that is passed by with a held key is not loaded
const runMinimapEvery = 1000; // ms between pictures while bars grow
const runTimeEvery = 100;

/** Open the page of a run in `root`. */
export function openRun(root, location, context) {
  const page = new RunPage(root, location, context);
  page.load();
  return page;
}

class RunPage {
  constructor(root, location, context) {
    this.root = root;
    this.context = context;
    this.id = decodeURIComponent(location.pathname.split("/")[2]);
    this.place = runPlace(location);
    this.narrow = window.matchMedia("(max-width: 699px)");
    this.keys = {};
    this.unseen = new Set(); // ids of new spans below the view
    this.following = false;
    root.className = "run-page";
    context.setCrumbs([{ text: "Runs", href: "/" }, { text: shortId(this.id) }]);
    context.setTitle(`Run ${shortId(this.id)}`);
    replace(root, h("p", { class: "run-wait muted" }, "Reading the run …"));
  }

  async load() {
    const path = `/-/runs/${encodeURIComponent(this.id)}`;
    try {
      const [{ run }, skeleton] = await Promise.all([get(path), get(`${path}/skeleton`)]);
      await runPause(); // a long run is parsed, built and drawn in a task each
      const tree = buildTree(skeleton.rows);
      await runPause();
      if (!this.closed) this.mount(run, tree, skeleton.revision);
    } catch (failure) {
      if (!this.closed) this.refuse(failure);
    }
  }

  close() {
    this.closed = true;
    clearInterval(this.seconds);
    clearTimeout(this.panelTimer);
    for (const part of this.parts ?? []) part.close();
    for (const view of Object.values(this.views ?? {})) view.close();
    this.panel?.close();
  }

  /** Show what the address says; called for each change of it. */
  update(location) {
    const place = runPlace(location);
    const before = this.place;
    this.place = place;
    if (!this.model) return;
    if (place.view !== before.view) this.showView();
    if (place.q !== before.q) this.find.start(place.q);
    if (place.span !== before.span || place.tab !== before.tab) this.showSelection();
  }

  /** Change the address; `update` then shows it. */
  go(changes, { push = false } = {}) {
    const { span, tab, view, q } = { ...this.place, ...changes };
    const query = new URLSearchParams();
    if (span) query.set("span", span);
    if (tab) query.set("tab", tab);
    if (view !== "waterfall") query.set("view", view);
    if (q) query.set("q", q);
    const path = `/runs/${encodeURIComponent(this.id)}`;
    this.context.navigate(query.size > 0 ? `${path}?${query}` : path, { replace: !push });
  }

  mount(run, tree, revision) {
    this.model = new RunModel(run, tree, now);
    const actions = this.actions();
    this.views = { waterfall: new Waterfall(this.model, actions) };
    this.header = new RunHeader(this.model, this.context, actions);
    this.minimap = new Minimap(this.model, actions.view);
    this.find = new FindBox(this.model, this.context, actions);
    this.tools = new RunTools(this.model, this.find, actions);
    this.parts = [this.minimap, this.find, watchTheme(() => this.draw())];
    this.viewport = h("div", { class: "run-view" });
    this.empty = h("p", { class: "run-empty muted" }, "No step is recorded in this run yet.");
    this.news = h("button", { type: "button", class: "news", hidden: true });
    this.news.addEventListener("click", () => this.showNews());
    this.panelBox = h("aside", { class: "run-panel", aria: { label: "Span" } });
    const main = h("div", { class: "run-main" }, this.viewport, this.empty, this.news);
    this.body = h("div", { class: "run-body" }, main, splitter(this.panelBox), this.panelBox);
    const { element: header } = this.header;
    const { element: map } = this.minimap;
    replace(this.root, header, map, this.tools.element, this.body, legend());
    this.keys = runKeys(this);
    this.nameRun();
    this.showView();
    this.draw();
    if (this.place.q) this.find.start(this.place.q);
    this.showSelection({ center: true });
    this.startLive(revision);
  }

  refuse(failure) {
    const missing = failure.status === 404;
    const title = missing ? "No such run" : failure.message;
    const { database } = this.context.about;
    const why = missing && h("p", null, h("code", null, this.id), ` is not in ${database}.`);
    const back = h("p", null, h("a", { href: "/" }, "All runs"));
    replace(this.root, h("div", { class: "notice" }, h("h1", null, title), why, back));
  }

  nameRun() {
    const { run } = this.model;
    const name = run.agent_name ?? "run";
    this.context.setTitle(`${name} · ${run.status}`);
    const agent = { text: name, href: `/?agent=${encodeURIComponent(run.agent_id ?? "")}` };
    this.context.setCrumbs([{ text: "Runs", href: "/" }, agent, { text: shortId(run.id) }]);
  }

  actions() {
    return {
      select: (id) => this.select(id),
      toggle: (id) => this.toggle(id),
      view: (view) => this.zoomTo(view),
      scrolled: () => this.drawNews(),
      nextError: () => this.keys.e(),
      hits: (ids) => this.takeHits(ids),
      go: (id) => this.select(id, { center: true }),
      query: (q) => q !== this.place.q && this.go((this.place = { ...this.place, q })),
      show: (view) => this.go({ view }),
      key: (key) => this.keys[key](),
    };
  }

  /** The view that is shown: the waterfall, the flame strip or the text. */
  get shown() {
    return this.views[this.place.view];
  }

  showView() {
    const { view } = this.place;
    this.views[view] ??= new runViews[view](this.model, this.actions());
    replace(this.viewport, this.shown.element);
    this.root.dataset.view = view;
    this.tools.draw(this);
    this.shown.draw();
    const p = this.model.position();
    if (p !== null) this.shown.show(p, { center: true });
    this.drawNews();
  }

  /** Draw all after a change of the tree, of folds or of what is marked. */
  draw() {
    this.empty.hidden = this.model.tree.spans.length > 0;
    this.header.draw();
    this.minimap.draw();
    this.shown.draw();
    this.find.draw();
    this.tools.draw(this);
    this.drawNews();
  }

  select(id, { center = false } = {}) {
    this.center = center;
    this.go({ span: id }, { push: this.narrow.matches && this.place.span === null && id !== null });
  }

  /** Mark and shows the span of the address. */
  showSelection({ center = this.center } = {}) {
    const { model } = this;
    const { span } = this.place;
    const focused = document.activeElement;
    const nowhere = focused === document.body || focused === this.root;
    const inRow = nowhere || this.viewport.contains(focused);
    model.select(span);
    const p = model.position();
    if (p !== null) model.reveal(p);
    this.root.classList.toggle("has-span", span !== null);
    this.shown.draw();
    if (p !== null) this.shown.show(p, { focus: inRow && !this.narrow.matches, center });
    this.find.draw();
    this.tools.draw(this);
    clearTimeout(this.panelTimer);
    const hurried = performance.now() - (this.selectedAt ?? 0) < runPanelDelay;
    this.selectedAt = performance.now();
    this.panelTimer = setTimeout(() => this.showPanel(), hurried ? runPanelDelay : 0);
  }

  showPanel() {
    const { span, tab } = this.place;
    this.panel?.close();
    this.panel = null;
    replace(this.panelBox);
    if (span === null) return;
    const narrow = this.narrow.matches;
    const back = h(
      "button",
      {
        type: "button",
        class: "panel-back",
        aria: { label: narrow ? "Back to the run" : "Close the span" },
        on: { click: () => this.back() },
      },
      narrow ? "‹ Run" : "✕",
    );
    const content = h("div", { class: "panel-content" });
    replace(this.panelBox, back, content);
    this.panel = showSpan(content, span, {
      tab,
      onTab: (chosen) => this.go((this.place = { ...this.place, tab: chosen })),
      onSelect: (id) => this.select(id, { center: true }),
      revision: this.model.run.revision,
    });
  }

  /** Leave the span; on a phone that is the page before. */
  back() {
    this.select(null);
    if (!this.narrow.matches) this.focusRow();
  }

  focusRow() {
    const p = this.model.rows[this.model.cursorIndex];
    if (p !== undefined) this.shown.show(p, { focus: true });
  }

  toggle(id) {
    const { folded } = this.model;
    if (!folded.delete(id)) folded.add(id);
    this.refold();
  }

  /** Draw the rows after a change of folds. */
  refold() {
    const anchor = this.views.waterfall.anchor();
    this.model.arrange();
    this.views.waterfall.drawAround(anchor);
    this.tools.draw(this);
  }

  zoomTo(view) {
    this.model.view = view;
    this.shown.tick();
    this.minimap.place();
    this.tools.draw(this);
  }

  takeHits(ids) {
    this.model.hitIds = ids;
    this.model.markHits();
    this.minimap.draw();
    this.shown.draw();
  }

  startLive(revision) {
    if (isExport()) return;
    const apply = (rows, run) => this.apply(rows, run);
    this.live = followRun(this.id, revision, apply, () => this.noteDeleted());
    this.frames = new Frames(() => this.model.grows(), () => this.frame());
    this.parts.push(this.live, this.frames);
    this.frames.wake();
    this.seconds = setInterval(() => this.second(), 1000);
    for (const moved of ["wheel", "touchmove"]) {
      this.viewport.addEventListener(moved, () => this.follow(false), { passive: true });
    }
  }

  /** Show the passing time; when bars stop because the run is silent, draw where they stop. */
  second() {
    this.header.tick();
    const grows = this.model.grows();
    if (this.grew && !grows) this.draw();
    this.grew = grows;
  }

  /** Keep the newest step in view, or stop that: the reader scrolls. */
  follow(on) {
    if (on === this.following) return;
    this.following = on;
    this.tools.draw(this);
    this.context.announce(on ? "Following the newest step" : "Not following");
    if (on) this.shown.show(this.model.tree.spans.length - 1);
  }

  frame() {
    const now = performance.now();
    this.shown.tick();
    if (now - (this.timeAt ?? 0) > runTimeEvery) {
      this.timeAt = now;
      this.header.drawTime();
    }
    if (now - (this.minimapAt ?? 0) < runMinimapEvery) return;
    this.minimapAt = now;
    this.minimap.draw();
  }

  apply(rows, run) {
    const { model } = this;
    const status = model.run.status;
    if ((run?.revision ?? -1) >= (model.run.revision ?? 0)) model.run = { ...model.run, ...run };
    const anchor = this.views.waterfall.anchor();
    const added = rows.length > 0 ? model.apply(rows) : [];
    if (rows.length > 0 && this.place.view === "waterfall") this.views.waterfall.drawAround(anchor);
    else if (rows.length > 0) this.shown.draw();
    for (const id of added) this.unseen.add(id);
    if (this.following && added.length > 0) this.showNews();
    if (rows.some(([id]) => id === this.place.span)) this.panel?.refresh();
    this.empty.hidden = model.tree.spans.length > 0;
    this.header.draw();
    this.find.draw();
    this.tools.draw(this);
    if (rows.length > 0) this.minimap.draw();
    this.drawNews();
    this.frames.wake();
    if (model.run.status !== status) this.ended();
  }

  /** Read again what the changes do not tell: the quality of a run that has ended. */
  async ended() {
    this.nameRun();
    const { run } = await get(`/-/runs/${encodeURIComponent(this.id)}`);
    if (this.closed) return;
    this.model.run = run;
    this.model.arrange();
    this.draw();
  }

  /** Note in the header that the server has deleted this run; what was read of it stays. */
  noteDeleted() {
    this.model.deleted = true;
    this.header.drawTime();
  }

  /** Offer the new spans below the view: "3 new ↓". */
  drawNews() {
    const bottom = this.views.waterfall.bottomIndex();
    for (const id of this.unseen) {
      if (this.model.rowOf(id) < bottom) this.unseen.delete(id);
    }
    this.news.hidden = this.unseen.size === 0 || this.place.view !== "waterfall";
    if (!this.news.hidden) this.news.textContent = `${this.unseen.size} new ↓`;
  }

  showNews() {
    const { tree } = this.model;
    const last = Math.max(...[...this.unseen].map((id) => tree.at.get(id)));
    if (last >= 0) this.shown.show(last);
    this.drawNews();
  }
}

function runPause() {
  return new Promise((resolve) => setTimeout(resolve));
}

function runPlace(location) {
  const query = new URLSearchParams(location.search);
  const view = query.get("view");
  return {
    span: query.get("span"),
    tab: query.get("tab"),
    view: Object.hasOwn(runViews, view) ? view : "waterfall",
    q: query.get("q") ?? "",
  };
}
