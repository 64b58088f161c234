/**
 * Terminate a run: ask for a reason first, then show when the agent heard and stopped.
 */
import { announce, h, replace } from "../elements/dom.js";
import { clock, duration, fullTime, msOf, shortId } from "../values/format.js";
import { subscribe } from "../server/events.js";
import { now, postTerminate } from "../server/requests.js";

const TERMINATE_HEARD_MS = 30_000;
const TERMINATE_REASON = "terminated in the viewer";

/** Open the dialog that terminates `run` (a row of `/-/runs`) if the reader confirms it. */
export function openTerminateDialog(run) {
  const dialog = h("dialog", { class: "terminate", "aria-labelledby": "terminate-title" });
  let subscription = null;
  const follow = (told) => {
    subscription ??= subscribe({ after: run.revision }, {
      onRuns: ({ runs }) => {
        const row = runs.find(({ id }) => id === run.id);
        if (row !== undefined) terminateShow(dialog, row);
      },
    });
    terminateShow(dialog, { ...run, ...told });
  };
  replace(dialog, terminateForm(run, dialog, follow));
  dialog.addEventListener("close", () => {
    subscription?.close();
    dialog.remove();
  });
  document.body.append(dialog);
  dialog.showModal();
}

/**
 * Return what is known of the end of a terminated run: asked, heard by the agent, stopped; null
 * for another run.
 */
export function terminationState(run) {
  if (run.status !== "terminated") return null;
  const asked = run.finished_at ?? run.last_activity_at;
  const steps = [terminateStep("asked", asked, null)];
  if (run.heard_at) steps.push(terminateStep("heard", run.heard_at, asked));
  if (run.stopped_at) steps.push(terminateStep("stopped", run.stopped_at, asked));
  else if (run.heard_at) steps.push("stopping…");
  else steps.push(terminateUnheard(asked));
  const arrow = () => h("span", { class: "muted" }, " → ");
  return h("span", null, steps.flatMap((step, i) => (i === 0 ? [step] : [arrow(), step])));
}

function terminateUnheard(asked) {
  const waited = now() - msOf(asked);
  return waited < TERMINATE_HEARD_MS
    ? "not yet heard, at most 30 s"
    : `not heard in ${duration(waited)}: the agent may be gone`;
}

function terminateStep(word, time, since) {
  const after = since === null ? NaN : msOf(time) - msOf(since);
  return h("span", { class: "nowrap" }, `${word} `,
    h("time", { datetime: time, title: fullTime(time) }, clock(time)),
    after >= 0 ? h("span", { class: "muted" }, ` (+${duration(after)})`) : null);
}

function terminateForm(run, dialog, follow) {
  const reason = h("input", { id: "terminate-reason", maxlength: "1000", autocomplete: "off",
    placeholder: "Why? The agent is told." });
  const problem = h("p", { role: "alert", class: "status-failed" });
  const confirm = h("button", { type: "submit", class: "danger" }, "Terminate");
  const submit = async (event) => {
    event.preventDefault();
    confirm.disabled = true;
    try {
      await postTerminate(run.id, reason.value.trim() || TERMINATE_REASON);
      follow({ status: "terminated", finished_at: new Date(now()).toISOString(), heard_at: null });
    } catch (failure) {
      problem.textContent = failure.message;
      confirm.disabled = false;
    }
  };
  return h("form", { class: "terminate-form", on: { submit } },
    h("header", null, h("h2", { id: "terminate-title" }, "Terminate this run?")),
    h("div", null,
      h("p", null, h("strong", null, run.agent_name ?? shortId(run.agent_id)), " ",
        h("span", { class: "mono muted" }, run.id)),
      h("p", null, "The agent hears it with its next answer or poll, at most 30 s from now, ",
        "and stops where its code lets it. This cannot be undone."),
      h("label", { for: "terminate-reason" }, "Reason"), reason, problem),
    h("footer", null,
      h("button", { type: "button", on: { click: () => dialog.close() } }, "Cancel"), confirm));
}

/** Show how far the stop has come; the dialog stays until the reader closes it. */
function terminateShow(dialog, run) {
  const state = terminationState(run);
  if (state === null) return;
  const close = h("button", { class: "primary", on: { click: () => dialog.close() } }, "Close");
  const title = run.stopped_at ? "The run has stopped" : "Terminating";
  const focused = dialog.contains(document.activeElement);
  replace(dialog,
    h("header", null, h("h2", { id: "terminate-title" }, title)),
    h("p", { class: "terminate-state" }, state),
    h("footer", null, close));
  if (focused) close.focus();
  announce(state.textContent);
}
