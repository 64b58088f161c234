"""Backlog: what one worker has to send, run by run; which of it goes into the next request. Pure.

An operation waits here as a :class:`BatchItem`, from the moment the worker takes it out of its
queue until it is settled. The order counts within a run; runs take turns.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain

from msgspec import Struct

from prefactor_core.models.lifecycle import SpanStatus
from prefactor_core.operations import (
    CreateSpan,
    FinishSpan,
    Operation,
    OperationType,
    RecordQuality,
    RegisterAgentInstance,
    StartAgentInstance,
)

_SPANS = (CreateSpan, FinishSpan)


class BatchItem(Struct, eq=False, gc=False):
    """One thing to tell the API: an operation, or a span's start and finish in one.

    ``position``: how many operations the worker took before this one. ``count``: how many
    operations it stands for, 1 or 2. ``size``: bytes in a request, about.
    ``alone``: to be sent by its own endpoint. ``in_bulk``: to be sent by bulk, although it is
    alone. ``failed_in_bulk``: bulk gave an error for it, and not for what was sent with it.
    ``sent``: was in a request. ``settled``: delivered, or given up.
    ``original``: what it was before a parent that the API does not know was left out, or a payload
    that it finds too large; for the case that it is not taken so either.
    ``given_id``: whether the API is told which id the span shall have; settled when it is sent,
    because its idempotency key stands for one body.
    ``attempts``: requests that failed and had it in them; in the drain, since that began.
    ``maybe_done``: one of them got no answer. ``taken_before``: what
    :attr:`CircuitBreaker.taken` was when it failed alone; None if it did not. ``faults``: how
    often it failed alone again although others were taken since it had failed before.
    ``overtaken``: whether what depends on it may be sent before it, for want of anything else
    that would show whether the API takes operations.
    ``due``: when it may be sent again, on the clock of the event loop.
    """

    operation: Operation
    position: int
    size: int
    count: int = 1
    alone: bool = False
    in_bulk: bool = False
    failed_in_bulk: bool = False
    sent: bool = False
    settled: bool = False
    given_id: bool = True
    original: Operation | None = None
    attempts: int = 0
    maybe_done: bool = False
    taken_before: int | None = None
    faults: int = 0
    overtaken: bool = False
    due: float = 0.0


class _Run:
    """The items of one run, oldest first.

    ``held_until``: nothing of it is sent before. ``aside``: items that failed alone; what does
    not depend on them overtakes them until they are due.
    """

    __slots__ = ("aside", "held_until", "items")

    def __init__(self) -> None:
        self.items: deque[BatchItem] = deque()
        self.held_until = -math.inf
        self.aside: list[BatchItem] = []

    def trim(self) -> None:
        items = self.items
        while items and items[0].settled:
            items.popleft()
        if self.aside:
            self.aside = [item for item in self.aside if not item.settled]

    def ready(self, now: float) -> Iterable[BatchItem]:
        if self.held_until > now:
            return ()
        self.held_until = -math.inf
        aside = [item for item in self.aside if item.due > now]
        waiting = (item for item in self.items if not item.settled)
        return independent_of(aside, waiting) if aside else waiting

    def overtaking(self, taken: int) -> Iterator[BatchItem]:
        """What may be sent although it depends on what failed again and again, until one of it is
        taken: then what failed is tried once more. Nothing if the run is not registered: the API
        does not know it by its id."""
        for item in self.aside:
            if isinstance(item.operation, RegisterAgentInstance):
                return
            before = item.taken_before
            if not item.overtaken or before is None or before < taken:
                return
        aside = {id(item) for item in self.aside}
        spans = {
            item.operation.span_id for item in self.aside if isinstance(item.operation, CreateSpan)
        }
        for item in self.items:
            operation = item.operation
            if isinstance(operation, FinishSpan) and operation.span_id in spans:
                continue
            if not item.settled and id(item) not in aside:
                yield item


class Backlog:
    """Parcels by run, in the order in which their operations were recorded."""

    def __init__(self) -> None:
        # In the order of their turns: who was in a request goes to the end.
        self._runs: dict[str, _Run] = {}
        self._taken = 0
        self.operations = 0
        # Spans whose start waits here and was never sent: their finish can join it. One that
        # was sent keeps its form, or its idempotency key would stand for two requests.
        self._unsent_starts: dict[str, BatchItem] = {}

    def __bool__(self) -> bool:
        return bool(self._runs)

    @property
    def settled_through(self) -> int:
        """How many operations, from the first ever taken on, are settled without a gap."""
        return min((run.items[0].position for run in self._runs.values()), default=self._taken)

    @property
    def taken(self) -> int:
        """How many operations were ever added."""
        return self._taken

    def add(self, operation: Operation) -> bool:
        """Take an operation in; whether it could be merged into another.

        The finish of a span joins its start: one create with both times. A cancelled span
        keeps its two steps: the API may know no other way.
        """
        position = self._taken
        self._taken += 1
        self.operations += 1
        if isinstance(operation, FinishSpan):
            start = self._unsent_starts.pop(operation.span_id, None)
            if start is not None and operation.status is not SpanStatus.CANCELLED:
                assert isinstance(start.operation, CreateSpan)
                start.operation = start.operation.finished_by(operation)
                start.size = start.operation.size
                start.count = 2
                return True
        item = BatchItem(operation, position, operation.size)
        run = self._runs.get(operation.instance_id)
        if run is None:
            run = self._runs[operation.instance_id] = _Run()
        run.items.append(item)
        if isinstance(operation, CreateSpan) and operation.status is SpanStatus.ACTIVE:
            self._unsent_starts[operation.span_id] = item
        return False

    def remove(self, item: BatchItem) -> None:
        """A item is settled."""
        if item.settled:
            return
        item.settled = True
        self.operations -= item.count
        operation = item.operation
        if isinstance(operation, CreateSpan):
            self._unsent_starts.pop(operation.span_id, None)
        run = self._runs[operation.instance_id]
        run.trim()
        if not run.items:
            del self._runs[operation.instance_id]

    def hold(self, items: Iterable[BatchItem], until: float) -> None:
        """Nothing of the runs of ``items`` is sent before ``until``."""
        for instance_id in {item.operation.instance_id for item in items}:
            self._runs[instance_id].held_until = until

    def put_aside(self, item: BatchItem, due: float) -> None:
        """``item`` is not sent before ``due``; what does not depend on it is."""
        item.due = due
        aside = self._runs[item.operation.instance_id].aside
        if not any(other is item for other in aside):
            aside.append(item)

    def drain(self) -> None:
        """As :meth:`hurry`; and attempts are counted anew: most of them were made in an outage."""
        self.hurry()
        for run in self._runs.values():
            for item in run.aside:
                item.attempts = 0

    def hurry(self) -> None:
        """Nothing waits for its time any more."""
        for run in self._runs.values():
            run.held_until = -math.inf
            for item in run.aside:
                item.due = 0.0

    def next_due(self, now: float) -> float:
        """When the first may be sent of what has to wait for its time, if there is any."""
        times = chain.from_iterable(
            [run.held_until] if run.held_until > now else [item.due for item in run.aside]
            for run in self._runs.values()
        )
        return min((time for time in times if time > now), default=-math.inf)

    def next_request(
        self,
        max_operations: int,
        max_bytes: int,
        *,
        now: float = 0.0,
        alone: Collection[OperationType] = (),
        given_ids: bool = True,
        asking: bool = False,
        overtaking: int | None = None,
    ) -> list[BatchItem]:
        """The items of the next request: the oldest ones of each run that fit.

        At least one, unless all have to wait for their time. ``alone``: types that can only be sent
        one by one. ``given_ids``: False if a span can be referred to only after the API has
        answered its create. ``asking``: whether the request is to show if the API is back, for
        which any operation will do. ``overtaking``: what :attr:`CircuitBreaker.taken` is
        now, in the drain, where an operation that fails again and again must not keep back for
        ever what depends on it.
        """
        request = _Request(max_operations, max_bytes, alone, given_ids)
        for run in self._runs.values():
            if not request.take(run.ready(now)):
                break
        if overtaking is not None and not request.items:
            for run in self._runs.values():
                if run.aside and not request.take(run.overtaking(overtaking)):
                    break
        if asking and not request.items:
            aside = [item for run in self._runs.values() for item in run.aside]
            request.take(sorted(aside, key=lambda item: item.due)[:1])
        return request.items

    def sent(
        self, request: Sequence[BatchItem], *, given_ids: bool = True, one_given_id: bool = False
    ) -> None:
        """``request`` is sent now. ``one_given_id``: one of its spans is given an id although the
        others are not."""
        for item in request:
            operation = item.operation
            if not item.sent:
                item.sent, item.given_id = True, given_ids
                if isinstance(operation, CreateSpan):
                    self._unsent_starts.pop(operation.span_id, None)
                    item.given_id = given_ids or one_given_id
                    one_given_id = False
        for instance_id in dict.fromkeys(item.operation.instance_id for item in request):
            self._runs[instance_id] = self._runs.pop(instance_id)


class _Request:
    """Parcels that go into one request."""

    def __init__(
        self,
        max_operations: int,
        max_bytes: int,
        alone: Collection[OperationType],
        given_ids: bool,
    ) -> None:
        self.items: list[BatchItem] = []
        self._max_operations = max_operations
        self._max_bytes = max_bytes
        self._alone = alone
        self._given_ids = given_ids
        self._operations = self._size = 0
        self._created: set[str] = set()
        self._keys: set[str] = set()

    def take(self, items: Iterable[BatchItem]) -> bool:
        """Take the first of a run's items that can go together; whether there is room for
        more."""
        for item in items:
            operation = item.operation
            single = item.alone or item.in_bulk or operation.type in self._alone
            if self.items and single:
                # Its turn comes: a run that was in a request goes to the end.
                return True
            operations, size = self._operations + item.count, self._size + item.size
            if self.items and (operations > self._max_operations or size > self._max_bytes):
                return False
            # Whoever gives a span the id of another gives it its keys, too.
            if operation.idempotency_key in self._keys:
                return True
            if not self._given_ids and isinstance(operation, _SPANS):
                if operation.span_id in self._created or (
                    isinstance(operation, CreateSpan) and operation.parent_span_id in self._created
                ):
                    return True
                self._created.add(operation.span_id)
            self._keys.add(operation.idempotency_key)
            self._operations, self._size = operations, size
            self.items.append(item)
            if single:
                return False
            if isinstance(operation, RegisterAgentInstance):
                return True  # what the API calls the run comes with the answer
        return True


def independent_of(aside: Sequence[BatchItem], waiting: Iterable[BatchItem]) -> Iterator[BatchItem]:
    """Those of a run's items, ``waiting``, that may be sent although those ``aside``, which are
    older, were not.

    Dependent are: on a span's start, its finish and its children, and on their starts again;
    on anything of a run, its finish; on the registration or the start of a run, all of it.
    Not so its quality: that depends on the registration, and on what was told before it under
    the same name; and nothing else on it.
    What those aside depend on themselves must have been settled before.
    """
    left = {id(item) for item in aside}
    operations = [item.operation for item in aside]
    quality = {operation.name for operation in operations if isinstance(operation, RecordQuality)}
    unregistered = any(isinstance(operation, RegisterAgentInstance) for operation in operations)
    nothing_goes = any(
        isinstance(operation, RegisterAgentInstance | StartAgentInstance)
        for operation in operations
    )
    all_goes = all(isinstance(operation, RecordQuality) for operation in operations)
    spans = {operation.span_id for operation in operations if isinstance(operation, CreateSpan)}
    for item in waiting:
        operation = item.operation
        if id(item) in left:
            continue
        if isinstance(operation, RecordQuality):
            if not unregistered and operation.name not in quality:
                yield item
        elif all_goes:
            yield item
        elif nothing_goes or not isinstance(operation, _SPANS) or operation.span_id in spans:
            continue
        elif isinstance(operation, CreateSpan) and operation.parent_span_id in spans:
            spans.add(operation.span_id)
        else:
            yield item


def half(request: Sequence[BatchItem]) -> int:
    """How many operations a request may have that is to be half of ``request``."""
    return max(1, sum(item.count for item in request) // 2)
