"""LongSpans: reports spans that stay open, while they are open."""

from __future__ import annotations

import math
from collections import deque
from itertools import takewhile
from typing import Final

import anyio
import anyio.lowlevel

from prefactor_core.models.lifecycle import SpanStatus
from prefactor_core.recording.recorder import Recorder
from prefactor_core.recording.span_record import SpanRecord

_PENDING: Final = SpanStatus.PENDING

_TICKS: Final = 4
"""A span is reported after this many ticks: at most a quarter of ``report_after`` too late."""

_SLICE: Final = 200
"""The number of spans that are reported before other tasks have a turn."""


class LongSpans:
    """Reports spans as active that are still open ``report_after`` seconds after their opening,
    ancestors first.

    One timer serves all spans. Each quarter of ``report_after`` is a tick: it notes the serial of
    the span that was opened last. Four ticks later the spans up to that serial are due. While every
    open span is reported, the timer sleeps until another span is opened. One worker runs
    :meth:`serve`.

    A span whose payload is filled in from its result is reported at its end, because the API
    accepts no payload after the create; so are its descendants.
    """

    def __init__(self, recorder: Recorder, report_after: float) -> None:
        self._recorder = recorder
        self._index = recorder.index
        self._tick = report_after / _TICKS
        recorder.reports_at_once = report_after == 0
        self._reports_later = 0 < report_after < math.inf
        # The serial of the span that was opened last, at each of the last ticks.
        self._opened: deque[int] = deque()
        self._closing = anyio.Event()

    async def serve(self) -> None:
        """Report spans until :meth:`close`."""
        while self._reports_later and not self._closing.is_set():
            if not self._index.unreported:
                await self._wait_for_span()
                continue
            self._opened.append(self._index.opened)
            with anyio.move_on_after(self._tick):
                await self._closing.wait()
            if len(self._opened) >= _TICKS and not self._closing.is_set():
                await self._report(self._opened.popleft())

    def close(self) -> None:
        """Make :meth:`serve` return."""
        self._closing.set()
        self._recorder.wake_reporter()

    async def _wait_for_span(self) -> None:
        self._opened.clear()
        woken = anyio.Event()
        with self._recorder.event_loop.lock:
            self._recorder.reporter = woken.set
        # Another thread may have opened a span before this statement.
        if not self._index.unreported and not self._closing.is_set():
            await woken.wait()

    async def _report(self, last: int) -> None:
        """Report the spans up to the serial ``last``."""
        with self._recorder.event_loop.lock:
            # A copy: a finaliser may open a span during the loop.
            unreported = list(self._index.unreported.values())
        due = takewhile(lambda span: span.serial <= last, unreported)
        waiting = set[SpanRecord]()
        for number, span in enumerate(due, 1):
            span.refresh()
            # Parents precede their children, so one pass is enough.
            if span.status is _PENDING and (span.from_result or span.parent in waiting):
                waiting.add(span)
            else:
                self._recorder.report(span)
            if number % _SLICE == 0:
                await anyio.lowlevel.checkpoint()
