"""Events: the changes in the file, as server-sent events.

Other processes write to the file, and do not tell this server. So a stream reads the revision of
the file ten times a second, which takes microseconds.
"""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from sqlite3 import Connection
from typing import Final

import anyio
import msgspec
from starlette.types import Receive, Scope, Send

from prefactor_core.local.viewer.reader import Reader
from prefactor_core.local.viewer.runs import RunCount, changed_runs, count_runs, revision

_INTERVAL: Final = 0.1
"""Seconds between two looks at the file, and between two events."""

_SILENCE: Final = 15.0
"""Seconds without an event after which a comment says that the stream is alive."""

_MOST_ROWS: Final = 1_000
"""About the most rows of one event. More changes come as several events."""

_GOODBYE_TIMEOUT: Final = 0.2
"""Seconds for sending the end of a stream to a slow client."""


class Position:
    """How far a stream has reported the changes of all runs.

    ``after``: the revision that the client knows; None for the newest one.
    ``revision``: the one up to which everything was reported.
    """

    def __init__(self, after: int | None) -> None:
        self._after = after
        self._count = RunCount(0, 0)
        self.revision = 0

    def begin(self, db: Connection) -> None:
        """Find where to begin."""
        newest = revision(db)
        # A client that is further knows another file, which was at this address before.
        self.revision = newest if self._after is None else min(self._after, newest)
        self._count = count_runs(db)

    def advance(self, db: Connection) -> bytes:
        """The JSON of the next event; empty if everything was reported."""
        newest = revision(db)
        if newest == self.revision:
            return b""
        runs = changed_runs(db, self.revision, _MOST_ROWS)
        self.revision = newest if len(runs) < _MOST_ROWS else runs[-1].revision
        before, self._count = self._count, count_runs(db)
        deleted = before.has_lost(self._count)
        if not runs and not deleted:
            return b""
        return msgspec.json.encode(
            {
                "runs": runs,
                "total": self._count.total,
                # The file no longer has their ids: the client looks which of its runs are there.
                "deleted": deleted,
                "revision": self.revision,
            }
        )


class EventStream:
    """An ASGI response: events from ``position`` on, until the client leaves or ``stopping`` is
    set."""

    def __init__(self, reader: Reader, position: Position, stopping: anyio.Event) -> None:
        self._reader = reader
        self._position = position
        self._stopping = stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._reader.read(self._position.begin)
        headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async with anyio.create_task_group() as tasks:
            # The first one that ends cancels the others; the events alone never end.
            tasks.start_soon(self._until_left, receive, tasks.cancel_scope)
            tasks.start_soon(self._until_stopping, tasks.cancel_scope)
            tasks.start_soon(self._send_events, send, tasks.cancel_scope)
        with anyio.move_on_after(_GOODBYE_TIMEOUT), suppress(OSError):
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _until_left(self, receive: Receive, stream: anyio.CancelScope) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        stream.cancel()

    async def _until_stopping(self, stream: anyio.CancelScope) -> None:
        await self._stopping.wait()
        stream.cancel()

    async def _send_events(self, send: Send, stream: anyio.CancelScope) -> None:
        # A client that loses the connection waits a second, and then names the last id it got.
        content = b"retry: 1000\nid: %d\n\n" % self._position.revision
        written_at = anyio.current_time()
        while True:
            if content:
                try:
                    await send({"type": "http.response.body", "body": content, "more_body": True})
                except OSError:  # some servers raise it if the client has left
                    stream.cancel()
                written_at = anyio.current_time()
            content = await self._next_event()
            if not content and anyio.current_time() - written_at >= _SILENCE:
                content = b": still here\n\n"
            await anyio.sleep(_INTERVAL)

    async def _next_event(self) -> bytes:
        try:
            data = await self._reader.read(self._position.advance)
        except sqlite3.Error:
            return b""  # the requests of the page will say that the file cannot be read
        return data and b"event: runs\ndata: %b\nid: %d\n\n" % (data, self._position.revision)
