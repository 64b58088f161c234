/**
 * Build elements. Text is only ever set as text, so a payload cannot become markup.
 */

/**
 * Return a new element.
 *
 * Props: `class`, `on` ({event: listener}), `data` and `aria` ({name: value}), `style` ({property:
 * value}, set through the CSSOM because the Content-Security-Policy forbids style attributes).
 * Any other name is an attribute; `true` sets it empty, `null`, `undefined` and `false` omit it.
 * Children are strings, numbers, nodes, or arrays of them; `null` and `false` are left out.
 *
 * @param {string} tag
 * @param {object | null} [props]
 * @param {...*} children
 * @returns {HTMLElement}
 */
export function h(tag, props, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props ?? {})) domSet(element, name, value);
  domAppend(element, children);
  return element;
}

/** Replace the children of `node` by `children`, of the kinds that `h` takes. */
export function replace(node, ...children) {
  node.replaceChildren();
  domAppend(node, children);
  return node;
}

/** Have a screen reader say `text` when it is done with its sentence. */
export function announce(text) {
  const region = document.getElementById("announcer");
  if (region !== null) region.textContent = text;
}

/** Return a button that copies the text of `read()`, and says so. */
export function copyButton(read, label = "Copy") {
  const button = h("button", { type: "button", class: "copy", title: label }, "copy");
  button.setAttribute("aria-label", label);
  button.addEventListener("click", async (event) => {
    event.preventDefault();
    event.stopPropagation();
    const copied = await copyText(await read());
    button.textContent = copied ? "copied" : "not copied";
    announce(copied ? "Copied" : "The browser refused to copy");
    setTimeout(() => (button.textContent = "copy"), 1500);
  });
  return button;
}

/**
 * Put `text` on the clipboard. Pages from another address than this machine have no clipboard
 * interface, so a selected text area stands in for it. Return whether it was copied.
 */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = h("textarea", { class: "offscreen", "aria-hidden": "true" });
    area.value = text;
    const host = document.querySelector("dialog[open]") ?? document.body;
    const focused = document.activeElement;
    host.append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    focused?.focus();
    return copied;
  }
}

function domSet(element, name, value) {
  if (value === null || value === undefined || value === false) return;
  if (name === "class") element.className = value;
  else if (name === "on") domListen(element, value);
  else if (name === "data") Object.assign(element.dataset, value);
  else if (name === "aria") domAria(element, value);
  else if (name === "style") domStyle(element, value);
  else element.setAttribute(name, value === true ? "" : String(value));
}

function domListen(element, listeners) {
  for (const [event, listener] of Object.entries(listeners)) {
    element.addEventListener(event, listener);
  }
}

function domAria(element, values) {
  for (const [name, value] of Object.entries(values)) {
    if (value !== null && value !== undefined) element.setAttribute(`aria-${name}`, String(value));
  }
}

function domStyle(element, values) {
  for (const [property, value] of Object.entries(values)) {
    element.style.setProperty(property, String(value));
  }
}

function domAppend(element, children) {
  for (const child of children) {
    if (child === null || child === undefined || child === false) continue;
    if (Array.isArray(child)) domAppend(element, child);
    else element.append(child instanceof Node ? child : String(child));
  }
}
