"""ApiLimits: what the API does not do, as far as it has shown; each tried again later. Pure."""

from __future__ import annotations

import logging
from collections.abc import Collection

from prefactor_core.exceptions.log import log
from prefactor_core.export.assumption import Assumption
from prefactor_core.export.counters import Counters
from prefactor_core.operations import OperationType

logger = logging.getLogger("prefactor_core.export.api_limits")

_ALL_TYPES = frozenset(OperationType)

_BULK_FAILURES = 5
"""How often bulk fails as a whole, while single calls go through, until it is not used."""

_TIMES_ONLY_ALONE = 2
"""How often bulk fails at a type, having never taken it, until it is sent alone."""


class ApiLimits:
    """Guesses about the API, from its answers; what is guessed is in ``statistics().assumed``.

    Times are seconds of the event loop's clock. ``took_given_id``: whether the API has taken an
    id that it was given: then it can only refuse this or that one.
    """

    def __init__(self, counters: Counters, max_bytes: int) -> None:
        self._counters = counters
        self._bulk = Assumption()
        self._bulk_failures = 0
        self._only_alone: dict[OperationType, Assumption] = {}
        self._proven: set[OperationType] = set()
        self._times_alone: dict[OperationType, int] = {}
        self._most_bytes = max_bytes
        self._max_bytes = max_bytes
        self._size = Assumption()
        self._ids = Assumption()
        self._environment = Assumption()
        self.took_given_id = False

    def alone(self, now: float) -> Collection[OperationType]:
        """The types that are sent by their own endpoints for now."""
        if self._bulk.holds(now):
            return _ALL_TYPES
        if not self._only_alone:
            return ()
        return [kind for kind, guess in self._only_alone.items() if guess.holds(now)]

    def max_bytes(self, now: float) -> int:
        """How large a request may be for now."""
        return self._max_bytes if self._size.holds(now) else self._most_bytes

    def gives_ids(self, now: float) -> bool:
        """Whether the API is told an id, to see whether it takes one by now."""
        return not self._ids.holds(now)

    def lacks_bulk(self, now: float, why: str) -> None:
        """The API has said that there is no bulk."""
        if self._bulk.make(now):
            self._counters.assume("no bulk", True)
            message = (
                "operations go to the Prefactor API one by one: it has no bulk that works (%s); "
                "that is tried again later"
            )
            log(logger, logging.INFO, message, why)

    def bulk_failed(self, now: float) -> None:
        """Bulk has failed as a whole, although single calls were taken since the last time."""
        self._bulk_failures += 1
        if self._bulk_failures >= _BULK_FAILURES:
            self.lacks_bulk(now, "it fails at what single calls are taken for")

    def taken_in_bulk(self, kind: OperationType, operations: int) -> None:
        """Bulk has taken an operation."""
        if operations > 1:
            self._bulk_failures = 0
        if self._bulk.refute():
            self._counters.assume("no bulk", False)
        if kind not in self._proven:
            self._proven.add(kind)
            if self._only_alone.pop(kind, None) is not None:
                self._counters.assume(f"no bulk for {kind.name}", False)

    def taken_only_alone(self, kind: OperationType, now: float) -> None:
        """Bulk failed at what its own endpoint takes: perhaps it does not know the type."""
        if kind in self._proven:
            return
        times = self._times_alone[kind] = self._times_alone.get(kind, 0) + 1
        if times >= _TIMES_ONLY_ALONE:
            self._only_alone.setdefault(kind, Assumption()).make(now)
            self._counters.assume(f"no bulk for {kind.name}", True)

    def too_large(self, size: int, now: float) -> None:
        """A request of ``size`` bytes was too large."""
        if size <= self._max_bytes:
            self._max_bytes = max(1, size // 2)
        self._size.make(now)
        self._counters.assume("smaller requests", True)

    def taken_of_size(self, size: int) -> None:
        """A bulk request of ``size`` bytes was taken."""
        if size > self._max_bytes and self._size.refute():
            self._max_bytes = self._most_bytes
            self._counters.assume("smaller requests", False)

    def makes_ids(self, now: float) -> None:
        """The API has not taken an id that it was given."""
        if self._ids.make(now):
            self._counters.assume("ids made by the API", True)
            log(logger, logging.INFO, "the Prefactor API makes the ids of spans itself")

    def takes_ids(self) -> None:
        """The API has taken an id that it was given."""
        self.took_given_id = True
        if self._ids.refute():
            self._counters.assume("ids made by the API", False)

    def takes_environment(self, now: float) -> bool:
        """Whether a runtime environment may be added to the version of an agent."""
        return not self._environment.holds(now)

    def refuses_environment(self, now: float) -> None:
        """The API has not taken one; perhaps it has stored the version without it."""
        self._environment.make(now)
        self._counters.assume("no runtime_environment", True)
