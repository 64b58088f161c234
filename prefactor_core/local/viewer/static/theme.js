/**
 * The colours: those of the system, light, or dark.
 */
import { h } from "./elements/dom.js";

const THEMES = { system: "◐", light: "☀", dark: "☾" };

/** Apply the theme that this browser remembers. */
export function applyTheme() {
  themeSet(themeStored());
}

/** Return the button that steps through the themes. */
export function themeButton() {
  const button = h("button", { type: "button", class: "plain" });
  const show = () => {
    const theme = themeStored();
    button.textContent = THEMES[theme];
    button.title = `Colours: ${theme}`;
    button.setAttribute("aria-label", button.title);
  };
  button.addEventListener("click", () => {
    const names = Object.keys(THEMES);
    themeSet(names[(names.indexOf(themeStored()) + 1) % names.length]);
    show();
  });
  show();
  return button;
}

function themeStored() {
  try {
    const theme = localStorage.getItem("prefactor-theme");
    return theme in THEMES ? theme : "system";
  } catch {
    return "system"; // Storage is forbidden: the button has no effect that lasts.
  }
}

function themeSet(theme) {
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  try {
    localStorage.setItem("prefactor-theme", theme);
  } catch {
    // The theme holds until the page is closed.
  }
}
