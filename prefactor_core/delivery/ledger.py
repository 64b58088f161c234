"""Ledger: what became of every operation. Pure."""

from __future__ import annotations

from collections import Counter

from msgspec import Struct


class Statistics(Struct, frozen=True, kw_only=True):
    """The balance of a client at one moment: accepted = delivered + pending + all dropped.

    ``accepted``: operations recorded so far (starts and finishes of runs and spans).
    ``delivered``: taken by the API.
    ``pending``: waiting, or on their way.
    ``dropped``: never to be delivered, by reason: ``refused`` (the API does not take it),
    ``retries_exhausted`` (the API failed at it again and again while it was there),
    ``drain_timeout`` (the scope ended first), ``queue`` (the client's queue did not take it).
    ``requests``: attempts made. ``retries``: failed attempts that were followed by a wait
    for another.
    ``last_error``: why the last attempt that failed did; None if none did.
    """

    accepted: int
    delivered: int
    pending: int
    dropped: dict[str, int]
    requests: int
    retries: int
    last_error: str | None

    @property
    def lost(self) -> int:
        """How many operations were dropped, whatever the reason."""
        return sum(self.dropped.values())


class Ledger:
    """Counts operations from recording to their end; each ends delivered or dropped."""

    def __init__(self) -> None:
        self._accepted = 0
        self._delivered = 0
        self._dropped: Counter[str] = Counter()
        self._requests = 0
        self._retries = 0
        self._last_error: str | None = None

    @property
    def pending(self) -> int:
        """How many operations were accepted and have not ended."""
        return self._accepted - self._delivered - self._dropped.total()

    def accept(self) -> None:
        """An operation was recorded."""
        self._accepted += 1

    def attempt(self) -> None:
        """An operation is sent."""
        self._requests += 1

    def fail(self, error: Exception) -> None:
        """An attempt failed; what becomes of the operation is told apart."""
        self._last_error = f"{type(error).__name__}: {error}"

    def retry(self) -> None:
        """An operation whose attempt failed will be sent again."""
        self._retries += 1

    def deliver(self) -> None:
        """The API has taken an operation."""
        self._delivered += 1

    def drop(self, reason: str, count: int = 1) -> None:
        """Operations are given up."""
        if count > 0:
            self._dropped[reason] += count

    def statistics(self) -> Statistics:
        """The balance of this moment."""
        return Statistics(
            accepted=self._accepted,
            delivered=self._delivered,
            pending=self.pending,
            dropped=dict(self._dropped),
            requests=self._requests,
            retries=self._retries,
            last_error=self._last_error,
        )
