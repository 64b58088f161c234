/**
 * A button that opens a small panel below it.
 */
import { h, replace } from "./dom.js";

const menuMargin = 12; // px between a panel and the edge of the window

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
  // A panel that would leave the window moves to the left; again when it is filled later.
  const resized = new ResizeObserver(() => {
    panel.style.translate = "none";
    const room = document.documentElement.clientWidth - menuMargin;
    panel.style.translate = `${Math.min(0, room - panel.getBoundingClientRect().right)}px`;
  });
  element.addEventListener("toggle", () => {
    document.removeEventListener("pointerdown", close);
    resized.disconnect();
    if (!element.open) return replace(panel);
    document.addEventListener("pointerdown", close);
    fill(panel);
    resized.observe(panel);
  });
  element.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !element.open) return;
    event.stopPropagation();
    element.open = false;
    summary.focus();
  });
  return { element, summary };
}
