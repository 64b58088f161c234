"""What axe finds on the pages, in both themes."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from axe_playwright_python.sync_playwright import Axe
from browser.conftest import OpenTab
from browser.recording import Recorder
from browser.tab import Tab
from playwright.sync_api import expect

THEMES = ["light", "dark"]


@pytest.fixture(scope="module")
def run(recorder: Recorder) -> str:
    """A run with spans in every state."""
    run = recorder.start("checked")
    root = recorder.span(run, "agent:run", "active", payload={"question": "How high is K2?"})
    for status in ("pending", "complete", "failed", "cancelled"):
        result = {"error": {"type": "ValueError", "message": "no"}} if status == "failed" else None
        recorder.span(run, "agent:tool_call", status, parent=root, result=result)
    usage = {"token_usage": {"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16}}
    recorder.span(run, "agent:llm_call", parent=root, result={"response": "K2", **usage})
    for status in ("complete", "failed", "cancelled"):
        recorder.finish(recorder.start("checked"), status)
    return run


def has_no_serious_violation(tab: Tab) -> None:
    found = Axe().run(tab.page).response["violations"]
    serious: Mapping[str, list[str]] = {
        violation["id"]: [node["html"] for node in violation["nodes"]]
        for violation in found
        if violation["impact"] in ("serious", "critical")
    }
    assert serious == {}


@pytest.mark.parametrize("theme", THEMES)
def test_the_list(open_tab: OpenTab, run: str, theme: str) -> None:
    tab = open_tab("/?agent=checked", color_scheme=theme)
    expect(tab.run_row(run)).to_be_visible()
    has_no_serious_violation(tab)


@pytest.mark.parametrize("theme", THEMES)
def test_the_run_with_a_span(open_tab: OpenTab, run: str, theme: str) -> None:
    tab = open_tab(f"/runs/{run}", color_scheme=theme)
    tab.span_row("llm_call").click()
    expect(tab.detail).to_be_visible()
    has_no_serious_violation(tab)
    for name in ("Input", "Result", "Raw"):
        tab.show_tab(name)
    has_no_serious_violation(tab)


@pytest.mark.parametrize("theme", THEMES)
def test_the_dialogs(open_tab: OpenTab, run: str, theme: str) -> None:
    tab = open_tab(f"/runs/{run}", color_scheme=theme)
    expect(tab.tree).to_be_visible()
    for key in ("t", "?"):
        tab.press(key)
        expect(tab.page.get_by_role("dialog")).to_be_visible()
        has_no_serious_violation(tab)
        tab.press("Escape")
        expect(tab.page.get_by_role("dialog")).to_have_count(0)


def test_rows_tell_a_screen_reader_where_they_stand(open_tab: OpenTab, run: str) -> None:
    tab = open_tab(f"/runs/{run}")
    row = tab.span_row("llm_call")
    for name, value in (("level", "2"), ("setsize", "5")):
        expect(row).to_have_attribute(f"aria-{name}", value)
    expect(tab.tree).to_have_attribute("aria-rowcount", "7")
    expect(row.get_by_role("img", name="complete")).to_be_visible()  # the status is a word, too
