/**
 * The line below the tree that names colours and patterns.
 */
import { h } from "../elements/dom.js";

const legendEntries = [
  ["kind-llm", "LLM"],
  ["kind-tool", "tool"],
  ["kind-retrieval", "retrieval"],
  ["kind-agent", "agent"],
  ["kind-chain", "chain"],
  ["kind-other", "other"],
  ["kind-agent waiting", "waiting for a child"],
  ["idle", "idle: no step active"],
  ["kind-agent active", "active"],
];

/** Return the legend. */
export function legend() {
  const entries = legendEntries.map(([kind, text]) =>
    h("span", { class: kind }, h("i", { "aria-hidden": "true" }), text),
  );
  return h("div", { class: "legend" }, entries);
}
