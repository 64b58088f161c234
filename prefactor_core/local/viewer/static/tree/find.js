/**
 * Hits of a search in a run, failed spans, and the way from one to the next.
 */

/** Return the positions of spans whose name, label, error or id holds `text`, in tree order. */
export function localHits(tree, text) {
  const wanted = text.trim().toLowerCase();
  const hits = [];
  if (wanted === "") return hits;
  tree.spans.forEach(({ name, label, error, id }, p) => {
    const found = [name, label, error, id].some((part) => part?.toLowerCase().includes(wanted));
    if (found) hits.push(p);
  });
  return hits;
}

/** Return positions of ids in tree order; ids that the tree does not know (yet) are left out. */
export function positionsOf(tree, ids) {
  return ids
    .map((id) => tree.at.get(id))
    .filter((p) => p !== undefined)
    .sort((a, b) => a - b);
}

/** Return the positions of the failed spans. */
export function failedSpans(tree) {
  const failed = [];
  tree.spans.forEach(({ status }, p) => {
    if (status === "failed") failed.push(p);
  });
  return failed;
}

/**
 * Return the entry of `positions` (ascending) after `p`, or before it when `step` is -1. The last
 * is followed by the first. `p` may be null: then the first (or last) entry; null when none.
 */
export function nextOf(positions, p, step) {
  if (positions.length === 0) return null;
  if (p === null) return step > 0 ? positions[0] : positions.at(-1);
  if (step > 0) return positions.find((candidate) => candidate > p) ?? positions[0];
  return positions.findLast((candidate) => candidate < p) ?? positions.at(-1);
}
