/**
 * The page `/agents`: every agent, with its runs counted and the newest of them.
 */
import { h, replace } from "../elements/dom.js";
import { count, dateTime, fullTime, shortId } from "../values/format.js";
import { statusMark } from "../values/status.js";
import { subscribe } from "../server/events.js";
import { get } from "../server/requests.js";
import { emptyRuns } from "./empty.js";

const AGENTS_REFRESH_MS = 1000;

/** Open the page of the agents in `root`. */
export function openAgents(root, location, context) {
  const page = new AgentsPage(root, context);
  page.load();
  return page;
}

class AgentsPage {
  constructor(root, context) {
    this.root = root;
    this.context = context;
    this.closed = false;
    this.keys = {
      j: () => this.move(1),
      k: () => this.move(-1),
      Escape: () => context.navigate("/"),
    };
    root.className = "agents-page";
    context.setCrumbs([{ text: "Runs", href: "/" }, { text: "Agents" }]);
    context.setTitle("Agents");
    this.subscription = subscribe({}, {
      onRuns: () => this.loadSoon(),
      onState: (state) => state === "live" && this.loadSoon(),
    });
  }

  update() {}

  close() {
    this.closed = true;
    this.subscription.close();
    clearTimeout(this.timer);
  }

  loadSoon() {
    this.timer ??= setTimeout(() => {
      this.timer = null;
      this.load();
    }, AGENTS_REFRESH_MS);
  }

  async load() {
    let content;
    try {
      const { agents } = await get("/-/agents");
      content = agents.length === 0 ? emptyRuns(this.context.about) : agentsTable(agents);
    } catch (failure) {
      content = h("div", { class: "problem", role: "alert" }, failure.message);
    }
    if (this.closed) return;
    const focused = document.activeElement?.getAttribute("href");
    replace(this.root, h("h1", { class: "offscreen" }, "Agents"), content);
    if (focused) this.root.querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus();
  }

  move(step) {
    const links = [...this.root.querySelectorAll("td.run a")];
    const at = links.indexOf(document.activeElement);
    links[Math.max(0, Math.min(at + step, links.length - 1))]?.focus();
  }
}

function agentsTable(agents) {
  const titles = [
    ["Agent"], ["Description", "description"], ["Runs", "number"], ["Active", "number"],
    ["Failed", "number"], ["Newest run"],
  ];
  const heads = titles.map(([title, name]) => h("th", { scope: "col", class: name }, title));
  return h("table", { class: "runs agents" },
    h("caption", { class: "offscreen" }, "Agents"),
    h("thead", null, h("tr", null, heads)),
    h("tbody", null, agents.map(agentsRow)));
}

function agentsRow({ id, name, description, external_identifier: external, runs, newest, status }) {
  const href = `/?agent=${encodeURIComponent(id)}`;
  const retired = status && status !== "active" ? h("span", { class: "badge" }, status) : null;
  return h("tr", null,
    h("td", { class: "run" },
      h("div", { class: "run-name" },
        h("a", { href }, name ?? shortId(id)),
        h("span", { class: "detail", title: id }, external ?? shortId(id)), retired)),
    h("td", { class: "description" }, description ?? ""),
    h("td", { class: runs.total === 1 ? "number total one" : "number total" }, count(runs.total)),
    h("td", { class: "number" }, agentsPart(runs.active, `${href}&status=active`, "active")),
    h("td", { class: "number" }, agentsPart(runs.failed, `${href}&status=failed`, "failed")),
    h("td", { class: "newest" }, agentsNewest(newest)));
}

function agentsPart(n, href, status) {
  return n ? h("a", { href, class: `status-${status}` }, count(n)) : "–";
}

function agentsNewest(newest) {
  if (newest === null) return "–";
  const { id, status, started_at: started } = newest;
  return [
    statusMark(status),
    h("a", { href: `/runs/${id}`, title: started ? fullTime(started) : null },
      started ? dateTime(started) : shortId(id)),
  ];
}
