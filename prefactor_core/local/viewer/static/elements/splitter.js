/**
 * A line between two parts of the page that is dragged, or moved by the arrow keys.
 */
import { h } from "./dom.js";
import { remember, remembered } from "./storage.js";

const splitterKey = "prefactor.panel";
const splitterLeast = 280; // px

/** Return the line on the left of `panel`, whose width it changes and remembers. */
export function splitter(panel) {
  const line = h("div", {
    class: "splitter",
    role: "separator",
    tabindex: "0",
    aria: { orientation: "vertical", label: "Width of the span", valuemin: 20, valuemax: 80 },
  });
  const set = (width) => {
    const whole = panel.parentElement?.clientWidth || window.innerWidth;
    const limited = Math.min(Math.max(width, splitterLeast), whole * 0.8);
    panel.style.flexBasis = `${limited}px`;
    line.setAttribute("aria-valuenow", String(Math.round((100 * limited) / whole)));
    remember(splitterKey, String(limited));
  };
  const move = (event) => set(panel.getBoundingClientRect().right - event.clientX);
  line.addEventListener("pointerdown", (event) => {
    line.setPointerCapture(event.pointerId);
    line.addEventListener("pointermove", move);
  });
  line.addEventListener("lostpointercapture", () => line.removeEventListener("pointermove", move));
  line.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: 24, ArrowRight: -24 }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    set(panel.getBoundingClientRect().width + by);
  });
  const known = Number(remembered(splitterKey));
  if (known > 0) panel.style.flexBasis = `${known}px`;
  line.setAttribute("aria-valuenow", "40");
  return line;
}
