/**
 * The keys of the run page.
 */
import { copyText } from "../elements/dom.js";
import { isOpen } from "../values/status.js";
import { nextOf } from "../tree/find.js";
import { foldLevel, unfoldLevel } from "../tree/fold.js";
import { panned, zoomed } from "../tree/timeline.js";
import { TREE_RUN, endAt } from "../tree/tree.js";

/** Return the handlers by key, for keys.js. `page` is the RunPage. */
export function runKeys(page) {
  const { model } = page;
  return {
    j: () => runKeysMove(page, 1),
    k: () => runKeysMove(page, -1),
    h: () => runKeysLeave(page),
    l: () => runKeysEnter(page),
    g: () => runKeysSelectRow(page, 0, 1),
    G: () => runKeysSelectRow(page, model.rows.length - 1, -1),
    Enter: () => runKeysOpen(page),
    Escape: () => runKeysBack(page),
    "/": () => page.find.focus(),
    n: () => page.find.step(1),
    N: () => page.find.step(-1),
    e: () => runKeysError(page, 1),
    E: () => runKeysError(page, -1),
    "[": () => runKeysFold(page, foldLevel),
    "]": () => runKeysFold(page, unfoldLevel),
    o: () => runKeysOnly(page),
    "+": () => runKeysZoom(page, 2),
    "-": () => runKeysZoom(page, 0.5),
    0: () => page.zoomTo(null),
    ",": () => page.zoomTo(panned(model.view, model.domain(), -0.25)),
    ".": () => page.zoomTo(panned(model.view, model.domain(), 0.25)),
    p: () => runKeysPath(page),
    f: () => page.follow(!page.following && isOpen(model.run.status)),
    c: () => runKeysCopy(page),
    t: () => page.header.openTerminate(),
  };
}

function runKeysMove(page, by) {
  const { model } = page;
  runKeysSelectRow(page, model.cursor === null ? 0 : model.cursorIndex + by, by);
}

/** Select the span at the row `index`, or the next one in the direction `by` if it is a gap. */
function runKeysSelectRow(page, index, by) {
  const { rows, tree } = page.model;
  let at = Math.min(Math.max(index, 0), rows.length - 1);
  while (rows[at] !== undefined && typeof rows[at] !== "number") at += by;
  if (rows[at] !== undefined) page.select(tree.spans[rows[at]].id);
}

/** Fold the row; if it is folded or has no children, go to its parent. */
function runKeysLeave(page) {
  const { tree, folded, rows, cursorIndex } = page.model;
  const p = rows[cursorIndex];
  if (typeof p !== "number") return;
  const { id } = tree.spans[p];
  if (tree.last[p] > p + 1 && !folded.has(id)) page.toggle(id);
  else if (tree.parent[p] !== TREE_RUN) page.select(tree.spans[tree.parent[p]].id);
}

/** Unfold the row; if it is open, go to its first child. */
function runKeysEnter(page) {
  const { tree, folded, rows, cursorIndex } = page.model;
  const p = rows[cursorIndex];
  if (typeof p !== "number" || tree.last[p] === p + 1) return;
  if (folded.has(tree.spans[p].id)) page.toggle(tree.spans[p].id);
  else page.select(tree.spans[p + 1].id);
}

function runKeysOpen(page) {
  if (page.model.selected === null) return runKeysSelectRow(page, page.model.cursorIndex, 1);
  page.panelBox.querySelector("[role=tab][aria-selected=true], button, a")?.focus();
}

/** From the span's panel to its row, then to no selection, then to the list of runs. */
function runKeysBack(page) {
  const inPanel = page.panelBox.contains(document.activeElement);
  if (inPanel && !page.narrow.matches) return page.focusRow();
  if (page.place.span !== null) return page.back();
  if (page.model.only !== null) return runKeysOnly(page);
  page.context.navigate("/");
}

function runKeysError(page, by) {
  const { model, context } = page;
  const p = nextOf(model.failed, model.position(), by);
  if (p === null) return context.announce("No step has failed");
  page.select(model.tree.spans[p].id, { center: true });
  context.announce(`Error ${model.failed.indexOf(p) + 1} of ${model.failed.length}`);
}

function runKeysFold(page, change) {
  const { model } = page;
  change(model.tree, model.folded, model.rows);
  page.refold();
}

/** Show only the ancestors and the subtree of the selected span, or all again. */
function runKeysOnly(page) {
  const { model } = page;
  const p = model.rows[model.cursorIndex];
  model.only = model.only === null && typeof p === "number" ? model.tree.spans[p].id : null;
  model.arrange();
  page.draw();
  if (typeof p === "number") page.shown.show(p);
}

function runKeysZoom(page, factor) {
  const { model } = page;
  const { from, to } = model.window();
  const p = model.position();
  let at = (from + to) / 2;
  if (p !== null) {
    const middle = (model.tree.spans[p].start + endAt(model.tree, p, model.now())) / 2;
    if (middle >= from && middle <= to) at = middle;
  }
  page.zoomTo(zoomed(model.view, model.domain(), factor, at));
}

function runKeysPath(page) {
  page.model.showPath = !page.model.showPath;
  page.model.arrange();
  page.draw();
}

async function runKeysCopy(page) {
  const copied = await copyText(window.location.href);
  page.context.announce(copied ? "Link copied" : "The browser refused to copy");
}
