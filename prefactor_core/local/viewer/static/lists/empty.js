/**
 * The first screen of a file without runs: what to do.
 */
import { copyButton, h } from "../elements/dom.js";

/** Return the notice for a file without runs. */
export function emptyRuns(about) {
  const { database, path, url, read_only: readOnly, needs_token: needsToken } = about;
  if (readOnly) {
    return h("div", { class: "notice" },
      h("h2", null, `No runs in ${database}`),
      h("p", null, "The file is open for reading only, so it stays empty here: ",
        h("code", null, path)));
  }
  const file = emptyQuoted(`local:${path}`);
  const demo = `python -m prefactor_core demo --slow --no-serve --api-url ${file}`;
  const python = `open_prefactor(api_url="local:${path}")`;
  const token = needsToken ? "<the token of the server>" : "local";
  const server = `PREFACTOR_API_URL=${url}\nPREFACTOR_API_TOKEN=${token}`;
  return h(
    "div",
    { class: "notice" },
    h("h2", null, `No runs yet in ${database}`),
    h("p", null, "Start one. It opens here by itself."),
    emptyWay("See a sample agent work for 20 seconds:", demo),
    emptyWay("Or write the file from your agent:", python),
    emptyWay("Or send the spans to this server:", server),
    h("p", { class: "muted" }, "Nothing leaves this machine."),
  );
}

function emptyWay(text, command) {
  return h("div", { class: "way" },
    h("p", null, text),
    h("pre", { tabindex: "0" }, h("code", null, command), copyButton(() => command)));
}

function emptyQuoted(word) {
  return /^[\w.:/-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}
