/**
 * The spans of a run as a tree in flat arrays: pure functions, no DOM.
 *
 * A span is named by its position in depth-first order. So the spans below position `p` are the
 * positions from `p + 1` up to `tree.last[p]`, and no walk needs recursion, however deep the tree.
 */
import { msOf } from "../values/format.js";

/** The position that stands for the run itself, the parent of the top spans. */
export const TREE_RUN = -1;

/**
 * Build the tree from rows of the skeleton.
 *
 * A span whose parent is not among the rows, or that is its own ancestor, is a top span: none is
 * left out. Siblings are in the order of their starts; those that have not started come last.
 *
 * @param {Array<Array>} rows in the order of the skeleton's fields
 * @returns {object} `spans` and, by position: `parent`, `depth`, `last` (the first position after
 *   the subtree), `rank` and `siblings` (for aria-posinset and aria-setsize); `at`: position by id;
 *   `from` and `to`: the first start and the last known time, in milliseconds since 1970
 */
export function buildTree(rows) {
  return treeOf(rows.map(treeReader()));
}

/**
 * Apply changed rows. Change the tree itself if its shape stays, else return a new one.
 *
 * @returns {{tree: object, added: string[]}} the tree, and the ids of the spans that are new
 */
export function applyChanges(tree, rows) {
  const added = [];
  const read = treeReader();
  let reshaped = false;
  for (const row of rows) {
    const span = read(row);
    const known = tree.spans[tree.at.get(span.id) ?? -1];
    if (known === undefined) {
      added.push(span);
      continue;
    }
    reshaped ||= known.parent !== span.parent || !Object.is(known.start, span.start);
    Object.assign(known, span);
    treeExtend(tree, known);
  }
  if (added.length === 0 && !reshaped) return { tree, added: [] };
  return { tree: treeOf(tree.spans.concat(added)), added: added.map((span) => span.id) };
}

/** The end of the span at `p`: `now` while it is active, its start if it never began or ended. */
export function endAt(tree, p, now) {
  const { start, end, status } = tree.spans[p];
  if (!Number.isNaN(end)) return end;
  return status === "active" ? Math.max(start, now) : start;
}

/** The positions of the ancestors of `p`, the nearest first. */
export function ancestorsOf(tree, p) {
  const ancestors = [];
  for (let at = tree.parent[p]; at !== TREE_RUN; at = tree.parent[at]) ancestors.push(at);
  return ancestors;
}

/**
 * The rows to show: positions of spans and, between them, idle gaps as objects.
 *
 * @param {Set<string>} folded ids of the spans whose children are hidden
 * @param {{only?: number|null, now?: number, least?: number}} options `only`: show the ancestors
 *   and the subtree of this position alone; `least`: the shortest gap that gets a row, in ms;
 *   without it no gap does
 */
export function visibleRows(tree, folded, { only = null, now = tree.to, least = null } = {}) {
  const rows = [];
  const waiting = new Map(); // the gaps that stand before a position
  const path = only === null ? null : new Set(ancestorsOf(tree, only));
  const open = (p) => {
    if (least !== null) treePlaceGaps(tree, p, now, least, waiting);
  };
  if (path === null) open(TREE_RUN);
  let p = 0;
  while (p < tree.spans.length) {
    if (path && !path.has(p) && (p < only || p >= tree.last[only])) {
      p = tree.last[p];
      continue;
    }
    for (const gap of waiting.get(p) ?? []) rows.push(gap);
    rows.push(p);
    const hidden = folded.has(tree.spans[p].id);
    if (!hidden && tree.last[p] > p + 1 && !path?.has(p)) open(p);
    p = hidden ? tree.last[p] : p + 1;
    if (path && p === tree.last[only]) {
      for (const gap of waiting.get(p) ?? []) rows.push(gap);
      return rows;
    }
  }
  for (const gap of waiting.get(p) ?? []) rows.push(gap);
  return rows;
}

/**
 * Divide the time of the span at `p` (or of the run: TREE_RUN) by the work of its children.
 *
 * @returns {{idle: Array<{parent, before, from, to}>, waiting: Array<{from, to}>}} `idle`: no child
 *   was active; `before`: the position where such a gap's row stands. `waiting`: one was.
 */
export function gaps(tree, p, now = tree.to) {
  const idle = [];
  const waiting = [];
  const from = p === TREE_RUN ? tree.from : tree.spans[p].start;
  const to = p === TREE_RUN ? tree.to : endAt(tree, p, now);
  const [first, end] = treeBelow(tree, p);
  if (first === end || Number.isNaN(from)) return { idle, waiting };
  let reached = from;
  for (let child = first; child < end; child = tree.last[child]) {
    const start = Math.max(from, tree.spans[child].start);
    const stop = Math.min(to, endAt(tree, child, now));
    if (!(stop >= start)) continue;
    if (start > reached) idle.push({ parent: p, before: child, from: reached, to: start });
    const joined = waiting.at(-1);
    if (joined && start <= joined.to) joined.to = Math.max(joined.to, stop);
    else waiting.push({ from: start, to: stop });
    reached = Math.max(reached, stop);
  }
  if (to > reached) idle.push({ parent: p, before: end, from: reached, to });
  return { idle, waiting };
}

/**
 * The chain of work that the run's end waited for, found backwards from the end: in each span the
 * child that ended last, before it the child that ended last before that one's start, and so on.
 *
 * @returns {{segments: Array<{p, from, to}>, parts: Map<number, Array>, time: Map<number, number>,
 *   total: number}} `segments` cover the run without overlap, with TREE_RUN where no span was
 *   active; `parts`: those of each span on the path; `time`: their milliseconds
 */
export function criticalPath(tree, now = tree.to) {
  const segments = [];
  const parts = new Map();
  const time = new Map();
  const own = (p, from, to) => {
    if (!(to > from)) return; // NaN: nothing has started
    const segment = { p, from, to };
    segments.push(segment);
    if (!parts.has(p)) parts.set(p, []);
    parts.get(p).push(segment);
    time.set(p, (time.get(p) ?? 0) + to - from);
  };
  const end = tree.spans.some((span) => span.status === "active") ? now : tree.to;
  const stack = [{ p: TREE_RUN, from: tree.from, to: end }];
  while (stack.length > 0) {
    const { p, from, to } = stack.pop();
    const children = treeChildren(tree, p)
      .map((child) => ({ child, stop: Math.min(to, endAt(tree, child, now)) }))
      .sort((a, b) => b.stop - a.stop);
    let reached = to;
    for (const { child, stop } of children) {
      const start = Math.max(from, tree.spans[child].start);
      if (!(stop > start) || stop > reached) continue;
      own(p, stop, reached);
      stack.push({ p: child, from: start, to: stop });
      reached = start;
    }
    own(p, from, reached);
  }
  segments.sort((a, b) => a.from - b.from);
  return { segments, parts, time, total: Math.max(0, end - tree.from) };
}

/** Return a function that makes a span of a row. It parses each minute once: a run has few. */
function treeReader() {
  let minute = null;
  let base = NaN;
  const time = (iso) => {
    if (iso?.length !== 27) return msOf(iso); // NaN for null
    if (!iso.startsWith(minute)) {
      minute = iso.slice(0, 17);
      base = msOf(`${minute}00Z`);
    }
    return base + Number(iso.slice(17, 26)) * 1000;
  };
  return ([id, parent, name, status, from, to, flags, error, tokens, cost, size, label]) => {
    const [start, end] = [time(from), time(to)];
    return { id, parent, name, status, start, end, flags, error, tokens, cost, size, label };
  };
}

function treeBelow(tree, p) {
  return p === TREE_RUN ? [0, tree.spans.length] : [p + 1, tree.last[p]];
}

/** The positions of the direct children of `p`, in the order of their starts. */
function treeChildren(tree, p) {
  const children = [];
  const [first, end] = treeBelow(tree, p);
  for (let child = first; child < end; child = tree.last[child]) children.push(child);
  return children;
}

function treePlaceGaps(tree, p, now, least, waiting) {
  for (const gap of gaps(tree, p, now).idle) {
    // The last gap of an active span is still open: it would come and go while it is read.
    const open = gap.before === tree.last[p] && tree.spans[p].status === "active";
    if (open || gap.to - gap.from < least) continue;
    const there = waiting.get(gap.before) ?? [];
    there.unshift(gap); // of gaps at one place the innermost is placed last, and stands first
    waiting.set(gap.before, there);
  }
}

function treeExtend(tree, { start, end }) {
  if (start < tree.from || Number.isNaN(tree.from)) tree.from = start;
  if (start > tree.to || Number.isNaN(tree.to)) tree.to = start;
  if (end > tree.to) tree.to = end;
}

function treeOf(spans) {
  const at = new Map(); // the index of each span, then its position
  for (let i = 0; i < spans.length; i += 1) at.set(spans[i].id, i);
  const parents = treeParents(spans, at);
  const sorted = treeByStart(spans);
  let tree = treeWalk(spans, parents, sorted, at);
  if (tree.spans.length < spans.length) {
    // Spans in a circle, and those below them, are reached from no top span: make them top spans.
    const reached = new Set(tree.spans);
    spans.forEach((span, i) => {
      if (!reached.has(span)) parents[i] = spans.length;
    });
    tree = treeWalk(spans, parents, sorted, at);
  }
  for (const span of spans) treeExtend(tree, span);
  return tree;
}

/** The index of each span's parent; `spans.length` stands for the run. */
function treeParents(spans, index) {
  const count = spans.length;
  return Int32Array.from(spans, (span, i) => {
    const parent = index.get(span.parent) ?? count;
    return parent === i ? count : parent;
  });
}

function treeByStart(spans) {
  const starts = Float64Array.from(spans, ({ start }) => (Number.isNaN(start) ? Infinity : start));
  const sorted = Array.from(spans.keys());
  return sorted.sort((a, b) => {
    if (starts[a] === starts[b]) return spans[a].id < spans[b].id ? -1 : 1;
    return starts[a] < starts[b] ? -1 : 1;
  });
}

/** The first child and the next sibling of each span, by index, and how many children it has. */
function treeLinks(parents, sorted) {
  const count = sorted.length;
  const first = new Int32Array(count + 1).fill(-1);
  const next = new Int32Array(count + 1).fill(-1);
  const families = new Int32Array(count + 1);
  for (let k = count - 1; k >= 0; k -= 1) {
    const i = sorted[k];
    next[i] = first[parents[i]];
    first[parents[i]] = i;
    families[parents[i]] += 1;
  }
  return { first, next, families };
}

/** Place the spans that are below the run, depth first. */
function treeWalk(spans, parents, sorted, at) {
  const count = spans.length;
  const { first, next, families } = treeLinks(parents, sorted);
  const tree = {
    spans: [],
    at,
    parent: new Int32Array(count),
    depth: new Int32Array(count),
    last: new Int32Array(count),
    rank: new Int32Array(count),
    siblings: new Int32Array(count),
    from: NaN,
    to: NaN,
  };
  const place = new Int32Array(count + 1).fill(TREE_RUN); // position by index
  let i = first[count];
  let rank = 1;
  while (i !== -1) {
    const p = tree.spans.length;
    const above = place[parents[i]];
    tree.spans.push(spans[i]);
    at.set(spans[i].id, p);
    tree.parent[p] = above;
    tree.depth[p] = above === TREE_RUN ? 0 : tree.depth[above] + 1;
    tree.rank[p] = rank;
    tree.siblings[p] = families[parents[i]];
    place[i] = p;
    rank += 1;
    if (first[i] !== -1) {
      i = first[i];
      rank = 1;
      continue;
    }
    while (i !== count && next[i] === -1) {
      tree.last[place[i]] = tree.spans.length;
      i = parents[i];
    }
    if (i === count) break;
    tree.last[place[i]] = tree.spans.length;
    rank = tree.rank[place[i]] + 1;
    i = next[i];
  }
  return tree;
}
