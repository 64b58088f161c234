"""Counters: the counts of operations, by their fate. Pure."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from prefactor_core.journal.base import NO_JOURNAL, Journal
from prefactor_core.models.statistics import Statistics
from prefactor_core.operations import Operation

if TYPE_CHECKING:
    from prefactor_core.export.circuit_breaker import CircuitBreaker


class Counters:
    """Counts operations from recording to their end, delivered or dropped.

    Recording writes ``queued``, ``open_bytes`` and :meth:`drop_new`, in any thread, under the lock
    of recording. Only the thread of the event loop writes the others. So no two threads write a
    count at once.

    ``queued``, ``queued_bytes``: the operations that were ever put in a queue. ``open_bytes``: the
    payloads of open spans.
    ``degraded``: for :class:`~prefactor_core.payloads.capture.Capture`, which counts there in any
    thread.
    """

    def __init__(
        self, breaker: CircuitBreaker | None = None, journal: Journal = NO_JOURNAL
    ) -> None:
        self._breaker = breaker  # for the start of an outage
        self._journal = journal  # for its size
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
        # Operations that dead processes left, and this one has delivered.
        self.adopted = 0
        self._requests = 0
        self._retries = 0
        self._merged = 0
        self._last_error: str | None = None
        # A set in the order of its additions.
        self._assumed: dict[str, None] = {}

    def accept(self, operation: Operation) -> None:
        """Count an operation that is queued."""
        size = operation.size  # a call, in which a signal handler may record, too
        self.queued, self.queued_bytes = self.queued + 1, self.queued_bytes + size

    def drop_new(self, reason: str) -> None:
        """Count a new operation that is dropped, and never queued."""
        self._dropped_new[reason] += 1

    def dropped(self) -> dict[str, int]:
        """The number of dropped operations, by reason."""
        # Both may have a reason: "full" drops a new run, and later the operations of that run.
        return dict(Counter(self._dropped) + Counter(self._dropped_new))

    @property
    def accepted(self) -> int:
        """The number of recorded operations, without those handed back."""
        return self.queued - self._handed_back + self._dropped_new.total()

    @property
    def pending(self) -> int:
        """The number of operations that are neither delivered nor dropped."""
        return self.queued - self.completed

    def reaches(self, operations: int, size: int) -> bool:
        """Whether at least ``operations``, or ``size`` bytes of them, are pending."""
        # Written out without the properties: this runs for every operation.
        return (
            self.queued - self.completed >= operations
            or self.queued_bytes - self.completed_bytes >= size
        )

    @property
    def pending_bytes(self) -> int:
        """The bytes of the pending operations."""
        return self.queued_bytes - self.completed_bytes

    @property
    def held_bytes(self) -> int:
        """The bytes of the pending operations and of the payloads of open spans."""
        return self.queued_bytes - self.completed_bytes + self.open_bytes

    def merge(self, saved: int) -> None:
        """Count two operations that become one, ``saved`` bytes smaller."""
        self._merged += 1
        self.shrink(saved)

    def shrink(self, saved: int) -> None:
        """Count a pending operation that has become ``saved`` bytes smaller."""
        self.completed_bytes += saved

    def request(self) -> None:
        """Count a request that is sent."""
        self._requests += 1

    def fail(self, error: Exception) -> None:
        """Note the error of a failed request; its operations are counted elsewhere."""
        self._last_error = f"{type(error).__name__}: {error}"

    def retry(self) -> None:
        """Count a failed request whose operations, or some of them, are sent again."""
        self._retries += 1

    def assume(self, what: str, holds: bool) -> None:
        """Note that the client assumes ``what`` of the API from now on, or no longer."""
        if holds:
            self._assumed[what] = None
        else:
            self._assumed.pop(what, None)

    def deliver(self, count: int, size: int) -> None:
        """Count operations that the API has accepted, of ``size`` bytes in all."""
        self.delivered += count
        self.completed += count
        self.completed_bytes += size

    def drop(self, reason: str, count: int, size: int) -> None:
        """Count pending operations that are dropped, of ``size`` bytes in all."""
        if count > 0:
            self._dropped[reason] += count
            self.completed += count
            self.completed_bytes += size

    def hand_back(self, count: int, size: int) -> None:
        """Count operations, of ``size`` bytes in all, as never accepted: their caller gets the
        error."""
        self._handed_back += count
        self.completed += count
        self.completed_bytes += size

    def drop_rest(self, reason: str, kept: int = 0) -> None:
        """Drop all pending operations but ``kept``, which the journal has."""
        self.drop(reason, self.pending - kept, 0 if kept else self.pending_bytes)

    def statistics(self) -> Statistics:
        """Return the balance of this moment; for any thread."""
        # Other threads count meanwhile. So each count is read once, and a count that goes up
        # earlier in the life of an operation is read later.
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
            journal_bytes=self._journal.size,
            unjournaled=self._journal.unwritten,
            adopted=self.adopted,
        )
