/**
 * The time axis: windows of time, zoom, and ticks as on a clock. Pure functions; times are in
 * milliseconds.
 */

const timelineUnits = [1, 2, 5];
const timelineClock = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800].concat(
  [1, 2, 3, 6, 12, 24, 48, 120, 240].map((hours) => hours * 3600),
);
const timelineDay = 86_400_000;
const timelineShortest = 0.005; // A window is never shorter than 5 µs: times hold microseconds.

/**
 * Return the ticks of a window of a run, at most about one for each 90 pixels.
 *
 * @param {number} from start of the window, since the start of the run
 * @param {number} to
 * @param {number} width in pixels
 * @returns {{step: number, ticks: Array<{at: number, label: string}>}}
 */
export function ticksOf(from, to, width) {
  const step = timelineStep((to - from) / Math.max(1, Math.floor(width / 90)));
  const ticks = [];
  for (let k = Math.ceil(from / step - 1e-9); k * step <= to; k += 1) {
    ticks.push({ at: k * step, label: timelineLabel(k * step, step) });
  }
  return { step, ticks };
}

/** Return a length of time at least `ms` that ends on a tick, for the axis of a growing run. */
export function roundedUp(ms) {
  const step = timelineStep(ms / 8);
  return Math.ceil(ms / step) * step;
}

/**
 * Return the window after a zoom by `factor` (2: twice as near) around the time `at`. The window
 * stays inside `domain`; null stands for the whole of it.
 */
export function zoomed(view, domain, factor, at) {
  const { from, to } = view ?? domain;
  const length = (to - from) / factor;
  if (length >= domain.to - domain.from) return null;
  if (length < timelineShortest) return view;
  const part = Math.min(1, Math.max(0, (at - from) / (to - from)));
  return insideOf({ from: at - part * length, to: at + (1 - part) * length }, domain);
}

/** Return the window moved by `part` of its length (negative: earlier), inside `domain`. */
export function panned(view, domain, part) {
  if (view === null) return null;
  const by = (view.to - view.from) * part;
  return insideOf({ from: view.from + by, to: view.to + by }, domain);
}

/** Return the window moved into `domain`, and shortened if it is longer. */
export function insideOf({ from, to }, domain) {
  const length = Math.min(to - from, domain.to - domain.from);
  const start = Math.min(Math.max(from, domain.from), domain.to - length);
  return { from: start, to: start + length };
}

/** Return a window between two times in either order; null when it is too short to be meant. */
export function windowOf(a, b, domain) {
  const from = Math.max(domain.from, Math.min(a, b));
  const to = Math.min(domain.to, Math.max(a, b));
  const shortest = Math.max(timelineShortest, (domain.to - domain.from) / 500);
  return to - from < shortest ? null : { from, to };
}

/** The time of a tick since the start of the run: "250 ms", "1.5 s", "2:30", "1:02:00", "3 d". */
function timelineLabel(ms, step) {
  if (ms < 0) return `−${timelineLabel(-ms, step)}`;
  if (step < 1) return ms < 1 ? `${Math.round(ms * 1000)} µs` : `${timelineDigits(ms, step)} ms`;
  if (step < 1000 && ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${timelineDigits(ms / 1000, step / 1000)} s`;
  if (step >= timelineDay) return `${Math.round(ms / timelineDay)} d`;
  const seconds = ms / 1000;
  const [hours, minutes] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60];
  const rest = timelineDigits(seconds % 60, step / 1000);
  const padded = rest.padStart(rest.includes(".") ? 3 + rest.split(".")[1].length : 2, "0");
  if (hours === 0) return `${minutes}:${padded}`;
  return `${hours}:${String(minutes).padStart(2, "0")}:${padded}`;
}

function timelineStep(least) {
  if (!(least > 0)) return 1;
  if (least > 500) {
    const seconds = timelineClock.find((candidate) => candidate * 1000 >= least);
    if (seconds !== undefined) return seconds * 1000;
    return timelineDay * timelineDecimal(least / timelineDay);
  }
  return timelineDecimal(least);
}

function timelineDecimal(least) {
  const power = 10 ** Math.floor(Math.log10(least));
  const unit = timelineUnits.find((candidate) => candidate * power >= least * (1 - 1e-9)) ?? 10;
  return unit * power;
}

/** A number with as many digits after the point as a step needs. */
function timelineDigits(x, step) {
  return x.toFixed(Math.max(0, Math.min(3, Math.ceil(-Math.log10(step) - 1e-9))));
}
