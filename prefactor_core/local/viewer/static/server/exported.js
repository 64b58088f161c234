/**
 * An exported file: the page of one run with the answers of the server in it.
 */

let exportedAnswers = null;

/** Return whether this page is an exported file, which has no server. */
export function isExport() {
  return document.getElementById("data") !== null;
}

/** Return the path of the run that the file holds: `/runs/{id}`. */
export function exportedRun() {
  return Object.keys(exportedPaths())
    .find((path) => /^\/-\/runs\/[^/]+$/.test(path))
    .slice("/-".length);
}

/** Return the answer to `path`, or undefined if the file does not hold it. */
export function exportedAnswer(path) {
  const { pathname, searchParams } = new URL(path, "http://export.invalid");
  const search = /^\/-\/runs\/([^/]+)\/search$/.exec(pathname);
  if (search !== null) return exportedSearch(search[1], searchParams.get("q"));
  if (pathname === "/-/spans") return exportedPayloads(searchParams.get("ids").split(","));
  return exportedPaths()[path];
}

/** The answers by path. Many megabytes of JSON, so they are parsed once. */
function exportedPaths() {
  exportedAnswers ??= JSON.parse(document.getElementById("data").textContent).paths;
  return exportedAnswers;
}

/** The payloads and results of spans. */
function exportedPayloads(ids) {
  const answers = ids.map((id) => exportedPaths()[`/-/spans/${id}`]).filter(Boolean);
  const spans = answers.map(({ span: { id, payload_text, result_text } }) => {
    return { id, payload_text, result_text };
  });
  return { spans, left: [] };
}

/** Search names, labels, errors, payloads and results of the spans. */
function exportedSearch(run, query) {
  const answers = exportedPaths();
  const wanted = query.toLowerCase();
  const { fields, rows } = answers[`/-/runs/${run}/skeleton`];
  const columns = ["name", "error", "label"].map((name) => fields.indexOf(name));
  const [id, start] = [fields.indexOf("id"), fields.indexOf("start")];
  const hits = rows.filter((row) => {
    const span = answers[`/-/spans/${row[id]}`]?.span;
    const texts = [...columns.map((i) => row[i]), span?.payload_text, span?.result_text];
    return texts.some((text) => text?.toLowerCase().includes(wanted));
  });
  hits.sort((a, b) => ((a[start] ?? "") < (b[start] ?? "") ? -1 : 1));
  return { spans: hits.map((row) => row[id]), more: false };
}
