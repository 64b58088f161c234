/**
 * A run while it goes on: changes from the server, and the time that passes.
 */
import { subscribe } from "../server/events.js";

const liveRest = 4; // changes are applied at most a fifth of the time

/**
 * Follow the changes of a run. Changes that come while others are applied are applied together.
 *
 * @param {number} revision of the skeleton that the page shows
 * @param {(rows: Array<Array>, run: object|null) => void} apply
 * @param {() => void} onDeleted called when the server no longer has the run
 * @returns {{close: () => void}}
 */
export function followRun(id, revision, apply, onDeleted) {
  const rows = new Map();
  let run = null;
  let timer = null;
  const flush = () => {
    timer = null;
    if (run === null && rows.size === 0) return;
    const begun = performance.now();
    const changed = [...rows.values()];
    const newest = run;
    rows.clear();
    run = null;
    apply(changed, newest);
    timer = setTimeout(flush, liveRest * (performance.now() - begun));
  };
  const take = (changed, newest) => {
    for (const row of changed) rows.set(row[0], row);
    run = newest ?? run;
    timer ??= setTimeout(flush);
  };
  const subscription = subscribe(
    { run: id, after: revision },
    {
      onRuns: ({ runs }) => {
        const row = runs.find((candidate) => candidate.id === id);
        if (row) take([], row);
      },
      onSpans: (changes) => take(changes.rows, changes.run ?? null),
      onDeleted,
    },
  );
  return {
    close() {
      clearTimeout(timer);
      timer = -1; // a change on its way starts no timer
      subscription.close();
    },
  };
}

/**
 * Call `draw` for each frame while `active()` is true and the page is seen; once a second where
 * the reader wants less motion.
 */
export class Frames {
  constructor(active, draw) {
    this.active = active;
    this.draw = draw;
    this.calm = window.matchMedia("(prefers-reduced-motion: reduce)");
    this.frame = null;
    this.onSeen = () => this.wake();
    document.addEventListener("visibilitychange", this.onSeen);
  }

  /** Start to draw if there is something to draw. */
  wake() {
    if (this.frame !== null || this.closed || document.hidden || !this.active()) return;
    this.frame = requestAnimationFrame(() => this.step());
  }

  step() {
    this.frame = null;
    if (this.closed) return;
    this.draw();
    if (this.calm.matches) setTimeout(() => this.wake(), 1000);
    else this.wake();
  }

  close() {
    this.closed = true;
    cancelAnimationFrame(this.frame);
    document.removeEventListener("visibilitychange", this.onSeen);
  }
}
