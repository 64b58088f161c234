"""The list of runs: live, filtered, and where to begin when it is empty."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
from browser.conftest import OpenTab
from browser.recording import LiveAgent, Recorder
from playwright.sync_api import expect
from support.deleting import delete_run
from support.serving import serving_file

from prefactor_core.local.store import Store


def test_an_empty_file_says_how_to_begin_and_the_first_run_opens_by_itself(
    open_tab: OpenTab, tmp_path: Path
) -> None:
    with serving_file(tmp_path / "fresh.db") as url:
        tab = open_tab(site=url)
        expect(tab.page.get_by_role("heading", name="No runs yet in fresh.db")).to_be_visible()
        agent = f'open_prefactor(api_url="local:{tmp_path}/fresh.db")'
        for command in ("demo --slow", agent, f"PREFACTOR_API_URL={url}"):
            expect(tab.page.get_by_text(command)).to_be_visible()
        with closing(Recorder(url)) as recorder:
            run = recorder.start()
        tab.page.wait_for_url(f"**/runs/{run}")
        tab.page.go_back()
        expect(tab.run_row(run)).to_be_visible()
        tab.page.close()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_run_appears_while_it_goes_on_and_grows(
    open_tab: OpenTab, url: str, backend: str
) -> None:
    tab = open_tab()
    with LiveAgent(url, backend) as agent:
        row = tab.run_row(agent.run_id)
        expect(row).to_contain_text("active")
        row.get_by_role("link").first.click()
        expect(tab.span_row("run")).to_have_count(1)
        for number in (1, 2, 3):
            agent.take_step("agent:tool_call")
            expect(tab.span_row("tool_call")).to_have_count(number)
    expect(tab.page.locator("header.run-head")).to_contain_text("complete")
    tab.page.go_back()
    expect(tab.run_row(agent.run_id)).to_contain_text("complete")


def test_an_agent_that_writes_the_file_beside_the_server_appears_too(
    open_tab: OpenTab, database: Path
) -> None:
    tab = open_tab()
    with LiveAgent(f"local:{database}") as agent:
        expect(tab.run_row(agent.run_id)).to_contain_text("active")
        agent.take_step("agent:tool_call", ValueError("unknown unit"))
        expect(tab.run_row(agent.run_id)).to_contain_text("✕1")
    expect(tab.run_row(agent.run_id)).to_contain_text("complete")


def test_a_row_that_is_being_read_does_not_move(open_tab: OpenTab, recorder: Recorder) -> None:
    first = recorder.start()
    tab = open_tab()
    link = tab.run_row(first).get_by_role("link").first
    link.focus()
    place = link.bounding_box()
    second = recorder.start()
    new = tab.page.get_by_role("button", name="1 new")
    expect(new).to_be_visible()
    assert link.bounding_box() == place
    expect(tab.run_row(second)).to_have_count(0)
    new.click()
    expect(tab.run_row(second)).to_be_visible()


def test_filters_are_in_the_address(open_tab: OpenTab, recorder: Recorder) -> None:
    good, bad = recorder.start("filtered"), recorder.start("filtered")
    recorder.span(good, payload={"question": "Where is the yeti?"})
    recorder.finish(good)
    recorder.finish(bad, "failed")
    tab = open_tab("/?agent=filtered")
    expect(tab.page.locator("tbody tr")).to_have_count(2)

    tab.page.get_by_role("button", name="failed").click()
    expect(tab.page.locator("tbody tr")).to_have_count(1)
    expect(tab.run_row(bad)).to_be_visible()
    assert tab.path() == "/?status=failed&agent=filtered"

    tab.page.go_back()
    expect(tab.page.locator("tbody tr")).to_have_count(2)
    tab.press("/")
    tab.page.keyboard.type("yeti")
    tab.press("Enter")
    expect(tab.page.locator("tbody tr")).to_have_count(1)
    expect(tab.run_row(good)).to_be_visible()
    assert tab.path() == "/?q=yeti&agent=filtered"

    tab.page.reload()
    expect(tab.run_row(good)).to_be_visible()
    tab.page.get_by_role("button", name="Clear filters").click()
    expect(tab.run_row(bad)).to_be_visible()
    assert tab.path() == "/"


def test_the_purposes_of_runs_that_are_not_shown_are_offered(
    open_tab: OpenTab, recorder: Recorder
) -> None:
    recorder.finish(recorder.start("smoke", purpose="smoke_test"))
    tab = open_tab("/?q=no-run-holds-this")
    expect(tab.page.get_by_role("heading", name="No run matches")).to_be_visible()
    tab.page.get_by_label("Purpose").select_option("smoke_test")
    tab.page.wait_for_url("**/?q=no-run-holds-this&purpose=smoke_test")


def test_a_run_that_the_server_deletes_leaves_the_list(
    open_tab: OpenTab, recorder: Recorder, database: Path
) -> None:
    gone, kept = recorder.start("kept"), recorder.start("kept")
    recorder.finish(gone)
    tab, open_run = open_tab("/?agent=kept"), open_tab(f"/runs/{gone}")
    expect(tab.run_row(gone)).to_be_visible()
    expect(open_run.tree).to_be_visible()
    with closing(Store(str(database))) as store:
        delete_run(store, gone)
    expect(tab.run_row(gone)).to_have_count(0)
    expect(tab.run_row(kept)).to_be_visible()
    expect(open_run.page.locator("header.run-head")).to_contain_text("deleted")
    # The browser itself notes the answer 404.
    assert "404" in " ".join(open_run.problems)
    open_run.problems.clear()


def test_the_keyboard_walks_through_the_list(open_tab: OpenTab, recorder: Recorder) -> None:
    runs = [recorder.start("walked") for _ in range(3)]
    recorder.finish(runs[0], "failed")
    tab = open_tab("/?agent=walked")
    expect(tab.page.locator("tbody tr")).to_have_count(3)
    tab.press("j", "j", "k", "e")
    expect(tab.run_row(runs[0]).get_by_role("link").first).to_be_focused()
    tab.press("g")
    expect(tab.run_row(runs[2]).get_by_role("link").first).to_be_focused()
    tab.press("Enter")
    expect(tab.page.locator("header.run-head")).to_contain_text("walked")
    assert tab.path() == f"/runs/{runs[2]}"
    tab.press("Escape")
    expect(tab.run_row(runs[2])).to_be_visible()
