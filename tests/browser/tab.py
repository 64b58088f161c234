"""A tab of the browser that notes what must never happen in it."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import BrowserContext, Locator, Page, Request, expect


class Tab:
    """A page of the viewer at ``url``.

    ``problems``: errors in the console, exceptions, and requests to other hosts.
    """

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.problems: list[str] = []
        self.url = url
        self.page: Page = context.new_page()
        self.page.on("console", lambda message: self._note(message.type, message.text))
        self.page.on("pageerror", lambda error: self.problems.append(f"exception: {error}"))
        self.page.on("request", self._check)
        self.page.on("websocket", lambda socket: self.problems.append(f"socket: {socket.url}"))

    def _note(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.problems.append(f"{kind}: {text}")

    def _check(self, request: Request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme in ("http", "https") and parts.netloc != urlsplit(self.url).netloc:
            self.problems.append(f"request: {request.url}")

    def open(self, path: str = "/") -> None:
        self.page.goto(self.url + path)

    def path(self) -> str:
        """Path and query that the address bar shows."""
        parts = urlsplit(self.page.url)
        return parts.path + (f"?{parts.query}" if parts.query else "")

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def run_row(self, run: str) -> Locator:
        """The row of a run in the list of runs."""
        return self.page.locator("table tbody tr", has=self.page.locator(f'a[href="/runs/{run}"]'))

    @property
    def tree(self) -> Locator:
        """The tree of the spans of a run."""
        return self.page.get_by_role("treegrid")

    @property
    def chosen(self) -> Locator:
        """The row of the tree that is selected."""
        return self.tree.locator('[role="row"][aria-selected="true"]')

    def span_row(self, text: str) -> Locator:
        """The rows of the tree that hold ``text``."""
        return self.tree.locator('[role="row"]:not([hidden])', has_text=text)

    @property
    def detail(self) -> Locator:
        """The panel that shows the selected span."""
        return self.page.get_by_role("tabpanel")

    def show_tab(self, name: str) -> None:
        """Open a tab of the selected span."""
        self.page.get_by_role("tab", name=name).click()
        expect(self.detail).to_be_visible()

    def evaluate(self, script: str, argument: Any = None) -> Any:
        return self.page.evaluate(script, argument)
