"""ApiLimits: the features that the API seems to lack; each is tried again later. Pure.

Times are seconds of the event loop's clock.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection

from prefactor_core.exceptions.log import log
from prefactor_core.export.counters import Counters
from prefactor_core.operations import OperationType

logger = logging.getLogger("prefactor_core.export.api_limits")

_ALL_TYPES = frozenset(OperationType)

_FIRST_SECONDS = 5.0
_MAX_SECONDS = 3600.0

_BULK_FAILURES = 5
"""How often bulk fails as a whole, while single calls succeed, until it is not used."""

_TIMES_ONLY_ALONE = 2
"""How often bulk fails at a type that it has never accepted, until the type is sent alone."""


class Assumption:
    """A conclusion from the API's answers that the API lacks a feature, tested again later.

    It holds for five seconds, and twice as long each time that the API confirms it, at most an
    hour. After that one attempt tests it. While it is made, ``counters`` show its ``name``.
    """

    def __init__(self, counters: Counters | None = None, name: str = "") -> None:
        self._counters = counters
        self._name = name
        self._until = -math.inf
        self._pause = _FIRST_SECONDS
        self.made = False

    def holds(self, now: float) -> bool:
        """Whether it stands: no attempt is due."""
        return now < self._until

    def make(self, now: float) -> bool:
        """Make it, or confirm it; return whether it is new."""
        is_new = not self.made
        if not self.holds(now):  # later answers to requests of one moment confirm nothing more
            self._until = now + self._pause
            self._pause = min(2 * self._pause, _MAX_SECONDS)
        self._set(True)
        return is_new

    def refute(self) -> bool:
        """Drop it: the API has the feature. Return whether it was made before."""
        if not self.made:
            return False  # for most operations
        self._set(False)
        self._until, self._pause = -math.inf, _FIRST_SECONDS
        return True

    def _set(self, made: bool) -> None:
        self.made = made
        if self._counters is not None:
            self._counters.assume(self._name, made)


class ApiLimits:
    """The assumptions about the API, named in ``statistics().assumed``.

    ``took_given_id``: whether the API has ever accepted a given id: then it refuses single ids
    only.
    """

    def __init__(self, counters: Counters, max_bytes: int) -> None:
        self._counters = counters
        self._bulk = Assumption(counters, "no bulk")
        self._bulk_failures = 0
        self._only_alone: dict[OperationType, Assumption] = {}
        self._proven: set[OperationType] = set()
        self._times_alone: dict[OperationType, int] = {}
        self._most_bytes = max_bytes
        self._max_bytes = max_bytes
        self._size = Assumption(counters, "smaller requests")
        self._ids = Assumption(counters, "ids made by the API")
        self._environment = Assumption(counters, "no runtime_environment")
        self.took_given_id = False

    def alone(self, now: float) -> Collection[OperationType]:
        """The types to send by their own endpoints at present."""
        if self._bulk.holds(now):
            return _ALL_TYPES
        if not self._only_alone:
            return ()
        return [type for type, assumption in self._only_alone.items() if assumption.holds(now)]

    def max_bytes(self, now: float) -> int:
        """The bytes that a request may have at present."""
        return self._max_bytes if self._size.holds(now) else self._most_bytes

    def gives_ids(self, now: float) -> bool:
        """Whether to give the API an id, to see whether it accepts one by now."""
        return not self._ids.holds(now)

    def lacks_bulk(self, now: float, why: str) -> None:
        """Assume that the API has no bulk, because of ``why``."""
        if self._bulk.make(now):
            message = (
                "operations go to the Prefactor API one by one: it has no bulk that works (%s); "
                "bulk is tried again later"
            )
            log(logger, logging.INFO, message, why)

    def bulk_failed(self, now: float) -> None:
        """Note that bulk failed as a whole, and single calls succeeded since it failed last."""
        self._bulk_failures += 1
        if self._bulk_failures >= _BULK_FAILURES:
            self.lacks_bulk(now, "it fails while single calls succeed")

    def accepted_in_bulk(self, type: OperationType, operations: int) -> None:
        """Note that bulk has accepted an operation, in a request of ``operations``."""
        if operations > 1:
            self._bulk_failures = 0
        self._bulk.refute()
        if type not in self._proven:
            self._proven.add(type)
            if (assumption := self._only_alone.pop(type, None)) is not None:
                assumption.refute()

    def accepted_only_alone(self, type: OperationType, now: float) -> None:
        """Note that bulk failed at an operation that its own endpoint accepts: bulk may not know
        the type."""
        if type in self._proven:
            return
        times = self._times_alone[type] = self._times_alone.get(type, 0) + 1
        if times >= _TIMES_ONLY_ALONE:
            assumption = Assumption(self._counters, f"no bulk for {type.name}")
            self._only_alone.setdefault(type, assumption).make(now)

    def too_large(self, size: int, now: float) -> None:
        """Note that a request of ``size`` bytes was too large."""
        if size <= self._max_bytes:
            self._max_bytes = max(1, size // 2)
        self._size.make(now)

    def accepted_size(self, size: int) -> None:
        """Note that a bulk request of ``size`` bytes was accepted."""
        if size > self._max_bytes and self._size.refute():
            self._max_bytes = self._most_bytes

    def makes_ids(self, now: float) -> None:
        """Note that the API has refused a given id."""
        if self._ids.make(now):
            log(logger, logging.INFO, "the Prefactor API makes the ids of spans itself")

    def takes_ids(self) -> None:
        """Note that the API has accepted a given id."""
        self.took_given_id = True
        self._ids.refute()

    def takes_environment(self, now: float) -> bool:
        """Whether a runtime environment may be added to the version of an agent."""
        return not self._environment.holds(now)

    def refuses_environment(self, now: float) -> None:
        """Note that the API has refused one; it may have stored the version without it."""
        self._environment.make(now)
