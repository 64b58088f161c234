/**
 * The page `/cli/connect`, which the vendor's command line opens for a login: which token works.
 */
import { copyButton, h, replace } from "./elements/dom.js";

/** Open the page in `root`. */
export function openConnect(root, location, context) {
  const { url, needs_token: needsToken } = context.about;
  const token = needsToken ? "<the token of the server>" : "local";
  context.setTitle("Connect the command line");
  context.setCrumbs([{ text: "Runs", href: "/" }, { text: "Connect the command line" }]);
  replace(root, h("div", { class: "notice" },
    h("h1", null, "Connect the command line"),
    needsToken
      ? h("p", null, "This server has no accounts. It takes the token that it was started with, ",
        "after ", h("code", null, "--token"), ", and no other.")
      : [h("p", null, "This server has no accounts, and every token works; give it this one:"),
        connectCopied(token)],
    h("p", null, "For agents, set both in the environment:"),
    connectCopied(`PREFACTOR_API_URL=${url}`),
    connectCopied(`PREFACTOR_API_TOKEN=${token}`),
    h("p", { class: "muted" }, "Nothing leaves this machine.")));
  return { close() {}, update() {}, keys: { Escape: () => context.navigate("/") } };
}

function connectCopied(text) {
  return h("pre", { tabindex: "0" }, h("code", null, text), copyButton(() => text));
}
