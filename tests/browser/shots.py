"""Take the pictures of the README into a folder: ``python -m browser.shots FOLDER``."""

from __future__ import annotations

import shutil
import sys
import tempfile
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

from browser.recording import NOON, Recorder
from browser.sample import record_sample
from playwright.sync_api import Browser, expect, sync_playwright
from support.serving import serving_file

WIDE: dict[str, Any] = {"viewport": {"width": 1080, "height": 620}}
LIST: dict[str, Any] = {"viewport": {"width": 1080, "height": 360}}
PHONE: dict[str, Any] = {"viewport": {"width": 360, "height": 640}, "is_mobile": True}


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place, serving_file(Path(place) / "runs.db") as url:
        with closing(Recorder(url)) as recorder:
            run, span = record_sample(recorder)
        with sync_playwright() as playwright:
            executable = shutil.which("chromium") or shutil.which("google-chrome")
            browser = playwright.chromium.launch(
                executable_path=executable, args=["--no-sandbox", "--disable-gpu"]
            )
            page = f"{url}/runs/{run}?span={span}&tab=result"
            _take(browser, url, folder / "runs.png", LIST, "light")
            _take(browser, page, folder / "run.png", WIDE, "light")
            _take(browser, page, folder / "run-dark.png", WIDE, "dark")
            _take(browser, f"{url}/runs/{run}", folder / "phone.png", PHONE, "light")
            browser.close()


def _take(browser: Browser, url: str, path: Path, options: dict[str, Any], theme: str) -> None:
    context = browser.new_context(color_scheme=theme, timezone_id="UTC", **options)
    page = context.new_page()
    page.clock.set_fixed_time(NOON + timedelta(seconds=75))
    page.goto(url)
    if "tab=result" in url:
        page.get_by_role("tabpanel").get_by_role("button", name="Markdown", exact=True).click()
        expect(page.get_by_role("tabpanel").get_by_role("table")).to_be_visible()
    else:
        expect(page.locator("#live")).to_contain_text("live")
        expect(page.get_by_role("row").nth(2)).to_be_visible()
    page.screenshot(path=path, animations="disabled")
    context.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
