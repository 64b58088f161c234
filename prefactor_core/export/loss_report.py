"""LossReport: log lines about losses, while they last."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import Final

import anyio

from prefactor_core.exceptions.log import log
from prefactor_core.export.counters import Counters
from prefactor_core.queue.event_loop import EventLoop

logger = logging.getLogger("prefactor_core.export.loss_report")

_INTERVAL: Final = 60.0
"""Seconds between two lines about a loss that goes on."""

NO_PARENT: Final = "spans are kept without the parent that they were given"
"""The loss that is counted when the API does not know a parent."""

_WHY: Final[Mapping[str, str]] = {
    "full": "max_pending_operations, max_pending_bytes or journal_max_bytes is reached",
    "run_ended": "they were recorded in an agent instance that has ended",
    "refused": "the Prefactor API refuses them",
    "retries_exhausted": "the Prefactor API fails at them while it takes others",
    NO_PARENT: "the Prefactor API does not know it",
}


class LossReport:
    """One warning when a loss begins, one a minute with its amount while it goes on, and one line
    when it is over.

    The kinds of loss are the reasons of ``statistics().dropped`` and :data:`NO_PARENT`. One worker
    runs :meth:`serve`. ``dropped_are``: what becomes of dropped operations, for the log.
    """

    def __init__(
        self, counters: Counters, event_loop: EventLoop, dropped_are: str = "dropped"
    ) -> None:
        self._counters = counters
        self._event_loop = event_loop
        self._dropped_are = dropped_are
        self._began = anyio.Event()
        self._closing = anyio.Event()
        self._spans_without_parent = 0
        # How many the log knows of, by kind of loss, while it lasts.
        self._reported: dict[str, int] = {}

    def dropped(self, reason: str, detail: str | None = None) -> None:
        """Report a dropped operation; in the thread of the loop. ``detail``: which, and why."""
        self._lost(reason, detail)

    def dropped_in_any_thread(self, reason: str, detail: str | None = None) -> None:
        """As :meth:`dropped`, for any thread that holds the lock of recording."""
        if reason not in self._reported:
            # Noted now, or a burst would call the loop for each of its operations.
            self._reported[reason] = self._counts()[reason]
            self._event_loop.run_soon(partial(self._report_begin, reason, detail))

    def kept_without_parent(self, detail: str) -> None:
        """Report a span that was kept without its parent. ``detail``: which."""
        self._spans_without_parent += 1
        self._lost(NO_PARENT, detail)

    async def serve(self) -> None:
        """Report once a minute the losses that go on, until :meth:`close`."""
        while not self._closing.is_set():
            if not self._reported:  # else a worker before this one was cancelled while a loss lasts
                await self._began.wait()
            self._began = anyio.Event()
            while self._reported and not self._closing.is_set():
                with anyio.move_on_after(_INTERVAL) as pause:
                    await self._closing.wait()
                if pause.cancelled_caught and not self._event_loop.is_forked:
                    self._report_last_minute()

    def close(self) -> None:
        """End :meth:`serve`; the begin of a loss is still reported."""
        self._closing.set()
        self._began.set()

    def _counts(self) -> dict[str, int]:
        return {**self._counters.dropped(), NO_PARENT: self._spans_without_parent}

    def _lost(self, kind: str, detail: str | None = None) -> None:
        if kind in self._reported:
            return
        self._reported[kind] = self._counts()[kind]
        self._report_begin(kind, detail)

    def _report_begin(self, kind: str, detail: str | None = None) -> None:
        self._began.set()
        message = "Prefactor: %s: %s. More of it is counted, and said once a minute"
        log(
            logger,
            logging.WARNING,
            message,
            self._named(kind),
            detail or _WHY.get(kind, "see there"),
        )

    def _report_last_minute(self) -> None:
        counts = self._counts()
        for kind, reported in list(self._reported.items()):
            if new := counts[kind] - reported:
                self._reported[kind] = counts[kind]
                message = "Prefactor: %s: %d more in the last %d s"
                log(logger, logging.WARNING, message, self._named(kind), new, _INTERVAL)
            else:
                del self._reported[kind]
                log(logger, logging.INFO, "Prefactor: no longer: %s", self._named(kind))

    def _named(self, kind: str) -> str:
        return kind if kind == NO_PARENT else f"operations are {self._dropped_are} ({kind})"
