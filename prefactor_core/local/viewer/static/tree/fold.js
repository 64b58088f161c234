/**
 * Fold and unfold the rows of a tree. `folded` holds the ids of the spans whose children are
 * hidden.
 */
import { ancestorsOf } from "./tree.js";

/** Unfold the ancestors of `p`. Return true if one was folded. */
export function reveal(tree, folded, p) {
  let changed = false;
  for (const ancestor of ancestorsOf(tree, p)) {
    changed = folded.delete(tree.spans[ancestor].id) || changed;
  }
  return changed;
}

/** Fold the deepest level that is open. */
export function foldLevel(tree, folded, rows) {
  let deepest = -1;
  for (const row of rows) {
    if (typeof row === "number" && foldIsOpen(tree, folded, row)) {
      deepest = Math.max(deepest, tree.depth[row]);
    }
  }
  for (const row of rows) {
    if (typeof row !== "number" || tree.depth[row] !== deepest) continue;
    if (foldIsOpen(tree, folded, row)) folded.add(tree.spans[row].id);
  }
}

/** Unfold the topmost level that has a folded row. */
export function unfoldLevel(tree, folded, rows) {
  const closed = rows.filter((row) => folded.has(tree.spans[row]?.id));
  const top = closed.reduce((least, p) => Math.min(least, tree.depth[p]), Infinity);
  for (const p of closed) if (tree.depth[p] === top) folded.delete(tree.spans[p].id);
}

function foldIsOpen(tree, folded, p) {
  return tree.last[p] > p + 1 && !folded.has(tree.spans[p].id);
}
