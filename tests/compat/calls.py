"""Plain calls of the API, and a line for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

Answer = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """What a client or a call came to. ``problem`` is empty when all is well."""

    name: str
    problem: str = ""

    def __str__(self) -> str:
        return f"FAIL {self.name}: {self.problem}" if self.problem else f"PASS {self.name}"


class Calls:
    """The API at ``url``. ``lines`` has a line for each call made by :meth:`call`."""

    def __init__(self, url: str, who: str = "") -> None:
        self.lines: list[Line] = []
        self._who = who
        self._http = httpx.Client(
            base_url=f"{url}/api/v1/",
            headers={"Authorization": "Bearer token-of-compat", "Accept": "application/json"},
            timeout=30,
            trust_env=False,
        )

    def get(self, path: str, **query: str) -> Answer:
        """What is answered to a GET; raises ``httpx.HTTPStatusError``."""
        response = self._http.get(path, params=query).raise_for_status()
        answer: Answer = response.json()
        return answer

    def spans(self, run: str) -> list[Answer]:
        """The spans of a run, all pages; raises ``httpx.HTTPStatusError``."""
        spans: list[Answer] = []
        offset: int | None = 0
        while offset is not None:
            page = self.get(
                "agent_spans",
                **{"agent_instance_id": run, "pagination[offset]": str(offset)},
            )
            spans += page["summaries"]
            offset = page["pagination"]["next_page_offset"]
        return spans

    def post(self, path: str, body: Mapping[str, Any]) -> Answer:
        """What is answered to a POST; raises ``httpx.HTTPStatusError``."""
        answer: Answer = self._http.post(path, json=body).raise_for_status().json()
        return answer

    def call(
        self,
        name: str,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, str] | None = None,
        reads: Callable[[Answer], object] = lambda answer: answer,
        refused: int | None = None,
    ) -> Any:
        """Make a call, note its line, and return what ``reads`` takes from the answer; None if
        that fails. ``refused``: an HTTP status that is as good as an answer."""
        problem, found = "", None
        response = self._http.request(method, path, json=body, params=query)
        try:
            answer = response.json()
            if response.status_code == refused and answer["status"] == "error":
                pass
            elif response.status_code >= 400:
                problem = f"{method} {path}: {response.status_code} {answer.get('message')}"
            else:
                found = reads(answer)
        except (ValueError, LookupError, TypeError, AssertionError) as error:
            problem = f"{method} {path}: {error!r} in {response.text[:200]}"
        self.lines.append(Line(f"{self._who} {name}", problem))
        return found
