"""Wall time that never runs backwards within one run. Pure."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol

from prefactor_core.exceptions.checks import PLAIN_DATETIME


class TimeSource(Protocol):
    """What a machine knows of the time, in nanoseconds; the module ``time`` is one."""

    def time_ns(self) -> int:
        """Wall time since 1970, in UTC. It can be set, forward and back."""
        ...

    def monotonic_ns(self) -> int:
        """Never set; it may stand while the machine sleeps."""
        ...


class Clock:
    """The clock of one run: the wall clock, but that it never goes back.

    Where the wall is set forward, or the machine has slept, this follows. Where the wall is set
    back, this stands until it is read the next time, and from then on goes by the monotonic
    clock until the wall has caught up: such a run is ahead of the wall, perhaps to its end, and
    the durations in it are right. The next run has a clock of its own, which begins with the wall.

    Who reads it holds the lock of recording, which is what gives the readings of several threads
    their order.
    """

    __slots__ = ("_last", "_monotonic", "_source")

    def __init__(self, source: TimeSource = time) -> None:
        self._source = source
        self._last = 0
        # As it stood at the last reading; None while that was the wall's.
        self._monotonic: int | None = None

    def now(self) -> datetime:
        """Now, aware, in UTC."""
        now = self._source.time_ns()
        if now < self._last or self._monotonic is not None:
            now = self._carried_on(now)
        self._last = now
        return PLAIN_DATETIME.fromtimestamp(now / 1e9, UTC)

    @property
    def is_ahead(self) -> bool:
        """Whether the wall was set back, and has not caught up. For any caller."""
        return self._source.time_ns() < self._last

    def _carried_on(self, wall: int) -> int:
        monotonic, now = self._source.monotonic_ns(), self._last
        if self._monotonic is not None:
            # Libraries that freeze the time set this clock back, too.
            now += max(0, monotonic - self._monotonic)
        self._monotonic = monotonic if wall < now else None
        return max(wall, now)
