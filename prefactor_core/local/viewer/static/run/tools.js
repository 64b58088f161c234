/**
 * The row of tools above the tree: search, views, folds, the critical path, zoom.
 */
import { h, replace } from "../elements/dom.js";
import { kindOf } from "../values/format.js";
import { isOpen } from "../values/status.js";
import { TREE_RUN } from "../tree/tree.js";

const toolsViews = { waterfall: "Waterfall", flame: "Flame", text: "Text" };

export class RunTools {
  constructor(model, find, actions) {
    this.model = model;
    this.actions = actions;
    this.views = Object.entries(toolsViews).map(([view, word]) => {
      const on = { click: () => actions.show(view) };
      return h("button", { type: "button", data: { view }, on }, word);
    });
    this.path = this.toggle("p", "Critical path", "The steps that the run's end waited for (p)");
    this.follow = this.toggle("f", "Follow", "Keep the newest step in view (f)");
    this.only = this.button("o", "Only this path ✕", "Show all steps again (o)");
    this.zoom = this.button("0", "Whole run", "Show the whole run (0)");
    this.share = h("span", { class: "path-share muted" });
    this.folds = h(
      "span",
      { class: "segments", role: "group", aria: { label: "Levels" } },
      this.button("[", "⊟", "Fold a level ([)"),
      this.button("]", "⊞", "Unfold a level (])"),
    );
    this.element = h(
      "div",
      { class: "run-tools", role: "toolbar", aria: { label: "Tools" } },
      find.element,
      this.folds,
      this.path,
      this.share,
      this.only,
      this.zoom,
      this.follow,
      h("span", { class: "tool-space" }),
      h("span", { class: "segments views", role: "group", aria: { label: "View" } }, this.views),
    );
  }

  /** Show what is on: `page` has the place and whether it follows. */
  draw({ place, following }) {
    for (const button of this.views) {
      button.setAttribute("aria-pressed", String(button.dataset.view === place.view));
    }
    const text = place.view === "text";
    this.folds.hidden = place.view !== "waterfall";
    this.path.hidden = text;
    this.path.setAttribute("aria-pressed", String(this.model.showPath));
    this.follow.hidden = !isOpen(this.model.run.status) || place.view !== "waterfall";
    this.follow.setAttribute("aria-pressed", String(following));
    this.only.hidden = this.model.only === null || text;
    this.zoom.hidden = this.model.view === null || text;
    this.share.hidden = text || this.model.path === null;
    if (this.model.path !== null) replace(this.share, this.pathText());
  }

  /** The shares of the kinds of steps in the critical path. */
  pathText() {
    const { tree, path } = this.model;
    const times = new Map();
    for (const [p, ms] of path.time) {
      const kind = p === TREE_RUN ? "no step" : kindOf(tree.spans[p].name).replace("llm", "LLM");
      times.set(kind, (times.get(kind) ?? 0) + ms);
    }
    const steps = path.time.size - (path.time.has(TREE_RUN) ? 1 : 0);
    const shares = [...times]
      .filter(([, ms]) => ms >= path.total / 200)
      .sort((a, b) => b[1] - a[1])
      .map(([kind, ms]) => `${kind} ${Math.round((100 * ms) / path.total)} %`);
    return `${steps} of ${tree.spans.length} spans: ${shares.join(", ")}`;
  }

  toggle(key, text, title) {
    const button = this.button(key, text, title);
    button.setAttribute("aria-pressed", "false");
    return button;
  }

  button(key, text, title) {
    const on = { click: () => this.actions.key(key) };
    const label = text.length === 1 ? title : null;
    return h("button", { type: "button", class: "tool", title, aria: { label }, on }, text);
  }
}
