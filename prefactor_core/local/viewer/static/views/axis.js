/**
 * The labels of the time axis above the bars.
 */
import { h, replace } from "../elements/dom.js";
import { ticksOf } from "../tree/timeline.js";

const axisLetter = 6.5; // px: about the width of a letter

/**
 * Write the labels for the model's window into `axis`, which is as wide as the bars.
 *
 * @returns {{step: number, first: number}} the distance of two ticks and the place of the first,
 *   in pixels
 */
export function drawAxis(axis, model) {
  const view = model.window();
  const width = axis.clientWidth;
  const start = Number.isNaN(model.tree.from) ? view.from : model.tree.from;
  const [from, to] = [view.from - start, view.to - start];
  const { step, ticks } = ticksOf(from, to, width);
  const pixels = width / (to - from);
  const labels = ticks.map(({ at, label }) => {
    const x = (at - from) * pixels;
    const fits = x + 8 + label.length * axisLetter <= width;
    return h("span", { class: "tick", style: { left: `${x}px` } }, fits && label);
  });
  replace(axis, labels);
  return { step: step * pixels, first: (Math.ceil(from / step) * step - from) * pixels };
}
