"""Batcher: the operations that one worker has to send, and which of them go together. Pure.

An operation is a :class:`~prefactor_core.export.batch_item.BatchItem` from the moment the worker
takes it out of its queue until it is completed: delivered, or dropped. Order is kept within a run;
runs take turns.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain

from prefactor_core.export.batch_item import BatchItem
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


class _Run:
    """The items of one run, oldest first.

    ``held_until``: nothing of the run is sent before. ``deferred``: items that failed alone; the
    items that do not depend on them overtake them until they are due.
    """

    __slots__ = ("deferred", "held_until", "items")

    def __init__(self) -> None:
        self.items: deque[BatchItem] = deque()
        self.held_until = -math.inf
        self.deferred: list[BatchItem] = []

    def trim(self) -> None:
        items = self.items
        while items and items[0].completed:
            items.popleft()
        if self.deferred:
            self.deferred = [item for item in self.deferred if not item.completed]

    def ready(self, now: float) -> Iterable[BatchItem]:
        if self.held_until > now:
            return ()
        self.held_until = -math.inf
        deferred = [item for item in self.deferred if item.due > now]
        waiting = (item for item in self.items if not item.completed)
        return independent_of(deferred, waiting) if deferred else waiting

    def overtaking(self, accepted: int) -> Iterator[BatchItem]:
        """The items that may be sent although they depend on one that failed again and again, until
        the API accepts one of them: then the failed one is tried once more. None if the run is not
        registered: the API does not know it by its id."""
        for item in self.deferred:
            if isinstance(item.operation, RegisterAgentInstance):
                return
            before = item.accepted_before
            if not item.overtaken or before is None or before < accepted:
                return
        deferred = {id(item) for item in self.deferred}
        spans = _created(item.operation for item in self.deferred)
        for item in self.items:
            operation = item.operation
            if isinstance(operation, FinishSpan) and operation.span_id in spans:
                continue
            if not item.completed and id(item) not in deferred:
                yield item


class Batcher:
    """Items by run, in the order in which their operations were recorded.

    ``added``: how many operations were ever added. ``operations``: how many of them are here.
    """

    def __init__(self) -> None:
        # In the order of their turns: a run that was in a batch goes to the end.
        self._runs: dict[str, _Run] = {}
        self.added = self.operations = 0
        # Spans whose start waits here and was never sent: their finish can join it. One that
        # was sent keeps its form, or its idempotency key would stand for two requests.
        self._unsent_starts: dict[str, BatchItem] = {}

    def __bool__(self) -> bool:
        return bool(self._runs)

    @property
    def completed_through(self) -> int:
        """How many operations are completed without a gap, counted from the first ever added."""
        return min((run.items[0].position for run in self._runs.values()), default=self.added)

    def add(self, operation: Operation, *, is_replayed: bool = False) -> bool:
        """Add an operation; return whether it was merged into another.

        The finish of a span joins its start: one create with both times. A cancelled span
        keeps its two steps: the API may know no other way.
        """
        position = self.added
        self.added += 1
        self.operations += 1
        if isinstance(operation, FinishSpan):
            start = self._unsent_starts.pop(operation.span_id, None)
            if start is not None and operation.status is not SpanStatus.CANCELLED:
                assert isinstance(start.operation, CreateSpan)
                start.operation = start.operation.finished_by(operation)
                start.size = start.operation.size
                start.keys = (*start.keys, operation.idempotency_key)
                return True
        item = BatchItem(operation, position, operation.size, (operation.idempotency_key,))
        if is_replayed:
            item.is_replayed = True
        self._append(item)
        if isinstance(operation, CreateSpan) and operation.status is SpanStatus.ACTIVE:
            self._unsent_starts[operation.span_id] = item
        return False

    def add_sent(
        self,
        operation: Operation,
        keys: tuple[str, ...],
        original: Operation | None,
        *,
        given_id: bool,
    ) -> BatchItem:
        """Add an item that an earlier process has sent, perhaps; it keeps the form it was sent in.

        ``keys``, ``original``, ``given_id``: see :class:`BatchItem`. Return the item.
        """
        item = BatchItem(operation, self.added, operation.size, keys)
        item.original, item.given_id, item.sent = original, given_id, True
        item.is_replayed = True
        self.added += item.count
        self.operations += item.count
        self._append(item)
        return item

    def _append(self, item: BatchItem) -> None:
        instance_id = item.operation.instance_id
        run = self._runs.get(instance_id)
        if run is None:
            run = self._runs[instance_id] = _Run()
        run.items.append(item)

    def items(self) -> list[BatchItem]:
        """The items that are not completed."""
        return [item for run in self._runs.values() for item in run.items if not item.completed]

    def remove_completed(self, batch: Iterable[BatchItem]) -> None:
        """Remove the completed items of ``batch``; each is removed once."""
        for item in batch:
            if not item.completed:
                continue
            self.operations -= item.count
            operation = item.operation
            if isinstance(operation, CreateSpan):
                self._unsent_starts.pop(operation.span_id, None)
            run = self._runs.get(operation.instance_id)
            if run is not None:
                run.trim()
                if not run.items:
                    del self._runs[operation.instance_id]

    def hold(self, items: Iterable[BatchItem], until: float) -> None:
        """Send nothing of the runs of ``items`` before ``until``."""
        for instance_id in {item.operation.instance_id for item in items}:
            self._runs[instance_id].held_until = until

    def defer(self, item: BatchItem, due: float) -> None:
        """Do not send ``item`` before ``due``, but the items that do not depend on it."""
        item.due = due
        deferred = self._runs[item.operation.instance_id].deferred
        if not any(other is item for other in deferred):
            deferred.append(item)

    def drain(self) -> None:
        """As :meth:`retry_now`; and count attempts anew: most of them were made in an outage."""
        self.retry_now()
        for run in self._runs.values():
            for item in run.deferred:
                item.attempts = 0

    def failing(self) -> set[str]:
        """The runs that have a deferred item."""
        return {instance_id for instance_id, run in self._runs.items() if run.deferred}

    def take_back(self, instance_id: str) -> list[BatchItem]:
        """Remove the items of a run that cannot be sent before its deferred ones; return them."""
        run = self._runs[instance_id]
        waiting = [item for item in run.items if not item.completed]
        kept = {id(item) for item in (*run.deferred, *independent_of(run.deferred, waiting))}
        taken = [item for item in waiting if id(item) not in kept]
        run.items = deque(item for item in waiting if id(item) in kept)
        for item in taken:
            self.operations -= item.count
            if isinstance(item.operation, CreateSpan):
                self._unsent_starts.pop(item.operation.span_id, None)
        return taken

    def retry_now(self) -> None:
        """End the waits of all runs and items."""
        for run in self._runs.values():
            run.held_until = -math.inf
            for item in run.deferred:
                item.due = 0.0

    def next_due(self, now: float) -> float:
        """When the first wait of a run or an item ends; ``-inf`` if none waits."""
        times = chain.from_iterable(
            [run.held_until] if run.held_until > now else [item.due for item in run.deferred]
            for run in self._runs.values()
        )
        return min((time for time in times if time > now), default=-math.inf)

    def next_batch(
        self,
        max_operations: int,
        max_bytes: int,
        *,
        now: float = 0.0,
        alone: Collection[OperationType] = (),
        given_ids: bool = True,
        probing: bool = False,
        overtaking: int | None = None,
    ) -> list[BatchItem]:
        """The items of the next request: the oldest ones of each run that fit.

        At least one, unless all have to wait for their time. ``alone``: types that can only be
        sent one by one. ``given_ids``: False if a span can be referred to only after the API has
        answered its create. ``probing``: whether the request is to show if the API is back: any
        operation will do, also one that is deferred. ``overtaking``: given in the drain only, the
        value of :attr:`CircuitBreaker.accepted` now: an operation that fails again and again must
        not keep its dependents back until the time is up.
        """
        batch = _Batch(max_operations, max_bytes, alone, given_ids)
        for run in self._runs.values():
            if not batch.take(run.ready(now)):
                break
        if overtaking is not None and not batch.items:
            for run in self._runs.values():
                if run.deferred and not batch.take(run.overtaking(overtaking)):
                    break
        if probing and not batch.items:
            deferred = [item for run in self._runs.values() for item in run.deferred]
            batch.take(sorted(deferred, key=lambda item: item.due)[:1])
        return batch.items

    def mark_sent(
        self, batch: Sequence[BatchItem], *, given_ids: bool = True, one_given_id: bool = False
    ) -> None:
        """Note that ``batch`` is sent now. ``one_given_id``: give one of its spans an id although
        the others get none, to see whether the API accepts it."""
        for item in batch:
            operation = item.operation
            if not item.sent:
                item.sent, item.given_id = True, given_ids
                if isinstance(operation, CreateSpan):
                    self._unsent_starts.pop(operation.span_id, None)
                    item.given_id = given_ids or one_given_id
                    one_given_id = False
        for instance_id in dict.fromkeys(item.operation.instance_id for item in batch):
            self._runs[instance_id] = self._runs.pop(instance_id)


class _Batch:
    """Items that go into one request."""

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
        """Take the first items of a run that can go together; return whether there is room for
        more."""
        taken, alone, keys = self.items, self._alone, self._keys
        for item in items:
            operation = item.operation
            key = operation.idempotency_key
            single = item.alone or item.in_bulk or operation.type in alone
            operations, size = self._operations + len(item.keys), self._size + item.size
            if taken:
                if single:
                    # Its turn comes: a run that was in a batch goes to the end.
                    return True
                if operations > self._max_operations or size > self._max_bytes:
                    return False
            # A caller who gives a span the id of another gives it its keys, too.
            if key in keys:
                return True
            if not self._given_ids and isinstance(operation, _SPANS):
                if operation.span_id in self._created or (
                    isinstance(operation, CreateSpan) and operation.parent_span_id in self._created
                ):
                    return True
                self._created.add(operation.span_id)
            keys.add(key)
            self._operations, self._size = operations, size
            taken.append(item)
            if single:
                return False
            if isinstance(operation, RegisterAgentInstance):
                return True  # the answer says what the API calls the run
        return True


def independent_of(
    deferred: Sequence[BatchItem], waiting: Iterable[BatchItem]
) -> Iterator[BatchItem]:
    """The items of a run's ``waiting`` ones that do not depend on the ``deferred``, older ones.

    ==========================  ================================================================
    Deferred                    Depends on it
    ==========================  ================================================================
    the registration of a run   everything in the run
    the start of a run          everything in the run but quality
    the start of a span         its finish, its children, and their dependents
    quality                     later quality of the same name
    anything but quality        the finish of the run
    ==========================  ================================================================

    The operations that the deferred ones depend on must be completed.
    """
    ids = {id(item) for item in deferred}
    operations = [item.operation for item in deferred]
    quality = {operation.name for operation in operations if isinstance(operation, RecordQuality)}
    unregistered = any(isinstance(operation, RegisterAgentInstance) for operation in operations)
    nothing_goes = unregistered or any(
        isinstance(operation, StartAgentInstance) for operation in operations
    )
    all_goes = all(isinstance(operation, RecordQuality) for operation in operations)
    spans = _created(operations)
    for item in waiting:
        operation = item.operation
        if id(item) in ids:
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


def _created(operations: Iterable[Operation]) -> set[str]:
    return {operation.span_id for operation in operations if isinstance(operation, CreateSpan)}


def half(batch: Sequence[BatchItem]) -> int:
    """How many operations a batch may have that is to be half of ``batch``."""
    return max(1, sum(item.count for item in batch) // 2)
