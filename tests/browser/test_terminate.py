"""The button Terminate, and the agent that obeys."""

from __future__ import annotations

import pytest
from browser.conftest import OpenTab
from browser.recording import LiveAgent, Recorder
from playwright.sync_api import expect

from prefactor_core import PrefactorTerminatedError


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_terminate_stops_a_running_agent_and_shows_when(
    open_tab: OpenTab, url: str, recorder: Recorder, backend: str
) -> None:
    with LiveAgent(url, backend) as agent:
        tab = open_tab(f"/runs/{agent.run_id}")
        tab.page.get_by_role("button", name="Terminate").click()
        dialog = tab.page.get_by_role("dialog")
        dialog.get_by_label("Reason").fill("It asks too much")
        dialog.get_by_role("button", name="Terminate").click()
        agent.wait_for_end()
        for step in ("asked", "heard", "stopped"):
            expect(dialog).to_contain_text(step)
        expect(dialog.get_by_role("heading")).to_have_text("The run has stopped")
        dialog.get_by_role("button", name="Close").click()
        head = tab.page.locator("header.run-head")
        for text in ("terminated", "It asks too much", "asked", "heard", "stopped"):
            expect(head).to_contain_text(text)
        expect(tab.page.get_by_role("button", name="Terminate")).to_be_hidden()
    assert isinstance(agent.error, PrefactorTerminatedError)
    assert "It asks too much" in str(agent.error)
    assert recorder.status(agent.run_id) == "terminated"


def test_the_key_t_asks_first(open_tab: OpenTab, recorder: Recorder) -> None:
    run = recorder.start()
    tab = open_tab(f"/runs/{run}")
    expect(tab.tree).to_be_visible()
    tab.press("t")
    dialog = tab.page.get_by_role("dialog")
    expect(dialog.get_by_role("heading")).to_have_text("Terminate this run?")
    tab.press("Escape")
    expect(dialog).to_have_count(0)
    assert recorder.status(run) == "active"


def test_an_agent_that_does_not_listen_is_said_to_have_heard_nothing(
    open_tab: OpenTab, recorder: Recorder
) -> None:
    run = recorder.start()
    recorder.span(run, status="active")
    tab = open_tab(f"/runs/{run}")
    tab.page.get_by_role("button", name="Terminate").click()
    dialog = tab.page.get_by_role("dialog")
    dialog.get_by_role("button", name="Terminate").click()
    expect(dialog).to_contain_text("not yet heard, at most 30 s")
    expect(dialog.get_by_role("heading")).to_have_text("Terminating")


def test_a_run_that_has_ended_offers_no_termination(open_tab: OpenTab, recorder: Recorder) -> None:
    run = recorder.start()
    recorder.finish(run)
    tab = open_tab(f"/runs/{run}")
    expect(tab.page.locator("header.run-head")).to_contain_text("complete")
    expect(tab.page.get_by_role("button", name="Terminate")).to_be_hidden()
    tab.press("t")
    expect(tab.page.get_by_role("dialog")).to_have_count(0)
