/**
 * What this browser remembers of the reader's choices. A page without storage (an exported file, a
 * private window) remembers nothing, and a full storage nothing new.
 */

/** Return what `remember` stored under `key`, or null. */
export function remembered(key) {
  try {
    return localStorage.getItem(key);
  } catch {
    return null;
  }
}

/** Store the text `value` under `key`, if the browser lets it. */
export function remember(key, value) {
  try {
    localStorage.setItem(key, value);
  } catch {
    // The choice holds until the page is closed.
  }
}
