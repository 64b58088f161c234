"""The page of a run: the tree by keyboard, search, links and the way back."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest
from browser.conftest import OpenTab
from browser.recording import Recorder, at
from playwright.sync_api import expect


@pytest.fixture(scope="module")
def ids(recorder: Recorder) -> Mapping[str, str]:
    """The ids of a finished run and of its spans, by what they are called in the tests."""
    run = recorder.start("mountains", at(0))
    ids = {"run": run}

    def span(
        key: str, name: str, parent: str | None, begin: float, end: float, **rest: object
    ) -> None:
        ids[key] = recorder.span(
            run,
            name,
            parent=parent and ids[parent],
            started_at=at(begin),
            finished_at=at(end),
            **rest,  # type: ignore[arg-type]
        )

    span("root", "agent:run", None, 0, 10, payload={"question": "How high is K2?"})
    span("plan", "agent:llm_call", "root", 0, 2, payload={"model": "small-1"})
    span("search", "agent:tool_call", "root", 2, 6, payload={"tool": "search"})
    error = {"error": {"type": "ValueError", "message": "unknown unit"}}
    span("convert", "agent:tool_call", "search", 3, 4, status="failed", result=error)
    reader = {"$sensitive": "string", "labels": ["contact_information"], "value": "a@example.org"}
    documents = {"documents": [{"text": "yeti"}], "reader": reader}
    span("notes", "agent:retrieval", "search", 4, 5, result=documents)
    span("answer", "agent:llm_call", "root", 9, 10, result={"response": "8611 m"})
    span("late", "agent:tool_call", None, 10, 11, status="failed", result=error)
    recorder.finish(run, "failed", at(11))
    return ids


def test_the_tree_opens_and_folds_by_keyboard(open_tab: OpenTab, ids: Mapping[str, str]) -> None:
    tab = open_tab(f"/runs/{ids['run']}")
    rows = tab.tree.locator('[role="row"][aria-level]:not(.gap)')
    expect(rows).to_have_count(7)
    assert [rows.nth(n).get_attribute("aria-level") for n in range(7)] == list("1223321")
    tab.press("j", "j", "j")
    expect(tab.chosen).to_contain_text("search")
    tab.press("h")
    expect(tab.chosen).to_have_attribute("aria-expanded", "false")
    expect(tab.chosen).to_contain_text("+2")
    expect(rows).to_have_count(5)
    tab.press("h")  # to the parent
    expect(tab.chosen).to_contain_text("run")
    tab.press("h")
    expect(rows).to_have_count(2)
    tab.press("l", "G")
    expect(tab.chosen).to_have_attribute("aria-level", "1")
    tab.press("]", "]")
    expect(rows).to_have_count(7)
    tab.press("g", "j", "j", "o")
    expect(rows).to_have_count(4)  # the root, the search, and what is below it


def test_the_head_links_to_the_step_that_caused_the_run(
    open_tab: OpenTab, ids: Mapping[str, str], recorder: Recorder
) -> None:
    run = recorder.start("delegate", at(0))
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    cause = {"run_id": ids["run"], "span_id": ids["search"], "traceparent": traceparent}
    recorder.span(run, payload={"prefactor_caused_by": cause})
    tab = open_tab(f"/runs/{run}")
    tab.page.get_by_role("link", name="caused by").click()
    expect(tab.chosen).to_contain_text("search")
    assert tab.path() == f"/runs/{ids['run']}?span={ids['search']}"


def test_failed_spans_are_found_by_keyboard(open_tab: OpenTab, ids: Mapping[str, str]) -> None:
    tab = open_tab(f"/runs/{ids['run']}")
    expect(tab.page.get_by_role("button", name="✕2")).to_be_visible()
    tab.press("[", "e")  # also inside of what is folded
    expect(tab.chosen).to_contain_text("ValueError: unknown unit")
    assert tab.path() == f"/runs/{ids['run']}?span={ids['convert']}"
    expect(tab.detail).to_contain_text("unknown unit")
    tab.press("e")
    assert tab.path() == f"/runs/{ids['run']}?span={ids['late']}"
    tab.press("E")
    assert tab.path() == f"/runs/{ids['run']}?span={ids['convert']}"


def test_search_finds_what_is_in_payloads(open_tab: OpenTab, ids: Mapping[str, str]) -> None:
    tab = open_tab(f"/runs/{ids['run']}")
    expect(tab.span_row("plan").or_(tab.tree)).to_be_visible()
    tab.press("/")
    tab.page.keyboard.type("YETI")
    expect(tab.page.get_by_role("search").first).to_contain_text("1 hit")
    tab.press("Escape", "n")
    expect(tab.chosen).to_contain_text("retrieval")
    assert tab.path() == f"/runs/{ids['run']}?span={ids['notes']}&q=YETI"
    tab.page.reload()
    expect(tab.chosen).to_contain_text("retrieval")
    expect(tab.page.get_by_role("search").first).to_contain_text("1 of 1")


def test_a_link_opens_the_span_and_the_part_of_it(
    open_tab: OpenTab, ids: Mapping[str, str]
) -> None:
    tab = open_tab(f"/runs/{ids['run']}?span={ids['answer']}&tab=result")
    expect(tab.page.get_by_role("tab", selected=True)).to_have_text("Result")
    expect(tab.detail).to_contain_text("8611 m")
    tab.open(f"/spans/{ids['plan']}")
    expect(tab.chosen).to_contain_text("llm_call")
    assert tab.path() == f"/runs/{ids['run']}?span={ids['plan']}"
    tab.show_tab("Input")
    expect(tab.detail).to_contain_text("small-1")
    assert tab.path() == f"/runs/{ids['run']}?span={ids['plan']}&tab=input"


def test_back_leads_to_the_list_whatever_was_selected(
    open_tab: OpenTab, ids: Mapping[str, str]
) -> None:
    tab = open_tab("/?agent=mountains")
    tab.run_row(ids["run"]).get_by_role("link").first.click()
    expect(tab.tree).to_be_visible()
    tab.press("j", "j", "j")
    expect(tab.chosen).to_contain_text("search")
    selected = tab.path()
    tab.page.go_back()
    expect(tab.run_row(ids["run"])).to_be_visible()
    assert tab.path() == "/?agent=mountains"
    tab.page.go_forward()
    expect(tab.chosen).to_contain_text("search")
    assert tab.path() == selected


def test_the_run_is_shown_as_text_and_as_flame(open_tab: OpenTab, ids: Mapping[str, str]) -> None:
    tab = open_tab(f"/runs/{ids['run']}?view=text")
    text = tab.page.get_by_role("region", name="The run as text")
    expect(text).to_contain_text(re.compile(r"3\.00 s +·· idle"))
    for span in ("agent:run", "unknown unit", ids["answer"]):
        expect(text).to_contain_text(span)
    expect(text).not_to_contain_text("yeti")
    more = tab.page.get_by_role("button", name="Add inputs and results")
    more.click()
    expect(text).to_contain_text('"yeti" } ], "reader": "[contact_information]"')
    expect(text).not_to_contain_text("a@example.org")
    expect(more).to_be_hidden()
    tab.page.get_by_role("button", name="Flame").click()
    expect(tab.page.locator(".run-view canvas")).to_be_visible()
    assert tab.path() == f"/runs/{ids['run']}?view=flame"
    tab.page.get_by_role("button", name="Waterfall").click()
    expect(tab.tree).to_be_visible()
    assert tab.path() == f"/runs/{ids['run']}"


def test_the_tabs_of_a_span_stay_while_its_fields_scroll(
    open_tab: OpenTab, recorder: Recorder
) -> None:
    run = recorder.start("scrolled")
    span = recorder.span(run, payload={"text": "line\n" * 200})
    tab = open_tab(f"/runs/{run}?span={span}&tab=input")
    expect(tab.detail).to_contain_text("line")
    tab.detail.evaluate("(fields) => fields.scrollBy(0, 1000)")
    assert tab.detail.evaluate("(fields) => fields.scrollTop") == 1000
    expect(tab.page.get_by_role("tab", name="Input")).to_be_in_viewport()


def test_a_panel_of_the_header_stays_in_the_window(open_tab: OpenTab, recorder: Recorder) -> None:
    run = recorder.start("x" * 60)
    counts = {"prompt_tokens": 3, "completion_tokens": 4, "reasoning_tokens": 2}
    recorder.span(run, "agent:llm_call", payload={"model": "m"}, result={"token_usage": counts})
    tab = open_tab(f"/runs/{run}")
    tab.page.get_by_label("Tokens and cost").click()
    expect(tab.page.get_by_text("Each call is counted once")).to_be_in_viewport(ratio=1)


def test_idle_time_has_a_row_of_its_own(open_tab: OpenTab, ids: Mapping[str, str]) -> None:
    tab = open_tab(f"/runs/{ids['run']}")
    expect(tab.span_row("3.00 s idle")).to_be_visible()


def test_a_question_mark_lists_the_keys_but_not_in_a_field(
    open_tab: OpenTab, ids: Mapping[str, str]
) -> None:
    tab = open_tab(f"/runs/{ids['run']}")
    expect(tab.tree).to_be_visible()
    tab.press("?")
    keys = tab.page.get_by_role("dialog")
    expect(keys).to_contain_text("next error")
    tab.press("Escape")
    expect(keys).to_have_count(0)
    tab.press("/")
    tab.page.keyboard.type("?e")
    expect(tab.page.get_by_role("searchbox")).to_have_value("?e")
    expect(keys).to_have_count(0)


@pytest.mark.parametrize("path", ["/runs/nobody", "/spans/nobody", "/no/such/page"])
def test_an_unknown_address_says_so_and_leads_back(open_tab: OpenTab, path: str) -> None:
    tab = open_tab(path)
    expect(tab.page.get_by_role("heading", level=1)).to_be_visible()
    assert "404" in " ".join(tab.problems)
    tab.problems.clear()  # the browser itself notes the answer 404
    tab.page.get_by_role("link", name="All runs").click()
    expect(tab.page.get_by_role("table")).to_be_visible()
