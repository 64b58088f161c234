/**
 * A button that opens a small panel below it.
 */
import { h, replace } from "./dom.js";

/**
 * Return a panel that opens and closes by its label, and closes by Escape or a click elsewhere.
 *
 * @param {string} label for a screen reader
 * @param {(panel: HTMLElement) => void} fill called each time it opens
 * @returns {{element: HTMLElement, summary: HTMLElement}} the caller fills `summary`
 */
export function menu(label, fill) {
  const summary = h("summary", { aria: { label } });
  const panel = h("div", { class: "menu-panel overlay" });
  const element = h("details", { class: "menu" }, summary, panel);
  const close = (event) => {
    if (!element.contains(event.target)) element.open = false;
  };
  element.addEventListener("toggle", () => {
    document.removeEventListener("pointerdown", close);
    if (!element.open) return replace(panel);
    document.addEventListener("pointerdown", close);
    fill(panel);
  });
  element.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !element.open) return;
    event.stopPropagation();
    element.open = false;
    summary.focus();
  });
  return { element, summary };
}
