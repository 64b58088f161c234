/**
 * The colours: those of the system, light, or dark.
 */
import { h } from "./elements/dom.js";
import { remember, remembered } from "./elements/storage.js";

const THEME_KEY = "prefactor-theme";
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
  const theme = remembered(THEME_KEY);
  return theme in THEMES ? theme : "system";
}

function themeSet(theme) {
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  remember(THEME_KEY, theme);
}
