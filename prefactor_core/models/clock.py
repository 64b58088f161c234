"""Wall-clock time that never runs backwards within one run, in whole nanoseconds since 1970."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol, cast

PLAIN_DATETIME: Final = cast("type[datetime]", datetime.__mro__[-3])
"""The ``datetime`` of C. msgspec encodes no subclass, and libraries that freeze time replace
``datetime`` by one in every module."""

_EPOCH: Final = PLAIN_DATETIME(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def to_datetime(nanoseconds: int) -> datetime:
    """The moment, aware and in UTC, rounded down to a microsecond."""
    return _EPOCH + timedelta(microseconds=nanoseconds // 1_000)


def to_nanoseconds(moment: datetime) -> int:
    """Nanoseconds since 1970 of an aware moment."""
    return (moment - _EPOCH) // _MICROSECOND * 1_000


class TimeSource(Protocol):
    """The clocks of a machine, in nanoseconds; the module ``time`` is one."""

    def time_ns(self) -> int:
        """Wall-clock time since 1970, in UTC. It can be set, forward and back."""
        ...

    def monotonic_ns(self) -> int:
        """A clock that cannot be set; it may stand while the machine sleeps."""
        ...


class Clock:
    """The clock of one run: the wall clock, except that it never goes back.

    It follows the wall clock when that is set forward, or when the machine has slept. When the
    wall clock is set back, this clock stands until the next reading. From then on it goes by the
    monotonic clock until the wall clock has caught up, so that the durations in the run stay
    right; such a run may be ahead of the wall clock to its end. The next run has its own clock,
    which begins with the wall clock.

    The reader holds the lock of recording, which orders the readings of several threads.
    """

    __slots__ = ("_monotonic", "_source", "is_carried_on", "last", "read")

    def __init__(self, source: TimeSource = time) -> None:
        self._source = source
        self.read = source.time_ns
        self.last = 0
        # Whether it follows the monotonic clock, and the time of that at the last reading.
        self.is_carried_on = False
        self._monotonic = 0

    def now(self) -> int:
        """Nanoseconds since 1970."""
        now = self.read()
        if now < self.last or self.is_carried_on:
            now = self.carried_on(now)
        self.last = now
        return now

    @property
    def is_ahead(self) -> bool:
        """Whether the wall clock was set back and has not caught up; for any caller."""
        return self.read() < self.last

    def carried_on(self, wall: int) -> int:
        """The time of this clock when the wall clock shows ``wall`` and was set back."""
        monotonic, now = self._source.monotonic_ns(), self.last
        if self.is_carried_on:
            # Libraries that freeze the time set this clock back, too.
            now += max(0, monotonic - self._monotonic)
        self.is_carried_on, self._monotonic = wall < now, monotonic
        return max(wall, now)
