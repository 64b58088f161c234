"""The exported file: one run for a colleague, without a server."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from browser.conftest import OpenTab
from browser.recording import Recorder, at
from playwright.sync_api import Browser, Page, expect


@pytest.fixture(scope="module")
def exported(recorder: Recorder, url: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = recorder.start("exported", at(0))
    root = recorder.span(run, "agent:run", payload={"question": "</script><b>How high?</b>"})
    error = {"error": {"type": "ValueError", "message": "unknown unit"}}
    recorder.span(run, parent=root, status="failed", result=error, payload={"unit": "fathom"})
    recorder.finish(run, "failed", at(10))
    path = tmp_path_factory.mktemp("export") / "run.html"
    answer = httpx.get(f"{url}/-/runs/{run}/export", params={"format": "html"}, trust_env=False)
    assert answer.status_code == 200
    assert "attachment" in answer.headers["content-disposition"]
    path.write_bytes(answer.content)
    return path


def test_it_opens_from_the_disk_and_asks_for_nothing(chromium: Browser, exported: Path) -> None:
    page: Page = chromium.new_page(offline=True)
    problems: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(exported.as_uri())

    rows = page.get_by_role("treegrid").locator('[role="row"][aria-level]:not(.gap)')
    expect(rows).to_have_count(2)
    page.keyboard.press("e")
    panel = page.get_by_role("tabpanel")
    expect(panel).to_contain_text("unknown unit")
    page.get_by_role("tab", name="Input").click()
    expect(panel).to_contain_text("fathom")
    page.keyboard.press("/")
    page.keyboard.type("How high?")
    expect(page.get_by_role("search").first).to_contain_text("1 hit")
    page.keyboard.press("Enter")
    expect(panel).to_contain_text("</script><b>How high?</b>")
    expect(page.get_by_role("button", name="Terminate")).to_be_hidden()

    page.get_by_role("button", name="Text", exact=True).last.click()
    page.get_by_role("button", name="Add inputs and results of 2 spans").click()
    text = page.get_by_role("region", name="The run as text")
    expect(text).to_contain_text('input  {"unit":"fathom"}')

    # The icon may be inside of the file.
    asked = [url for url in requests if not url.startswith("data:")]
    assert (problems, asked) == ([], [exported.as_uri()])
    page.close()


@pytest.mark.parametrize("text", ["One HTML file", "JSON, as", "OpenTelemetry"])
def test_the_menu_downloads_a_file(open_tab: OpenTab, recorder: Recorder, text: str) -> None:
    run = recorder.start("exported")
    recorder.finish(run)
    tab = open_tab(f"/runs/{run}")
    tab.page.get_by_label("Export the run").click()
    with tab.page.expect_download() as download:
        tab.page.get_by_role("link", name=text).click()
    assert download.value.path().stat().st_size > 0
