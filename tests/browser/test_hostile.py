"""Texts that want to be more than texts."""

from __future__ import annotations

from typing import Any

import pytest
from browser.conftest import OpenTab
from browser.recording import Recorder
from browser.tab import Tab
from playwright.sync_api import expect

SCRIPT = "</script><script>window.taken=1</script>"
IMAGE = "<img src=x onerror=window.taken=1>"
MARKDOWN = (
    f"# Title\n\n[press](javascript:window.taken=1) [press](data:text/html,{SCRIPT}) {IMAGE}\n\n"
    "![seen](http://example.invalid/seen.png) [good](https://example.invalid/)\n\n"
    '<a href="javascript:window.taken=1">press</a>'
)
TEXTS = [
    SCRIPT,
    IMAGE,
    "{{constructor.constructor('window.taken=1')()}}",
    "\x1b[31mred\x1b[0m \x07",
    "\u202e\u2066gnp.exe\u2069\u202c",  # overrides the direction of the text
    "__proto__",
    "javascript:window.taken=1",
    "\U0001f469\u200d\U0001f4bb \x00",
]


@pytest.fixture(scope="module")
def run(recorder: Recorder) -> str:
    run = recorder.start(SCRIPT, external_identifier=IMAGE, purpose="eval")
    payload: dict[str, Any] = {text: text for text in TEXTS}
    payload["markdown"] = MARKDOWN
    payload["messages"] = [{"role": IMAGE, "content": text} for text in TEXTS]
    payload["inside"] = '{"html": "<img src=x onerror=window.taken=1>", "n": 12345678901234567890}'
    error = {"error": {"type": IMAGE, "message": SCRIPT}}
    span = recorder.span(run, f"agent:{IMAGE}", "failed", payload=payload, result=error)
    recorder.span(
        run, "agent:llm_call", parent=span, payload=payload, result={"response": MARKDOWN}
    )
    recorder.finish(run, "failed")
    return run


def nothing_was_taken(tab: Tab) -> None:
    """No text has become a script, an element or a link."""
    assert tab.evaluate("window.taken ?? null") is None
    assert tab.evaluate("({}).polluted ?? null") is None
    for wanted in ("img", "iframe", "[onerror]", "a[href^='javascript:']", "a[href^='data:']"):
        expect(tab.page.locator(wanted)).to_have_count(0)
    assert tab.evaluate("document.querySelectorAll('script').length") == 1


def test_hostile_names_stay_text_in_the_list(open_tab: OpenTab, run: str) -> None:
    tab = open_tab()
    expect(tab.run_row(run)).to_contain_text(SCRIPT)
    expect(tab.run_row(run)).to_contain_text(IMAGE)
    nothing_was_taken(tab)
    tab.open("/agents")
    expect(tab.page.get_by_role("table")).to_contain_text(SCRIPT)
    nothing_was_taken(tab)


def test_hostile_payloads_stay_text_in_a_run(open_tab: OpenTab, run: str) -> None:
    tab = open_tab(f"/runs/{run}")
    expect(tab.span_row(IMAGE).first).to_contain_text(SCRIPT)
    for row in ("llm_call", IMAGE):
        tab.span_row(row).first.click()
        for name in ("Summary", "Input", "Result", "Flags", "Raw"):
            tab.show_tab(name)
            nothing_was_taken(tab)
    tab.show_tab("Raw")
    expect(tab.detail).to_contain_text("window.taken=1")
    tab.open(f"/runs/{run}?view=text")
    expect(tab.page.get_by_role("region", name="The run as text")).to_contain_text(IMAGE)
    tab.press("/")
    tab.page.keyboard.type("<img")
    expect(tab.page.get_by_role("search").first).to_contain_text("2 hits")
    nothing_was_taken(tab)


def test_hostile_texts_stay_text_in_every_form_of_a_field(open_tab: OpenTab, run: str) -> None:
    tab = open_tab(f"/runs/{run}")
    tab.span_row("llm_call").first.click()
    for part in ("Input", "Result"):
        tab.show_tab(part)
        for form in ("Text", "Markdown", "JSON"):
            buttons = tab.detail.get_by_role("button", name=form, exact=True)
            for number in range(buttons.count()):
                buttons.nth(number).click()
            nothing_was_taken(tab)
            if part == "Result" and form == "Markdown":
                link = tab.detail.get_by_role("link", name="good")
                expect(link).to_have_attribute("href", "https://example.invalid/")
                assert "noreferrer" in (link.get_attribute("rel") or "")
    expect(tab.detail).to_contain_text("javascript:window.taken=1")


def test_numbers_beyond_a_double_are_shown_as_stored(open_tab: OpenTab, recorder: Recorder) -> None:
    run = recorder.start()
    span = recorder.span(run, payload={"n": 9007199254740993, "text": "a\nb"})
    tab = open_tab(f"/runs/{run}?span={span}&tab=input")
    expect(tab.detail).to_contain_text("9007199254740993")
    tab.show_tab("Raw")
    expect(tab.detail).to_contain_text("9007199254740993")
