/**
 * The live stream of what changed on the server.
 *
 * A browser opens few connections to one server, so its tabs share one stream of events. The tab
 * that holds a Web Lock reads the stream and passes the events on by a BroadcastChannel. A hidden
 * tab gives the lock back. Where Web Locks are missing (a page from another address than this
 * machine, without TLS), each tab reads a stream of its own.
 *
 * The stream tells only which runs changed. A tab that shows a run then asks for the changed spans
 * by revision, so nothing is lost when it was hidden or offline.
 */
import { isExport } from "./exported.js";
import { get } from "./requests.js";

/**
 * Follow the changes of all runs, and of the spans of the run `run`.
 *
 * `onRuns({runs, total, deleted, revision})` gets the rows of changed runs; `deleted` says that
 * runs were deleted. `onSpans({revision, fields, rows, run})` gets the changed spans of `run` since
 * the revision `after` (that of the skeleton which the caller shows); `onDeleted()` is called when
 * the server no longer has that run. `onState(state)` gets "live", "connecting" or "paused". Rows
 * may come twice; a newer revision replaces an older one.
 *
 * @param {{run?: string, after?: number}} topic
 * @param {{onRuns?: Function, onSpans?: Function, onDeleted?: Function, onState?: Function}}
 *   handlers
 * @returns {{close: () => void}}
 */
export function subscribe({ run = null, after = null }, handlers) {
  if (isExport()) return { close() {} };
  const subscription = { run, after, seen: after, handlers, busy: false, again: false };
  eventsStream ??= new EventsStream();
  eventsStream.add(subscription);
  return { close: () => eventsStream.remove(subscription) };
}

let eventsStream = null;

/** The shared stream: leader or listener, with the subscriptions of this tab. */
class EventsStream {
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
      this.channel.onmessage = (event) => this.receive(event.data);
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
    source.onopen = () => this.publish({ kind: "state", state: "live" });
    source.onerror = () => this.failed(source);
    source.addEventListener("runs", (event) => {
      this.publish({ kind: "runs", data: JSON.parse(event.data) });
    });
  }

  /** The browser connects again by itself, but not after an answer that is no stream. */
  failed(source) {
    this.publish({ kind: "state", state: "connecting" });
    if (source.readyState !== EventSource.CLOSED) return;
    setTimeout(() => {
      if (this.source === source) this.read();
    }, 2000);
  }

  /** Handle a message as the reader of the stream, and pass it on to the other tabs. */
  publish(message) {
    this.channel?.postMessage(message);
    this.handle(message);
  }

  receive(message) {
    if (message.kind === "hello") return this.greet(message.revision);
    if (this.source === null && this.waiting !== null) this.handle(message);
  }

  /** Tell a new tab the state; read again from its revision if it is behind. */
  greet(revision) {
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
      if (row !== undefined || data.deleted) this.readSpans(subscription);
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
    } catch (failure) {
      if (failure.status === 404) subscription.handlers.onDeleted?.();
      else this.changeState("connecting"); // The stream tells when the server is back.
    }
    subscription.busy = false;
    if (changes === null || !this.subscriptions.has(subscription)) return;
    subscription.seen = changes.revision;
    if (subscription.again) this.readSpans(subscription);
    subscription.handlers.onSpans(changes);
  }
}
