/**
 * The frame of the page: header, router, history, login.
 */
import { announce, h, replace } from "./elements/dom.js";
import { subscribe } from "./server/events.js";
import { exportedRun, isExport } from "./server/exported.js";
import { about, postLogin } from "./server/requests.js";
import { openRun } from "./run/page.js";
import { openAgents } from "./lists/agents.js";
import { openRuns } from "./lists/runs.js";
import { openConnect } from "./connect.js";
import { helpDialog, installKeys } from "./keys.js";
import { applyTheme, themeButton } from "./theme.js";

const ROUTES = [
  [/^\/$/, openRuns],
  [/^\/runs\/[^/]+$/, openRun],
  [/^\/agents$/, openAgents],
  [/^\/cli\/connect$/, openConnect],
];

let mainPage = null;
let mainPath = null;
let mainContext = null;

/** Start the viewer: called once, by boot.js. */
export async function start() {
  applyTheme();
  mainHeader();
  try {
    await mainLogin();
    mainContext = mainMakeContext(await about());
  } catch (failure) {
    mainRefused(failure);
    return;
  }
  mainBrand(mainContext.about);
  installKeys(() => mainPage?.keys ?? {});
  document.addEventListener("click", mainClicked);
  window.addEventListener(isExport() ? "hashchange" : "popstate", mainShow);
  if (!isExport()) subscribe({}, { onState: mainLive });
  mainShow();
}

/**
 * Go to `url` of this viewer. A selection replaces the entry of the history, a page change adds
 * one. In an exported file the address is in the fragment.
 */
function mainNavigate(url, { replace: replaced = false } = {}) {
  const address = isExport() ? `#${url}` : url;
  if (replaced) history.replaceState(null, "", address);
  else history.pushState(null, "", address);
  mainShow();
}

/** Return the address that the page shows, as a URL. An exported file shows its run alone. */
function mainLocation() {
  if (!isExport()) return new URL(window.location.href);
  const run = exportedRun();
  const inside = window.location.hash.slice(1);
  return new URL(inside.startsWith(run) ? inside : run, "http://export.invalid");
}

/** Show the page of the address: the same page takes the new address, another is opened. */
function mainShow() {
  const location = mainLocation();
  if (location.pathname === mainPath && mainPage !== null) {
    mainPage.update(location);
    return;
  }
  const first = mainPath === null;
  mainPage?.close();
  mainPath = location.pathname;
  const root = document.getElementById("page");
  replace(root);
  root.className = "";
  root.scrollTop = 0;
  if (!first) root.focus({ preventScroll: true });
  const route = ROUTES.find(([pattern]) => pattern.test(location.pathname));
  mainPage = (route?.[1] ?? mainOpenMissing)(root, location, mainContext);
}

function mainMakeContext(facts) {
  return {
    navigate: mainNavigate,
    about: facts,
    announce,
    setTitle: (text) => {
      document.title = `${text} · ${facts.database} · Prefactor local`;
      announce(text);
    },
    setCrumbs: mainCrumbs,
  };
}

function mainOpenMissing(root, location, context) {
  context.setTitle("Not found");
  context.setCrumbs([{ text: "Runs", href: "/" }, { text: "Not found" }]);
  replace(
    root,
    h("div", { class: "notice" },
      h("h1", null, "Nothing is here"),
      h("p", null, h("code", null, location.pathname), " is no page of this viewer."),
      h("p", null, h("a", { href: "/" }, "All runs")),
    ),
  );
  return { close() {}, update() {}, keys: {} };
}

/** Links inside the viewer change the page without a load; other clicks stay the browser's. */
function mainClicked(event) {
  const link = event.target.closest("a[href]");
  if (link === null || event.defaultPrevented || event.button !== 0) return;
  if (event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
  if (link.target !== "" || link.hasAttribute("download")) return;
  const href = link.getAttribute("href");
  if (!href.startsWith("/") || href.startsWith("//") || href.startsWith("/-/")) return;
  event.preventDefault();
  mainNavigate(href);
}

function mainHeader() {
  const help = h("button", { type: "button", class: "plain", on: { click: helpDialog } }, "?");
  help.title = "Keys";
  help.setAttribute("aria-label", "Keys");
  const live = isExport() ? null : h("span", { id: "live", role: "status" });
  const agents = isExport() ? null : h("a", { class: "button plain", href: "/agents" }, "Agents");
  replace(document.getElementById("tools"), live, agents, help, themeButton());
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault();
    document.getElementById("page").focus();
  });
}

function mainBrand({ database, path, read_only: readOnly }) {
  const name = h("span", { class: "database", title: path }, database);
  const note = isExport() ? "exported" : readOnly ? "read-only" : null;
  const parts = [h("span", { class: "muted database" }, "·"), name];
  if (note !== null) parts.push(h("span", { class: "badge" }, note));
  document.getElementById("brand").append(...parts);
}

function mainCrumbs(crumbs) {
  const last = crumbs.length - 1;
  const items = crumbs.map(({ text, href }, i) =>
    h("li", null,
      i < last && href && !isExport()
        ? h("a", { href }, text)
        : h("span", { "aria-current": i === last ? "page" : null }, text),
    ),
  );
  replace(document.getElementById("crumbs"), h("ol", null, items));
}

function mainLive(state) {
  const mark = document.getElementById("live");
  const words = { live: "live", connecting: "connecting…", paused: "paused" };
  mark.dataset.state = state;
  replace(mark, h("span", { class: "word" }, words[state]));
}

/** Take the token from the address, which no server sees, and leave it there no longer. */
async function mainLogin() {
  const token = /^#token=(.+)$/.exec(window.location.hash)?.[1];
  if (token === undefined || isExport()) return;
  history.replaceState(null, "", window.location.pathname + window.location.search);
  await postLogin(decodeURIComponent(token));
}

function mainRefused(failure) {
  const root = document.getElementById("page");
  if (failure.status !== 401) {
    const again = h("button", { on: { click: () => window.location.reload() } }, "Try again");
    replace(root, h("div", { class: "notice" }, h("h1", null, failure.message), again));
    return;
  }
  const token = h("input", {
    type: "password", id: "token", required: true, autocomplete: "current-password",
  });
  const problem = h("p", { role: "alert", class: "status-failed" });
  const submit = async (event) => {
    event.preventDefault();
    try {
      await postLogin(token.value);
      window.location.reload();
    } catch (error) {
      problem.textContent = error.status === 401 ? "This is not the token." : error.message;
    }
  };
  replace(
    root,
    h("div", { class: "notice" },
      h("h1", null, "This server asks for its token"),
      h("p", null, "Open the link that ", h("code", null, "prefactor_core serve"),
        " printed, or enter the token that follows ", h("code", null, "--token"), "."),
      h("form", { class: "token", on: { submit } },
        h("label", { for: "token" }, "Token"), token,
        h("button", { class: "primary" }, "Sign in")),
      problem,
    ),
  );
  token.focus();
}
