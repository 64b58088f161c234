/**
 * Texts for values: times, counts, amounts, names. No DOM.
 */

/** Return the milliseconds since 1970 of an ISO time, with its microseconds as the fraction. */
export function msOf(iso) {
  if (iso === null || iso === undefined) return NaN;
  const parts = /^(.*?:\d\d)(\.\d+)?(Z|[+-]\d\d:?\d\d)?$/.exec(iso);
  if (parts === null) return Date.parse(iso);
  return Date.parse(parts[1] + (parts[3] ?? "Z")) + Number(parts[2] ?? 0) * 1000;
}

/** Return a length of time in milliseconds with three digits that matter: "20.3 ms". */
export function duration(ms) {
  if (!Number.isFinite(ms)) return "–";
  if (ms < 0) return `−${duration(-ms)}`;
  if (ms === 0) return "0 s";
  if (ms < 0.9995) return `${Math.round(ms * 1000)} µs`;
  if (ms < 999.5) return `${formatDigits(ms)} ms`;
  if (ms < 59_950) return `${formatDigits(ms / 1000)} s`;
  const seconds = Math.round(ms / 1000);
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${formatTwo(seconds % 60)} s`;
  const minutes = Math.round(ms / 60_000);
  if (minutes < 1440) return `${Math.floor(minutes / 60)} h ${formatTwo(minutes % 60)} min`;
  const hours = Math.round(ms / 3_600_000);
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/** Return the time of day in the zone of this browser, to the millisecond: "13:50:15.845". */
export function clock(iso) {
  const date = new Date(msOf(iso));
  if (Number.isNaN(date.getTime())) return "–";
  return `${formatTime(date)}.${String(date.getMilliseconds()).padStart(3, "0")}`;
}

/** Return date and time to the second in the zone of this browser: "2026-11-30 13:50:15". */
export function dateTime(iso) {
  const date = new Date(msOf(iso));
  if (Number.isNaN(date.getTime())) return "–";
  return `${formatDate(date)} ${formatTime(date)}`;
}

/** Return date and time with the zone's offset, and the time in UTC as it is stored. */
export function fullTime(iso) {
  const date = new Date(msOf(iso));
  if (Number.isNaN(date.getTime())) return "–";
  return `${formatDate(date)} ${clock(iso)} ${zoneOffset(date)} · ${iso.replace("T", " ")} UTC`
    .replace("Z UTC", " UTC");
}

/** Return the offset of this browser's zone at `date`: "+01:00". */
export function zoneOffset(date) {
  const minutes = -date.getTimezoneOffset();
  const hours = formatTwo(Math.floor(Math.abs(minutes) / 60));
  return `${minutes < 0 ? "−" : "+"}${hours}:${formatTwo(Math.abs(minutes) % 60)}`;
}

/** Return a whole number with separators: "1,204"; "–" for null. */
export function count(n) {
  return n === null || n === undefined ? "–" : formatCounts.format(n);
}

/** Return a whole number with its noun: "1 span", "1,204 spans". */
export function counted(n, noun) {
  return `${count(n)} ${noun}${n === 1 ? "" : "s"}`;
}

/** Return US dollars with two digits that matter, at least cents: "$0.0042"; "–" for null. */
export function money(x) {
  if (x === null || x === undefined) return "–";
  if (x === 0) return "$0";
  const digits = Math.abs(x) >= 1 ? 2 : Math.min(8, 1 - Math.floor(Math.log10(Math.abs(x))));
  return `$${x.toFixed(Math.max(2, digits))}`;
}

/** Return a size: "812 B", "1.2 MB". */
export function bytes(n) {
  if (n < 1000) return `${n} B`;
  if (n < 999_500) return `${formatDigits(n / 1000)} kB`;
  if (n < 999_500_000) return `${formatDigits(n / 1_000_000)} MB`;
  return `${formatDigits(n / 1_000_000_000)} GB`;
}

/** Return the beginning of an id, enough to tell runs of one day apart. */
export function shortId(id) {
  return id.length > 12 ? `${id.slice(0, 12)}…` : id;
}

/** Return a schema name without its family: "llm_call" of "agent:llm_call". */
export function shortName(name) {
  const colon = name.indexOf(":");
  return colon < 0 ? name : name.slice(colon + 1);
}

/** Return the kind of step that a schema name tells; the class `kind-…` has its colour. */
export function kindOf(name) {
  const last = name.slice(name.lastIndexOf(":") + 1).toLowerCase();
  for (const [kind, pattern] of formatKinds) if (pattern.test(last)) return kind;
  return "other";
}

const formatKinds = [
  ["llm", /llm|chat|completion|generation|model/],
  ["tool", /tool|function|execute/],
  ["retrieval", /retriev|search|query|embed|lookup|rerank/],
  ["chain", /chain|step|workflow|pipeline|graph|task|turn/],
  ["agent", /agent|run|session/],
];

const formatCounts = new Intl.NumberFormat("en-US");

function formatDigits(x) {
  return x.toFixed(x < 9.995 ? 2 : x < 99.95 ? 1 : 0);
}

function formatTwo(n) {
  return String(n).padStart(2, "0");
}

function formatDate(date) {
  return `${date.getFullYear()}-${formatTwo(date.getMonth() + 1)}-${formatTwo(date.getDate())}`;
}

function formatTime(date) {
  return [date.getHours(), date.getMinutes(), date.getSeconds()].map(formatTwo).join(":");
}
