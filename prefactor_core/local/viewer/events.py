"""Events: the changes in the file, as server-sent events.

Other processes write to the file, and do not tell this server. So a stream reads the revision of
the file ten times a second, which takes microseconds.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import suppress
from sqlite3 import Connection
from typing import Final

import anyio
import msgspec
from starlette.types import Receive, Scope, Send

from prefactor_core.local.viewer.reader import Reader
from prefactor_core.local.viewer.runs import (
    RunCount,
    changed_runs,
    count_runs,
    revision,
    run_row,
)
from prefactor_core.local.viewer.spans import changed_spans, changes_json

_INTERVAL: Final = 0.1
"""Seconds between two looks at the file, and between two events."""

_SILENCE: Final = 15.0
"""Seconds without an event after which a comment says that the stream is alive."""

_MOST_ROWS: Final = 1_000
"""About the most rows of one event. More changes come as several events."""

_GOODBYE_TIMEOUT: Final = 0.2
"""Seconds for sending the end of a stream to a slow client."""

Event = tuple[str, bytes]
"""The name of an event, and its JSON."""


class Position:
    """How far a stream has reported the changes of all runs, and of the spans of ``run_ids``.

    ``after``: the revision that the client knows; None for the newest one.
    """

    def __init__(self, run_ids: Iterable[str], after: int | None) -> None:
        self._after = after
        self._runs_after = 0
        self._count = RunCount(0, 0)
        self._spans_after = dict.fromkeys(run_ids, 0)

    @property
    def revision(self) -> int:
        """The revision up to which everything was reported."""
        return min([self._runs_after, *self._spans_after.values()])

    def begin(self, db: Connection) -> None:
        """Find where to begin. Raises :class:`ApiError` (404) for a run that is unknown."""
        for run_id in self._spans_after:
            run_row(db, run_id)
        newest = revision(db)
        # A client that is further knows another file, which was at this address before.
        start = newest if self._after is None else min(self._after, newest)
        self._runs_after = start
        self._count = count_runs(db)
        self._spans_after = dict.fromkeys(self._spans_after, start)

    def advance(self, db: Connection) -> list[Event]:
        """The next events; none if everything was reported."""
        newest = revision(db)
        if newest == self.revision:
            return []
        events: list[Event] = []
        runs = changed_runs(db, self._runs_after, _MOST_ROWS)
        self._runs_after = newest if len(runs) < _MOST_ROWS else runs[-1].revision
        before, self._count = self._count, count_runs(db)
        deleted = before.has_lost(self._count)
        if runs or deleted:
            content = {
                "runs": runs,
                "total": self._count.total,
                # Their ids are not known any more: the client looks which of its runs are there.
                "deleted": deleted,
                "revision": self._runs_after,
            }
            events.append(("runs", msgspec.json.encode(content)))
        for run_id, after in self._spans_after.items():
            changed = changed_spans(db, run_id, after, _MOST_ROWS)
            self._spans_after[run_id] = changed.revision
            # A change of the run alone counts, too: its end, say.
            if changed.rows or any(run.id == run_id for run in runs):
                events.append(("spans", changes_json(run_row(db, run_id), changed)))
        return events


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
            events = await self._next_events()
            content = _encode(events, self._position.revision)
            if not events and anyio.current_time() - written_at >= _SILENCE:
                content = b": still here\n\n"
            await anyio.sleep(_INTERVAL * max(1, len(events)))

    async def _next_events(self) -> list[Event]:
        try:
            return await self._reader.read(self._position.advance)
        except sqlite3.Error:
            return []  # the requests of the page will say that the file cannot be read


def _encode(events: list[Event], revision: int) -> bytes:
    """The events as lines. Only the last one has an id: a client that gets no more than the first
    ones must get all of them again."""
    lines = b"\n".join(b"event: %b\ndata: %b\n" % (name.encode(), data) for name, data in events)
    return b"%bid: %d\n\n" % (lines, revision) if events else b""
