"""A narrow screen: list, run and span are three pages."""

from __future__ import annotations

from browser.conftest import OpenTab
from browser.recording import Recorder
from playwright.sync_api import expect

PHONE = {
    "viewport": {"width": 390, "height": 844},
    "has_touch": True,
    "is_mobile": True,
    "device_scale_factor": 2,
}


def test_list_run_and_span_are_three_pages(open_tab: OpenTab, recorder: Recorder) -> None:
    run = recorder.start("pocket")
    span = recorder.span(run, payload={"unit": "fathom"})
    recorder.finish(run)

    tab = open_tab("/?agent=pocket", **PHONE)
    tab.run_row(run).get_by_role("link").first.tap()
    expect(tab.tree).to_be_visible()
    expect(tab.detail).to_be_hidden()

    tab.span_row("tool_call").tap()
    tab.show_tab("Input")
    expect(tab.detail).to_contain_text("fathom")
    expect(tab.tree).to_be_hidden()
    assert tab.path() == f"/runs/{run}?span={span}&tab=input"

    tab.page.go_back()
    expect(tab.tree).to_be_visible()
    expect(tab.detail).to_be_hidden()
    tab.page.go_back()
    expect(tab.run_row(run)).to_be_visible()


def test_no_page_is_wider_than_the_screen(open_tab: OpenTab, recorder: Recorder) -> None:
    run = recorder.start("pocket", external_identifier="x" * 60)
    span = recorder.span(run, payload={"long": "y" * 500})
    for path in ("/", "/agents", f"/runs/{run}", f"/runs/{run}?span={span}&tab=input"):
        tab = open_tab(path, **PHONE)
        expect(tab.page.get_by_role("main")).to_contain_text(
            "pocket" if "span" not in path else "y"
        )
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390, path
