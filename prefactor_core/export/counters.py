"""Counters: what became of every operation. Pure."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from prefactor_core.models.statistics import Statistics
from prefactor_core.operations import Operation

if TYPE_CHECKING:
    from prefactor_core.export.circuit_breaker import CircuitBreaker


class Counters:
    """Counts operations from recording to their end; each ends delivered or dropped.

    What is counted up where something is recorded (``queued``, ``open_bytes``,
    :meth:`drop_new`) is written in any thread, under the lock of recording; all else by the
    thread of the event loop alone. So no count is written by two threads at once.

    ``queued``, ``queued_bytes``: the operations ever put in a queue. ``open_bytes``: the payloads of
    open spans.
    ``degraded``: for :class:`~prefactor_core.payloads.capture.Capture`, which counts there in any
    thread.
    """

    def __init__(self, breaker: CircuitBreaker | None = None) -> None:
        self._breaker = breaker  # it knows of an outage
        self.queued = 0
        self.queued_bytes = 0
        self.open_bytes = 0
        self.degraded: dict[str, int] = {}
        self._dropped_new: Counter[str] = Counter()
        self.delivered = 0
        self.in_flight = 0
        self.completed_bytes = 0
        self._dropped: Counter[str] = Counter()
        self.completed = self._handed_back = 0
        self._requests = 0
        self._retries = 0
        self._merged = 0
        self._last_error: str | None = None
        # By what is assumed.
        self._assumed: dict[str, None] = {}

    def accept(self, operation: Operation) -> None:
        """An operation was recorded."""
        size = operation.size  # a call, in which a signal or a finaliser may record as well
        self.queued, self.queued_bytes = self.queued + 1, self.queued_bytes + size

    def drop_new(self, reason: str) -> None:
        """An operation was recorded only to be given up at once."""
        self._dropped_new[reason] += 1

    def dropped(self) -> dict[str, int]:
        """How many operations were given up, by reason."""
        # A run that found no room is turned away, and what is recorded in it is dropped.
        return dict(Counter(self._dropped) + Counter(self._dropped_new))

    @property
    def accepted(self) -> int:
        """How many operations were recorded."""
        return self.queued - self._handed_back + self._dropped_new.total()

    @property
    def pending(self) -> int:
        """How many of them are neither delivered nor dropped."""
        return self.queued - self.completed

    def reaches(self, operations: int, size: int) -> bool:
        """Whether so many are pending, or so many bytes."""
        # Not by the properties: this is asked for every operation.
        return (
            self.queued - self.completed >= operations
            or self.queued_bytes - self.completed_bytes >= size
        )

    def holds(self, operations: int, size: int) -> bool:
        """Whether so many are pending, or so many bytes with the payloads of open spans."""
        return (
            self.queued - self.completed >= operations
            or self.queued_bytes - self.completed_bytes + self.open_bytes >= size
        )

    @property
    def pending_bytes(self) -> int:
        """How many bytes these take."""
        return self.queued_bytes - self.completed_bytes

    @property
    def held_bytes(self) -> int:
        """How many bytes these and the payloads of open spans take."""
        return self.queued_bytes - self.completed_bytes + self.open_bytes

    def merge(self, saved: int) -> None:
        """Two operations will be sent as one, which takes ``saved`` bytes less."""
        self._merged += 1
        self.shrink(saved)

    def shrink(self, saved: int) -> None:
        """An operation takes ``saved`` bytes less than it did."""
        self.completed_bytes += saved

    def request(self) -> None:
        """A request is sent."""
        self._requests += 1

    def fail(self, error: Exception) -> None:
        """A request failed; what becomes of its operations is told apart."""
        self._last_error = f"{type(error).__name__}: {error}"

    def retry(self) -> None:
        """A request that failed will be sent again, or what is left of it."""
        self._retries += 1

    def assume(self, what: str, holds: bool) -> None:
        """From now on ``what`` is assumed of the API, or no more."""
        if holds:
            self._assumed[what] = None
        else:
            self._assumed.pop(what, None)

    def deliver(self, count: int, size: int) -> None:
        """The API has taken ``count`` operations of ``size`` bytes."""
        self.delivered += count
        self.completed += count
        self.completed_bytes += size

    def drop(self, reason: str, count: int, size: int) -> None:
        """``count`` operations of ``size`` bytes are given up."""
        if count > 0:
            self._dropped[reason] += count
            self.completed += count
            self.completed_bytes += size

    def hand_back(self, count: int, size: int) -> None:
        """The caller is told that ``count`` operations were refused: they count as never
        accepted."""
        self._handed_back += count
        self.completed += count
        self.completed_bytes += size

    def drop_rest(self, reason: str) -> None:
        """Everything that is pending is given up."""
        self.drop(reason, self.pending, self.pending_bytes)

    def statistics(self) -> Statistics:
        """The balance of this moment; for any thread."""
        # Each count is read once, and what goes up first is read last: other threads count on.
        dropped_new, dropped = Counter(self._dropped_new), Counter(self._dropped)
        delivered, completed_bytes = self.delivered, self.completed_bytes
        handed_back = self._handed_back
        accepted, accepted_bytes = self.queued - handed_back, self.queued_bytes
        return Statistics(
            accepted=accepted + dropped_new.total(),
            delivered=delivered,
            pending=accepted - delivered - dropped.total(),
            pending_bytes=accepted_bytes - completed_bytes,
            open_bytes=self.open_bytes,
            in_flight=self.in_flight,
            dropped=dict(dropped + dropped_new),
            requests=self._requests,
            retries=self._retries,
            merged=self._merged,
            last_error=self._last_error,
            outage_since=None if self._breaker is None else self._breaker.since,
            assumed=tuple(self._assumed),
            degraded=dict(self.degraded),
        )
