/**
 * The keyboard: one map for every page, and the dialog that lists it.
 */
import { h } from "./elements/dom.js";

const KEYS = [
  ["Every page", [
    [["j", "k", "↓", "↑"], "next row, previous row"],
    [["g", "G"], "first row, last row"],
    [["Enter"], "open"],
    [["Esc"], "back"],
    [["/"], "find"],
    [["e", "E"], "next error, previous error"],
    [["c"], "copy the link"],
    [["?"], "this list"],
  ]],
  ["A run", [
    [["h", "l", "←", "→"], "fold or parent, unfold or child"],
    [["[", "]"], "fold a level, unfold a level"],
    [["o"], "only this path"],
    [["n", "N"], "next hit, previous hit"],
    [["+", "-", "0"], "zoom in, out, whole run"],
    [[",", "."], "earlier, later"],
    [["p"], "critical path"],
    [["f"], "follow the newest step"],
    [["t"], "terminate: opens a dialog, never at once"],
  ]],
];

const KEY_ALIASES = { ArrowDown: "j", ArrowUp: "k", ArrowLeft: "h", ArrowRight: "l", "=": "+" };

/**
 * Listen to the keyboard. `getHandlers()` returns the `{key: handler}` of the page; a handler may
 * have the name of the key ("ArrowDown") or of its letter ("j").
 */
export function installKeys(getHandlers) {
  document.addEventListener("keydown", (event) => {
    if (keysIgnored(event)) return;
    const handlers = { "?": helpDialog, ...getHandlers() };
    const handler = handlers[event.key] ?? handlers[KEY_ALIASES[event.key]];
    if (handler === undefined) return;
    event.preventDefault();
    handler(event);
  });
}

/** Open the dialog that lists the keys. */
export function helpDialog() {
  const dialog = h(
    "dialog",
    { class: "help", "aria-labelledby": "help-title" },
    h("header", null, h("h2", { id: "help-title" }, "Keys"), keysClose()),
    h("div", { class: "help-groups" }, KEYS.map(keysGroup)),
  );
  dialog.addEventListener("close", () => dialog.remove());
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  document.body.append(dialog);
  dialog.showModal();
}

/**
 * A letter in a field is text, arrows scroll the panel that has the focus, and a link or button
 * takes its own Enter and space.
 */
function keysIgnored(event) {
  if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return true;
  if (event.isComposing || document.querySelector("dialog[open]") !== null) return true;
  const { target } = event;
  if (target.closest("input, textarea, select, [contenteditable]") !== null) return true;
  if (event.key.startsWith("Arrow") && target.closest("[role=tabpanel]") !== null) return true;
  const pressed = event.key === "Enter" || event.key === " ";
  return pressed && target.closest("a, button, summary") !== null;
}

function keysClose() {
  return h(
    "form",
    { method: "dialog" },
    h("button", { class: "plain", "aria-label": "Close" }, "✕"),
  );
}

function keysGroup([title, rows]) {
  const id = `help-${title.replace(" ", "-")}`;
  return h(
    "section",
    { "aria-labelledby": id },
    h("h3", { id }, title),
    h("dl", null, rows.map(([keys, text]) => keysRow(keys, text))),
  );
}

function keysRow(keys, text) {
  const marks = keys.map((key) => h("kbd", null, key));
  return h("div", null, h("dt", null, marks), h("dd", null, text));
}
