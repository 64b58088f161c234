"""Backlog: what one worker has to send, in order; which of it goes into the next request. Pure.

An operation waits here as a :class:`Parcel`, from the moment the worker takes it out of its
queue until it is settled.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from msgspec import Struct

from prefactor_core.lifecycle import SpanStatus
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


class Parcel(Struct, eq=False, gc=False):
    """One thing to tell the API: an operation, or a span's start and finish in one.

    ``position``: how many operations the worker took before this one. ``count``: how many
    operations it stands for, 1 or 2. ``size``: bytes in a request, about.
    ``alone``: to be sent by its own endpoint. ``sent``: was in a request.
    ``failed_in_bulk``: bulk gave an error for it. ``with_parent``: what it was before it lost a
    parent that the API does not know.
    ``given_id``: whether the API is told which id the span shall have; settled when it is sent,
    because its idempotency key stands for one body.
    ``attempts``: requests that failed and had it in them. ``faults``: those among them that
    were about this parcel, as the API took something else right after. ``due``: when it may be
    sent again after one, on the clock of the event loop.
    """

    operation: Operation
    position: int
    size: int
    count: int = 1
    alone: bool = False
    sent: bool = False
    given_id: bool = True
    failed_in_bulk: bool = False
    with_parent: Operation | None = None
    attempts: int = 0
    faults: int = 0
    due: float = 0.0


class Backlog:
    """Parcels in the order in which their operations were recorded."""

    def __init__(self) -> None:
        # Keyed by position: ordered, and cheap to remove from wherever it is.
        self._parcels: dict[int, Parcel] = {}
        self._taken = 0
        self.operations = 0
        # Spans whose start waits here and was never sent: their finish can join it. One that
        # was sent keeps its form, or its idempotency key would stand for two requests.
        self._unsent_starts: dict[str, Parcel] = {}

    def __len__(self) -> int:
        return len(self._parcels)

    @property
    def settled_through(self) -> int:
        """How many operations, from the first ever taken on, are settled without a gap."""
        return next(iter(self._parcels), self._taken)

    @property
    def taken(self) -> int:
        """How many operations were ever added."""
        return self._taken

    def add(self, operation: Operation) -> bool:
        """Take an operation in; whether it could be merged into another.

        The finish of a span joins its start: one create with both times. A cancelled span
        keeps its two steps: the API may know no other way (API.md section 8).
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
        parcel = Parcel(operation, position, operation.size)
        self._parcels[position] = parcel
        if isinstance(operation, CreateSpan) and operation.status is SpanStatus.ACTIVE:
            self._unsent_starts[operation.span_id] = parcel
        return False

    def remove(self, parcel: Parcel) -> None:
        """A parcel is settled."""
        if self._parcels.pop(parcel.position, None) is not None:
            self.operations -= parcel.count
            if isinstance(parcel.operation, CreateSpan):
                self._unsent_starts.pop(parcel.operation.span_id, None)

    def next_request(
        self,
        max_operations: int,
        max_bytes: int,
        *,
        alone: Collection[OperationType] = (),
        given_ids: bool = True,
        aside: Sequence[Parcel] = (),
    ) -> list[Parcel]:
        """The parcels of the next request: the oldest ones that fit, at least one.

        ``alone``: types that can only be sent one by one. ``given_ids``: False if a span can
        be referred to only after the API has answered its create. ``aside``: parcels that
        are overtaken now by what does not depend on them; if all does, the first of them comes.
        """
        waiting: Iterable[Parcel] = self._parcels.values()
        if aside:
            waiting = independent_of(aside, waiting) or aside[:1]
        request: list[Parcel] = []
        operations = size = 0
        created: set[str] = set()
        keys: set[str] = set()
        for parcel in waiting:
            operation = parcel.operation
            single = (
                parcel.alone
                or isinstance(operation, RegisterAgentInstance)
                or operation.type in alone
            )
            operations += parcel.count
            size += parcel.size
            if request and (single or operations > max_operations or size > max_bytes):
                break
            # Whoever gives a span the id of another gives it its keys, too.
            if operation.idempotency_key in keys:
                break
            keys.add(operation.idempotency_key)
            if not given_ids and isinstance(operation, _SPANS):
                if operation.span_id in created or (
                    isinstance(operation, CreateSpan) and operation.parent_span_id in created
                ):
                    break
                created.add(operation.span_id)
            request.append(parcel)
            if single:
                break
        for parcel in request:
            if not parcel.sent:
                parcel.sent, parcel.given_id = True, given_ids
                if isinstance(parcel.operation, CreateSpan):
                    self._unsent_starts.pop(parcel.operation.span_id, None)
        return request


def independent_of(aside: Sequence[Parcel], waiting: Iterable[Parcel]) -> list[Parcel]:
    """Those among ``waiting`` that may be sent although those ``aside``, which are older, were not.

    Dependent are: on a span's start, its finish and its children, and on their starts again;
    on anything of a run, its finish; on the registration or the start of a run, all of it.
    Not so its quality: that depends on the registration, and on what was told before it under
    the same name; and nothing else on it.
    What those aside depend on themselves must have been settled before.
    """
    left = {id(parcel) for parcel in aside}
    quality = {
        (parcel.operation.instance_id, parcel.operation.name)
        for parcel in aside
        if isinstance(parcel.operation, RecordQuality)
    }
    unregistered = {
        parcel.operation.instance_id
        for parcel in aside
        if isinstance(parcel.operation, RegisterAgentInstance)
    }
    touched_runs = {
        parcel.operation.instance_id
        for parcel in aside
        if not isinstance(parcel.operation, RecordQuality)
    }
    whole_runs = {
        parcel.operation.instance_id
        for parcel in aside
        if isinstance(parcel.operation, RegisterAgentInstance | StartAgentInstance)
    }
    spans = {
        parcel.operation.span_id for parcel in aside if isinstance(parcel.operation, CreateSpan)
    }
    independent: list[Parcel] = []
    for parcel in waiting:
        operation = parcel.operation
        if id(parcel) in left:
            continue
        if isinstance(operation, RecordQuality):
            if operation.instance_id in unregistered or (
                (operation.instance_id, operation.name) in quality
            ):
                continue
            independent.append(parcel)
        elif operation.instance_id not in touched_runs:
            independent.append(parcel)
        elif (
            operation.instance_id in whole_runs
            or not isinstance(operation, _SPANS)
            or operation.span_id in spans
        ):
            continue
        elif isinstance(operation, CreateSpan) and operation.parent_span_id in spans:
            spans.add(operation.span_id)
        else:
            independent.append(parcel)
    return independent


def half(request: Sequence[Parcel]) -> int:
    """How many operations a request may have that is to be half of ``request``."""
    return max(1, sum(parcel.count for parcel in request) // 2)
