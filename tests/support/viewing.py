"""The viewer over a file that the API writes, and its answers."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio
import httpx
import msgspec
from starlette.types import ASGIApp
from support.local_api import Api, calling
from support.transport import http_to

from prefactor_core.local import open_local_prefactor
from prefactor_core.local.viewer import Viewer, open_viewer


@dataclass
class Site:
    """The API and the viewer of one file."""

    path: str
    api: Api
    viewer: Viewer
    http: httpx.AsyncClient

    async def get(self, path: str, **query: object) -> httpx.Response:
        with anyio.fail_after(20):
            return await self.http.get(path, params={k: str(v) for k, v in query.items()})

    async def json(self, path: str, **query: object) -> Any:
        """The JSON of a call that must succeed."""
        answer = await self.get(path, **query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def runs(self, **query: object) -> list[str]:
        """The ids of the runs on a page of the list."""
        return [run["id"] for run in (await self.json("/-/runs", **query))["runs"]]

    async def run(self, run_id: str) -> Any:
        return (await self.json(f"/-/runs/{run_id}"))["run"]

    async def span(self, span_id: str) -> Any:
        return (await self.json(f"/-/spans/{span_id}"))["span"]

    async def skeleton(self, run_id: str) -> list[dict[str, Any]]:
        """The spans of a run, each as a map from its fields."""
        return rows_of(await self.json(f"/-/runs/{run_id}/skeleton"))


def rows_of(shape: Any) -> list[dict[str, Any]]:
    return [dict(zip(shape["fields"], row, strict=True)) for row in shape["rows"]]


@asynccontextmanager
async def viewing(path: str, **options: Any) -> AsyncGenerator[Site]:
    """The API and the viewer of the file ``path``."""
    async with (
        open_local_prefactor(path) as local,
        calling(local) as api,
        open_viewer(path, **options) as viewer,
        http_to(viewer, "http://127.0.0.1:8787") as http,
    ):
        yield Site(path, api, viewer, http)


@dataclass
class Event:
    """A server-sent event; ``id`` is None if the event has none."""

    name: str
    data: Any
    id: int | None


class Stream:
    """A client of ``/-/events`` that calls the ASGI application, as a server does.

    ``is_stuck``: it reads nothing more. ``is_lost``: a write to it fails.
    """

    def __init__(self, app: ASGIApp, path: str, headers: dict[str, str]) -> None:
        address, _, query = path.partition("?")
        self._app = app
        self._scope: Any = {
            "type": "http",
            "http_version": "1.1",
            "method": "GET",
            "path": address,
            "raw_path": address.encode(),
            "root_path": "",
            "scheme": "http",
            "query_string": query.encode(),
            "headers": [(k.lower().encode(), v.encode()) for k, v in headers.items()],
        }
        self._sent, self._received = anyio.create_memory_object_stream[Any](1000)
        self._left = anyio.Event()
        self._text = ""
        self.ended = anyio.Event()
        self.last_id: int | None = None
        self.is_stuck = False
        self.is_lost = False
        self.stuck = anyio.Event()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *error: object) -> None:
        self._sent.close()
        self._received.close()

    async def run(self) -> None:
        await self._app(self._scope, self._receive, self._send)
        self.ended.set()

    async def _send(self, message: Any) -> None:
        if self.is_lost:
            raise OSError("the connection is closed")
        if self.is_stuck:
            self.stuck.set()
            await anyio.sleep_forever()
        await self._sent.send(message)

    async def _receive(self) -> dict[str, object]:
        await self._left.wait()
        return {"type": "http.disconnect"}

    def leave(self) -> None:
        """Close the connection."""
        self._left.set()

    async def message(self) -> Any:
        """The next message of the application."""
        with anyio.fail_after(20):
            return await self._received.receive()

    async def block(self) -> str:
        """The next lines up to an empty one."""
        while "\n\n" not in self._text:
            self._text += (await self.message())["body"].decode()
        block, _, self._text = self._text.partition("\n\n")
        return block

    async def event(self) -> Event:
        """The next event, after comments and ids alone."""
        while True:
            fields = dict(line.split(": ", 1) for line in (await self.block()).splitlines())
            id = int(fields["id"]) if "id" in fields else None
            if id is not None:
                self.last_id = id
            if "data" in fields:
                return Event(fields["event"], msgspec.json.decode(fields["data"]), id)

    async def event_with(self, id: str) -> Event:
        """The next event that has the run or span ``id``."""
        while True:
            event = await self.event()
            rows = event.data.get("rows") or event.data["runs"]
            if id in [row[0] if isinstance(row, list) else row["id"] for row in rows]:
                return event


@asynccontextmanager
async def listening(site: Site, path: str, **headers: str) -> AsyncGenerator[Stream]:
    """A client of ``path``, which has got the head of the answer; it leaves with the block."""
    async with anyio.create_task_group() as tasks:
        with Stream(site.viewer, path, headers) as stream:
            tasks.start_soon(stream.run)
            head = await stream.message()
            assert (head["type"], head["status"]) == ("http.response.start", 200), head
            yield stream
            stream.leave()
            with anyio.fail_after(20):
                await stream.ended.wait()
