"""What is recorded for the tests: by plain calls, by a real agent, or straight into the file."""

from __future__ import annotations

import queue
import sqlite3
import threading
from collections.abc import Iterable, Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import anyio
import httpx

from prefactor_core import QueueConfig, open_prefactor
from prefactor_core.operations.identifiers import generate_related
from prefactor_core.span_types import standard_types

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def at(seconds: float) -> str:
    """The time so many seconds after noon."""
    return (NOON + timedelta(seconds=seconds)).isoformat()


class Recorder:
    """Records runs by plain calls of the API at ``url``."""

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=f"{url}/api/v1/", timeout=30, trust_env=False)

    def close(self) -> None:
        self._http.close()

    def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        answer = self._http.post(path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()["details"]

    def start(self, agent: str = "guide", started_at: str | None = None, **fields: Any) -> str:
        """A run that has started; its id."""
        version = {"name": agent, "external_identifier": "1"}
        body = {"agent_id": agent, "agent_version": version, "agent_schema_version": {}, **fields}
        run = self._post("agent_instance/register", body)["id"]
        self._post(f"agent_instance/{run}/start", {"timestamp": started_at})
        return str(run)

    def span(
        self,
        run: str,
        name: str = "agent:tool_call",
        status: str = "complete",
        *,
        payload: Mapping[str, Any] | None = None,
        result: Mapping[str, Any] | None = None,
        parent: str | None = None,
        **times: str,
    ) -> str:
        """A span; its id."""
        details: dict[str, Any] = {
            "agent_instance_id": run,
            "schema_name": name,
            "status": status,
            "payload": payload or {},
            "parent_span_id": parent,
            **times,
        }
        if result is not None:
            details["result_payload"] = result
        return str(self._post("agent_spans", {"details": details})["id"])

    def finish(self, run: str, status: str = "complete", timestamp: str | None = None) -> None:
        self._post(f"agent_instance/{run}/finish", {"status": status, "timestamp": timestamp})

    def status(self, run: str) -> str:
        return str(self._http.get(f"agent_instance/{run}").json()["details"]["status"])


class LiveAgent:
    """A real agent in a thread of its own. It has one open span, and records a step below it for
    each :meth:`take_step`. When it is left it finishes, unless its run was terminated.

    ``error``: what left its scope.
    """

    def __init__(self, api_url: str, backend: str = "asyncio") -> None:
        self.run_id = ""
        self.error: Exception | None = None
        self._api_url = api_url
        self._backend = backend
        self._steps: queue.SimpleQueue[tuple[str, Exception | None] | None] = queue.SimpleQueue()
        self._began = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._began.wait(20), "the agent did not begin"
        if self.error is not None:
            raise self.error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._steps.put(None)
        self.wait_for_end()

    def take_step(self, name: str, error: Exception | None = None) -> None:
        """Record a span of the type ``name``, which fails with ``error``."""
        self._steps.put((name, error))

    def wait_for_end(self) -> None:
        self._thread.join(20)
        assert not self._thread.is_alive(), "the agent did not end"

    def _run(self) -> None:
        try:
            anyio.run(self._work, backend=self._backend)
        except Exception as error:
            self.error = error
        finally:
            self._began.set()

    async def _work(self) -> None:
        async with open_prefactor(
            api_url=self._api_url,
            api_token="token-of-the-browser-tests",
            schema_registry=standard_types(),
            termination_poll_interval=1.0,
            queue_config=QueueConfig(report_after=0.1),
        ) as client:
            async with client.agent_instance(
                agent_id="live", agent_version={"name": "Live agent", "external_identifier": "1"}
            ) as instance:
                async with instance.span("agent:run", payload={"question": "How high is K2?"}):
                    self.run_id = instance.id
                    self._began.set()
                    while (step := await self._next_step()) is not None:
                        name, error = step
                        try:
                            async with instance.span(name):
                                if error is not None:
                                    raise error
                        except Exception as raised:
                            if raised is not error:
                                raise

    async def _next_step(self) -> tuple[str, Exception | None] | None:
        while True:
            try:
                return self._steps.get_nowait()
            except queue.Empty:
                await anyio.sleep(0.02)


def fill(path: Path, run: str, rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Write many spans into the closed or open file, each a changed copy of the run's one span,
    with the counts of the run; their ids. A row's ``parent`` is the index of an earlier row."""
    with closing(sqlite3.connect(path, timeout=20)) as database, database:
        database.row_factory = sqlite3.Row
        one = dict(
            database.execute(
                "SELECT * FROM agent_spans WHERE agent_instance_id = ?", (run,)
            ).fetchone()
        )
        columns = ", ".join(one)
        marks = ", ".join(f":{name}" for name in one)
        ids: list[str] = []

        def copies() -> Iterable[dict[str, Any]]:
            for row in rows:
                parent = row.get("parent")
                ids.append(generate_related(one["id"]))
                yield {
                    **one,
                    "id": ids[-1],
                    "parent_span_id": None if parent is None else ids[parent],
                    **{name: value for name, value in row.items() if name != "parent"},
                }

        database.executemany(f"INSERT INTO agent_spans ({columns}) VALUES ({marks})", copies())
        database.execute(
            "UPDATE agent_instances SET (complete_spans, failed_spans) = ("
            " SELECT sum(status = 'complete'), sum(status = 'failed') FROM agent_spans"
            " WHERE agent_instance_id = ?1) WHERE id = ?1",
            (run,),
        )
    return ids
