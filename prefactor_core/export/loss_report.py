"""LossReport: says in the log what is lost, while it is lost."""

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
"""What is counted when the API does not know a parent."""

_WHY: Final[Mapping[str, str]] = {
    "full": "max_pending_operations or max_pending_bytes is reached",
    "run_ended": "they were recorded in an agent instance that has ended",
    "refused": "the Prefactor API refuses them",
    "retries_exhausted": "the Prefactor API fails at them while it takes others",
    NO_PARENT: "the Prefactor API does not know it",
}


class LossReport:
    """One warning when something begins to be lost, one a minute with how much while that goes on,
    and one line when it is over.

    Operations are lost for the reasons of ``statistics().dropped``. :meth:`serve` is run by one
    worker.
    """

    def __init__(self, counters: Counters, event_loop: EventLoop) -> None:
        self._counters = counters
        self._event_loop = event_loop
        self._began = anyio.Event()
        self._closing = anyio.Event()
        self._spans_without_parent = 0
        # How many the log knows of, by what is being lost.
        self._told: dict[str, int] = {}

    def dropped(self, reason: str, detail: str | None = None) -> None:
        """An operation was dropped; in the thread of the loop. ``detail``: which, and why."""
        self._lost(reason, detail)

    def dropped_anywhere(self, reason: str, detail: str | None = None) -> None:
        """As :meth:`dropped`; for any thread, which holds the lock of recording."""
        if reason not in self._told:
            # Noted now, or a burst would have the loop called for each of its operations.
            self._told[reason] = self._counts()[reason]
            self._event_loop.run_soon(partial(self._tell_of_beginning, reason, detail))

    def kept_without_parent(self, detail: str) -> None:
        """A span was kept, but not its parent. ``detail``: which."""
        self._spans_without_parent += 1
        self._lost(NO_PARENT, detail)

    async def serve(self) -> None:
        """Say each minute what goes on to be lost, until :meth:`close`."""
        while not self._closing.is_set():
            if not self._told:  # else a worker before this one was ended while it lasts
                await self._began.wait()
            self._began = anyio.Event()
            while self._told and not self._closing.is_set():
                with anyio.move_on_after(_INTERVAL) as pause:
                    await self._closing.wait()
                if pause.cancelled_caught and not self._event_loop.is_forked:
                    self._tell_of_the_last_minute()

    def close(self) -> None:
        """End :meth:`serve`; what begins to be lost is still said."""
        self._closing.set()
        self._began.set()

    def _counts(self) -> dict[str, int]:
        return {**self._counters.dropped(), NO_PARENT: self._spans_without_parent}

    def _lost(self, what: str, detail: str | None = None) -> None:
        if what in self._told:
            return
        self._told[what] = self._counts()[what]
        self._tell_of_beginning(what, detail)

    def _tell_of_beginning(self, what: str, detail: str | None = None) -> None:
        self._began.set()
        message = "Prefactor: %s: %s. More of it is counted, and said once a minute"
        log(logger, logging.WARNING, message, _named(what), detail or _WHY.get(what, "see there"))

    def _tell_of_the_last_minute(self) -> None:
        counts = self._counts()
        for what, told in list(self._told.items()):
            if new := counts[what] - told:
                self._told[what] = counts[what]
                message = "Prefactor: %s: %d more in the last %d s"
                log(logger, logging.WARNING, message, _named(what), new, _INTERVAL)
            else:
                del self._told[what]
                log(logger, logging.INFO, "Prefactor: no longer: %s", _named(what))


def _named(what: str) -> str:
    return what if what == NO_PARENT else f"operations are dropped ({what})"
