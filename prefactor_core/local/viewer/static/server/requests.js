/**
 * Read the server: requests, and the live stream of what changed.
 *
 * A browser opens few connections to one server, so its tabs share one stream of events. The tab
 * that holds a Web Lock reads the stream and passes the events on by a BroadcastChannel. A hidden
 * tab gives the lock back. Where Web Locks are missing (a page from another address than this
 * machine, without TLS), each tab reads a stream of its own.
 *
 * The stream tells only which runs changed. A tab that shows a run then asks for the changed spans
 * by revision, so nothing is lost when it was hidden or offline.
 */

import { msOf } from "../values/format.js";

/** An answer of the server that is not a success. */
export class ApiFailure extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** Return whether this page is an exported file, which holds its data and has no server. */
export function isExport() {
  return document.getElementById("data") !== null;
}

/**
 * Return the JSON of `path`; in an exported file, from the data in it.
 * @throws {ApiFailure} status 0 when the server does not answer
 */
export async function get(path, { signal } = {}) {
  if (isExport()) return dataEmbedded(path);
  return dataRequest(path, { signal });
}

/** Return what the server says about itself: `/-/about`. Its time sets the clock of `now`. */
export async function about() {
  const facts = await get("/-/about");
  const time = msOf(facts.time);
  const ahead = time - Date.now();
  dataClock = isExport() ? () => time : () => Date.now() + ahead;
  return facts;
}

/**
 * Return the server's time in milliseconds since 1970, by which active steps grow; in an exported
 * file, the time of the export.
 */
export function now() {
  return dataClock();
}

/** Ask the server to terminate a run: POST /api/v1/agent_instance/{id}/terminate. */
export async function postTerminate(id, reason) {
  return dataPost(`/api/v1/agent_instance/${encodeURIComponent(id)}/terminate`, { reason });
}

/** Hand over the token of this server; the answer sets a cookie that scripts cannot read. */
export async function postLogin(token) {
  return dataPost("/-/login", { token });
}

/**
 * Follow the changes of all runs, and of the spans of the run `run`.
 *
 * `onRuns({runs, total, revision})` gets the rows of changed runs. `onSpans({revision, fields,
 * rows, run})` gets the changed spans of `run` since the revision `after` (that of the skeleton
 * which the caller shows). `onState(state)` gets "live", "connecting" or "paused". Rows may come
 * twice; a newer revision replaces an older one.
 *
 * @param {{run?: string, after?: number}} topic
 * @param {{onRuns?: Function, onSpans?: Function, onState?: Function}} handlers
 * @returns {{close: () => void}}
 */
export function subscribe({ run = null, after = null }, handlers) {
  if (isExport()) return { close() {} };
  const subscription = { run, after, seen: after, handlers, busy: false, again: false };
  dataStream ??= new DataStream();
  dataStream.add(subscription);
  return { close: () => dataStream.remove(subscription) };
}

async function dataRequest(path, options) {
  let response;
  try {
    response = await fetch(path, { credentials: "same-origin", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiFailure(0, "unreachable", "The server does not answer. Is it still running?");
  }
  const text = await response.text();
  if (response.ok) return text === "" ? null : JSON.parse(text);
  throw dataFailure(response.status, text);
}

function dataFailure(status, text) {
  try {
    const { code, message, errors = {} } = JSON.parse(text);
    const fields = Object.entries(errors).map(([name, error]) => `${name} ${error.message}`);
    return new ApiFailure(status, code, [message ?? code, ...fields].join(": "));
  } catch {
    return new ApiFailure(status, "unknown", `The server answered ${status}.`);
  }
}

function dataPost(path, body) {
  const headers = { "Content-Type": "application/json" };
  return dataRequest(path, { method: "POST", headers, body: JSON.stringify(body) });
}

let dataClock = Date.now;
let dataFile = null;

function dataEmbedded(path) {
  dataFile ??= JSON.parse(document.getElementById("data").textContent).paths;
  const search = /^\/-\/runs\/([^/]+)\/search\?(.*)$/.exec(path);
  if (search !== null) return dataSearch(search[1], new URLSearchParams(search[2]).get("q") ?? "");
  if (path in dataFile) return dataFile[path];
  throw new ApiFailure(404, "not_found", "This file does not hold it.");
}

/** Search the spans of an exported file: names, labels, errors, payloads and results. */
function dataSearch(run, query) {
  const wanted = query.toLowerCase();
  const { fields, rows } = dataFile[`/-/runs/${run}/skeleton`];
  const columns = ["name", "error", "label"].map((name) => fields.indexOf(name));
  const [id, start] = [fields.indexOf("id"), fields.indexOf("start")];
  const hits = rows.filter((row) => {
    const span = dataFile[`/-/spans/${row[id]}`]?.span;
    const texts = [...columns.map((i) => row[i]), span?.payload_text, span?.result_text];
    return texts.some((text) => text?.toLowerCase().includes(wanted));
  });
  hits.sort((a, b) => ((a[start] ?? "") < (b[start] ?? "") ? -1 : 1));
  return { spans: hits.map((row) => row[id]), more: false };
}

let dataStream = null;

/** The shared stream: leader or listener, with the subscriptions of this tab. */
class DataStream {
  constructor() {
    this.subscriptions = new Set();
    this.revision = null;
    this.state = "connecting";
    this.source = null;
    this.release = null;
    this.waiting = null;
    this.channel = null;
    if (navigator.locks && window.BroadcastChannel) {
      this.channel = new BroadcastChannel("prefactor");
      this.channel.onmessage = (event) => this.heard(event.data);
    }
    document.addEventListener("visibilitychange", () => this.refresh());
    window.addEventListener("pagehide", () => this.pause());
    window.addEventListener("pageshow", () => this.refresh());
  }

  add(subscription) {
    this.subscriptions.add(subscription);
    subscription.handlers.onState?.(this.state);
    const seen = subscription.after;
    // The stream may have passed on, before this subscription, what its caller has not seen.
    const behind = seen !== null && (this.revision === null || seen < this.revision);
    if (behind) this.revision = seen;
    if (behind && this.source !== null) this.read();
    this.refresh();
  }

  remove(subscription) {
    this.subscriptions.delete(subscription);
    if (this.subscriptions.size === 0) this.pause();
  }

  /** Read or listen while this tab is seen and something is followed; pause otherwise. */
  refresh() {
    if (document.hidden || this.subscriptions.size === 0) return this.pause();
    if (this.source !== null) return this.catchUp();
    if (this.channel === null) return this.read();
    // A leader may have passed on events before this tab listened: it repeats them.
    this.channel.postMessage({ kind: "hello", revision: this.revision });
    this.catchUp();
    if (this.waiting === null) this.wait();
  }

  /** Wait for the lock of the reader, and read until `pause`. */
  wait() {
    this.waiting = new AbortController();
    const { signal } = this.waiting;
    const lead = () =>
      new Promise((release) => {
        this.release = release;
        this.read();
      });
    navigator.locks.request("prefactor-events", { signal }, lead).catch(() => {});
  }

  pause() {
    if (this.source === null && this.waiting === null) return;
    this.waiting?.abort();
    this.waiting = null;
    this.source?.close();
    this.source = null;
    this.release?.();
    this.release = null;
    this.changeState("paused");
  }

  read() {
    this.source?.close();
    const after = this.revision === null ? "" : `?after=${this.revision}`;
    const source = new EventSource(`/-/events${after}`);
    this.source = source;
    source.onopen = () => this.tell({ kind: "state", state: "live" });
    source.onerror = () => this.failed(source);
    source.addEventListener("runs", (event) => {
      this.tell({ kind: "runs", data: JSON.parse(event.data) });
    });
  }

  /** The browser connects again by itself, but not after an answer that is no stream. */
  failed(source) {
    this.tell({ kind: "state", state: "connecting" });
    if (source.readyState !== EventSource.CLOSED) return;
    setTimeout(() => {
      if (this.source === source) this.read();
    }, 2000);
  }

  /** Handle a message as the reader of the stream, and pass it on to the other tabs. */
  tell(message) {
    this.channel?.postMessage(message);
    this.handle(message);
  }

  heard(message) {
    if (message.kind === "hello") return this.greeted(message.revision);
    if (this.source === null && this.waiting !== null) this.handle(message);
  }

  /** Tell a new tab the state; read again from its revision if it is behind. */
  greeted(revision) {
    if (this.source === null) return;
    if (revision !== null && this.revision !== null && revision < this.revision) {
      this.revision = revision;
      this.read();
    } else {
      this.channel.postMessage({ kind: "state", state: this.state });
    }
  }

  handle(message) {
    if (message.kind === "state") {
      this.changeState(message.state);
      if (message.state === "live") this.catchUp();
      return;
    }
    this.changeState("live");
    const { data } = message;
    this.revision = Math.max(this.revision ?? 0, data.revision);
    for (const subscription of this.subscriptions) {
      subscription.handlers.onRuns?.(data);
      const row = data.runs.find((candidate) => candidate.id === subscription.run);
      if (row !== undefined) this.readSpans(subscription);
    }
  }

  changeState(state) {
    if (state === this.state) return;
    this.state = state;
    for (const { handlers } of this.subscriptions) handlers.onState?.(state);
  }

  catchUp() {
    for (const subscription of this.subscriptions) this.readSpans(subscription);
  }

  /** Read the changed spans of a subscription: one request at a time, and once more if needed. */
  async readSpans(subscription) {
    if (subscription.run === null || subscription.handlers.onSpans === undefined) return;
    subscription.again = subscription.busy;
    if (subscription.busy) return;
    subscription.busy = true;
    const run = encodeURIComponent(subscription.run);
    let changes = null;
    try {
      changes = await get(`/-/runs/${run}/changes?after=${subscription.seen ?? 0}`);
    } catch {
      this.changeState("connecting"); // The stream tells when the server is back.
    }
    subscription.busy = false;
    if (changes === null || !this.subscriptions.has(subscription)) return;
    subscription.seen = changes.revision;
    if (subscription.again) this.readSpans(subscription);
    subscription.handlers.onSpans(changes);
  }
}
