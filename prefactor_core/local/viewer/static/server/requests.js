/**
 * Requests to the server, and its clock.
 */
import { msOf } from "../values/format.js";
import { exportedAnswer, isExport } from "./exported.js";

/**
 * Return the JSON of `path`; in an exported file, from the data in it.
 * @throws {RequestFailure} status 0 when the server does not answer
 */
export async function get(path, { signal } = {}) {
  if (!isExport()) return requestsSend(path, { signal });
  const answer = exportedAnswer(path);
  if (answer === undefined) throw new RequestFailure(404, "This file does not hold it.");
  return answer;
}

/** Return what the server says about itself: `/-/about`. Its time sets the clock of `now`. */
export async function about() {
  const facts = await get("/-/about");
  const time = msOf(facts.time);
  const ahead = time - Date.now();
  requestsClock = isExport() ? () => time : () => Date.now() + ahead;
  return facts;
}

/**
 * Return the server's time in milliseconds since 1970, by which active steps grow; in an exported
 * file, the time of the export.
 */
export function now() {
  return requestsClock();
}

/** Ask the server to terminate a run: POST /api/v1/agent_instance/{id}/terminate. */
export async function postTerminate(id, reason) {
  return requestsPost(`/api/v1/agent_instance/${encodeURIComponent(id)}/terminate`, { reason });
}

/** Hand over the token of this server; the answer sets a cookie that scripts cannot read. */
export async function postLogin(token) {
  return requestsPost("/-/login", { token });
}

async function requestsSend(path, options) {
  let response;
  try {
    response = await fetch(path, { credentials: "same-origin", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new RequestFailure(0, "The server does not answer. Is it still running?");
  }
  const text = await response.text();
  if (response.ok) return text === "" ? null : JSON.parse(text);
  throw requestsFailure(response.status, text);
}

function requestsFailure(status, text) {
  try {
    const { code, message, errors = {} } = JSON.parse(text);
    const fields = Object.entries(errors).map(([name, error]) => `${name} ${error.message}`);
    return new RequestFailure(status, [message ?? code, ...fields].join(": "));
  } catch {
    return new RequestFailure(status, `The server answered ${status}.`);
  }
}

function requestsPost(path, body) {
  const headers = { "Content-Type": "application/json" };
  return requestsSend(path, { method: "POST", headers, body: JSON.stringify(body) });
}

/** An answer that is not a success, or none. */
class RequestFailure extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

let requestsClock = Date.now;
