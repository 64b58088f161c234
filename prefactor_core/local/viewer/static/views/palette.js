/**
 * The colours of the style sheet, for canvases.
 */
import { h } from "../elements/dom.js";

const paletteNames = {
  llm: "--kind-llm",
  tool: "--kind-tool",
  retrieval: "--kind-retrieval",
  agent: "--kind-agent",
  chain: "--kind-chain",
  other: "--kind-other",
  failed: "--status-failed",
  cancelled: "--status-cancelled",
  active: "--status-active",
  hit: "--warn",
  accent: "--accent",
  critical: "--critical",
  fg: "--fg",
  bg: "--bg",
  muted: "--muted",
  line: "--line",
};

/** Call `draw` when the colours have changed: another theme. */
export function watchTheme(draw) {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const observer = new MutationObserver(draw);
  observer.observe(document.documentElement, { attributeFilter: ["data-theme"] });
  dark.addEventListener("change", draw);
  return {
    close() {
      observer.disconnect();
      dark.removeEventListener("change", draw);
    },
  };
}

/** Return the colours as they are at `element` now, in the light or the dark theme. */
export function palette(element) {
  // A custom property itself reads as `light-dark(…)`; the colour of an element is resolved.
  const probe = h("span", { hidden: true });
  element.append(probe);
  const colours = {};
  for (const [name, property] of Object.entries(paletteNames)) {
    probe.style.color = `var(${property})`;
    colours[name] = getComputedStyle(probe).color;
  }
  probe.remove();
  return colours;
}
