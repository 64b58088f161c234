"""One browser and one server for all tests; a tab for each, which must stay without problems."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path

import pytest
from browser.recording import Recorder
from browser.tab import Tab
from playwright.sync_api import Browser, BrowserContext, expect, sync_playwright
from support.serving import serving_file

expect.set_options(timeout=10_000)

OpenTab = Callable[..., Tab]


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("site") / "runs.db"


@pytest.fixture(scope="session")
def url(database: Path) -> Generator[str]:
    """The address of a server that all tests share. Its file holds a run: the page would open the
    first one by itself."""
    with serving_file(database) as url:
        with closing(Recorder(url)) as recorder:
            recorder.finish(recorder.start("first"))
        yield url


@pytest.fixture(scope="session")
def recorder(url: str) -> Generator[Recorder]:
    with closing(Recorder(url)) as recorder:
        yield recorder


@pytest.fixture(scope="session")
def chromium() -> Generator[Browser]:
    executable = shutil.which("chromium") or shutil.which("google-chrome")
    assert executable is not None, "Chromium is not installed: apt-get install chromium"
    # A container may allow no sandbox of its own, and little shared memory.
    options = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=options)
        yield browser
        browser.close()


@pytest.fixture
def open_tab(chromium: Browser, url: str) -> Generator[OpenTab]:
    """Opens tabs, each in a browser context of its own with the given options; by default on the
    page ``/`` of the server that all tests share."""
    contexts: list[BrowserContext] = []
    tabs: list[Tab] = []

    def open_tab(path: str = "/", site: str = url, **options: object) -> Tab:
        context = chromium.new_context(
            **{"viewport": {"width": 1280, "height": 800}, "timezone_id": "UTC", **options}
        )
        contexts.append(context)
        tab = Tab(context, site)
        tabs.append(tab)
        tab.open(path)
        return tab

    yield open_tab
    for context in contexts:
        context.close()
    assert [problem for tab in tabs for problem in tab.problems] == []
