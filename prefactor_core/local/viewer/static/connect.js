/**
 * The page `/cli/connect`, which the vendor's command line opens for a login: which token works.
 */
import { copyButton, h, replace } from "./elements/dom.js";

const CONNECT_TOKEN = "local";

/** Open the page in `root`. */
export function openConnect(root, location, context) {
  const { url } = context.about;
  context.setTitle("Connect the command line");
  context.setCrumbs([{ text: "Runs", href: "/" }, { text: "Connect the command line" }]);
  replace(root, h("div", { class: "notice" },
    h("h1", null, "Connect the command line"),
    h("p", null, "This server is on your machine. It has no accounts, and every token works; ",
      "give it this one:"),
    connectCopied(CONNECT_TOKEN),
    h("p", null, "Only a server that was started with ", h("code", null, "--token"),
      " takes that token and no other."),
    h("p", null, "For agents, set both in the environment:"),
    connectCopied(`PREFACTOR_API_URL=${url}`),
    connectCopied(`PREFACTOR_API_TOKEN=${CONNECT_TOKEN}`),
    h("p", { class: "muted" }, "Nothing leaves this machine.")));
  return { close() {}, update() {}, keys: { Escape: () => context.navigate("/") } };
}

function connectCopied(text) {
  return h("pre", { tabindex: "0" }, h("code", null, text), copyButton(() => text));
}
