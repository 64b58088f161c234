/**
 * The state of the run page: the run, its tree, and how the reader looks at it. No DOM; the views
 * draw from it.
 */
import { msOf } from "../values/format.js";
import { SILENT_AFTER, isOpen } from "../values/status.js";
import { failedSpans, positionsOf } from "./find.js";
import { reveal } from "./fold.js";
import { roundedUp } from "./timeline.js";
import { TREE_RUN, applyChanges, criticalPath, gaps, visibleRows } from "./tree.js";

const modelLeastGap = 0.02; // of the run's length
const modelLeastLiveGap = 250; // ms; while a run grows, rows must not go because the scale changed

export class RunModel {
  /** @param {() => number} clock the server's time in milliseconds since 1970 */
  constructor(run, tree, clock) {
    this.run = run;
    this.tree = tree;
    this.clock = clock;
    this.folded = new Set();
    this.only = null; // id of the span whose path alone is shown
    this.selected = null; // id
    this.cursor = null; // id of the row that the keyboard is at, even when none is selected
    this.view = null; // the window of time that is shown; null: all
    this.showPath = false;
    this.hitIds = [];
    this.deleted = false; // by the server, while the page shows it
    this.version = 0; // counts changes of the tree
    this.arrange();
  }

  /** Work out again all that depends on the tree, on folds and on hits. */
  arrange() {
    this.version += 1;
    const { from, to } = this.domain();
    const shortest = isOpen(this.run.status) ? modelLeastLiveGap : 1;
    const least = Math.max(shortest, (to - from) * modelLeastGap);
    const only = this.tree.at.get(this.only) ?? null;
    if (only === null) this.only = null;
    this.rows = visibleRows(this.tree, this.folded, { only, now: this.now(), least });
    this.rowIndex = new Int32Array(this.tree.spans.length).fill(-1);
    this.rows.forEach((row, index) => {
      if (typeof row === "number") this.rowIndex[row] = index;
    });
    this.cursorIndex = this.rowNear(this.tree.at.get(this.cursor) ?? 0);
    this.markHits();
    this.failed = failedSpans(this.tree);
    this.active = this.tree.spans.some((span) => span.status === "active");
    this.path = this.showPath ? criticalPath(this.tree, this.now()) : null;
    this.waits = new Map();
  }

  /** Find the positions of the hits. */
  markHits() {
    this.hits = new Set(positionsOf(this.tree, this.hitIds));
  }

  /** Take changed rows. Return the ids of new spans. */
  apply(rows) {
    const { tree, added } = applyChanges(this.tree, rows);
    this.tree = tree;
    this.arrange();
    return added;
  }

  /** Milliseconds since the run last wrote anything; 0 if it has ended. */
  silence() {
    if (!isOpen(this.run.status)) return 0;
    return Math.max(0, this.clock() - msOf(this.run.last_activity_at ?? this.run.inserted_at));
  }

  /** True while bars grow: a span is active, and the run is open and was heard of lately. */
  grows() {
    if (!this.active || !isOpen(this.run.status)) return false;
    const heard = msOf(this.run.last_activity_at ?? this.run.inserted_at);
    return !(this.clock() - heard > SILENT_AFTER);
  }

  /** The time up to which active spans are known to have run. */
  now() {
    // The agent's clock may be ahead of the server's.
    const known = this.grows() ? this.clock() : msOf(this.run.last_activity_at);
    return known > this.tree.to ? known : this.tree.to;
  }

  /** The times from the run's first start to its end; on a tick ahead while it grows. */
  domain() {
    const { from } = this.tree;
    if (Number.isNaN(from)) return { from: 0, to: 1000 };
    if (this.grows()) return { from, to: from + roundedUp(Math.max(1000, this.now() - from)) };
    const to = this.active ? this.now() : this.tree.to;
    return { from, to: Math.max(to, from + 0.01) };
  }

  /** The window of time that is shown. */
  window() {
    return this.view ?? this.domain();
  }

  /** What rows need to place their bars: the window, and the present time. */
  sight() {
    const { from, to } = this.window();
    return { from, to, now: this.now() };
  }

  /** The position of the selected span, or null. */
  position() {
    return this.tree.at.get(this.selected) ?? null;
  }

  /** Mark the span `id`, or with null none. */
  select(id) {
    this.selected = id;
    this.cursor = id ?? this.cursor;
    this.cursorIndex = this.rowNear(this.tree.at.get(this.cursor) ?? 0);
  }

  /** The index of the row of the span `id`, or -1 if the span has none. */
  rowOf(id) {
    return this.rowIndex[this.tree.at.get(id)] ?? -1;
  }

  /** The index of the row of `p`, or of its nearest ancestor that has one; 0 if none has. */
  rowNear(p) {
    let at = p;
    while (at > TREE_RUN && !(this.rowIndex[at] >= 0)) at = this.tree.parent[at];
    return this.rowIndex[at] ?? 0;
  }

  /** Make the row of the span at `p` visible: unfolds its ancestors, leaves another path. */
  reveal(p) {
    const unfolded = reveal(this.tree, this.folded, p);
    if (!unfolded && this.rowIndex[p] >= 0) return;
    if (!unfolded || !this.onPath(p)) this.only = null;
    this.arrange();
  }

  /** True if `p` is shown when only the path of `only` is. */
  onPath(p) {
    const only = this.tree.at.get(this.only);
    if (only === undefined) return true;
    return (p >= only && p < this.tree.last[only]) || (p < only && this.tree.last[p] > only);
  }

  /**
   * The times in which the span at `p` waited for a child, in order; `to` is Infinity while the
   * child is active.
   */
  waitsOf(p) {
    let waits = this.waits.get(p);
    if (waits === undefined) {
      waits = gaps(this.tree, p, Infinity).waiting;
      this.waits.set(p, waits);
    }
    return waits;
  }
}
