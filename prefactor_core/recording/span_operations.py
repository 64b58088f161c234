"""SpanOperations: what is told about a span as it moves on."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from msgspec import UNSET, Raw, UnsetType

from prefactor_core.export.buffer import Buffer
from prefactor_core.models.lifecycle import SpanStatus, span_steps
from prefactor_core.operations import CreateSpan, FinishSpan, identifiers
from prefactor_core.payloads.capture import EMPTY
from prefactor_core.recording.open_span import OpenSpan

_DROPPED_KEPT = 10_000
_PENDING, _ACTIVE = SpanStatus.PENDING, SpanStatus.ACTIVE
_COMPLETE, _FAILED = SpanStatus.COMPLETE, SpanStatus.FAILED


class SpanOperations:
    """Makes the operations of spans, and gives them to ``buffer`` in the order of happening.

    ``begin_run`` is called before a span is told. Whoever calls a method holds the lock of
    ``buffer.event_loop``. An exception from outside may interrupt any of them: each operation is
    recorded together with the span's new status or not at all, so the same call goes on where it
    was.
    """

    def __init__(self, buffer: Buffer, begin_run: Callable[[CreateSpan], None]) -> None:
        self._buffer = buffer
        self._counters = buffer.counters
        self._begin_run = begin_run
        # Of spans that the buffer did not take: the nearest ancestor that it took, for
        # who names one as parent later. The last ones only: there may be any number.
        self._dropped: dict[str, str | None] = {}

    def recorded(self, span_id: str) -> str | None:
        """The span itself, or the nearest ancestor that the buffer took instead of it."""
        return self._dropped.get(span_id, span_id)

    def advance(
        self,
        span: OpenSpan,
        goal: SpanStatus,
        at: datetime,
        result: Raw | UnsetType = UNSET,
    ) -> None:
        """Tell what brings the span to ``goal``, and let it be there; ``result`` if it ends.

        A span ends no earlier than it began.
        """
        if span.parent is not None and span.status is _PENDING:
            self._start_ancestors(span)
        if span.status is _PENDING and (goal is _COMPLETE or goal is _FAILED):
            # Most spans: both steps in one, without asking which there are.
            began = span.created_at
            if at < began:  # it was given, for all that was open
                at = began
            self._create(span, goal, began, at, result)
            return
        for call, status in span_steps(span.status, goal):
            if call == "finish":
                self._finish(span, status, at, result)
            else:
                self._create(span, status, at)

    def _start_ancestors(self, span: OpenSpan) -> None:
        # The API knows a parent before its children, or refuses them. Outermost first, each
        # as of its own entering. A loop, not recursion: trees may be deep.
        waiting: list[OpenSpan] = []
        parent = span.parent
        while parent is not None and parent.status is _PENDING:
            waiting.append(parent)
            parent = parent.parent
        for ancestor in reversed(waiting):
            self._create(ancestor, _ACTIVE, ancestor.created_at)

    def _create(
        self,
        span: OpenSpan,
        status: SpanStatus,
        at: datetime,
        finished_at: datetime | None = None,
        result: Raw | UnsetType = UNSET,
    ) -> None:
        if span.parent is not None and span.parent.dropped:
            # Its parent, which was told before it, hangs on one that was recorded.
            span.parent_span_id = span.parent.parent_span_id
        started_at: datetime | None = at
        told = status
        if status is _PENDING:
            # Its finish follows, and needs no other create if it is interrupted now.
            started_at, told = None, _ACTIVE
        if span.ours:
            if span.has_place:
                self._buffer.give_place_back()
                span.has_place = False
            span.status, span.started_at, span.finished_at = told, started_at, finished_at
            span.captured, self._counters.open_bytes, span.held = (
                EMPTY,
                self._counters.open_bytes - span.held,
                0,
            )
            return
        operation = CreateSpan(
            timestamp=at,
            idempotency_key=identifiers.idempotency_key(span.id, "create"),
            instance_id=span.instance_id,
            span_id=span.id,
            schema_name=span.schema_name,
            status=status,
            payload=span.captured,
            parent_span_id=span.parent_span_id,
            finished_at=finished_at,
            result_payload=result,
        )
        # Last is a run's finish: what comes after it is turned away here, and not by the API.
        late = span.late or span.run.termination.over
        if not late:
            self._begin_run(operation)
        if not self._buffer.record(
            operation,
            span,
            told,
            started_at,
            finished_at,
            held=span.held,
            has_place=span.has_place,
            late=late,
        ):
            span.status, span.started_at, span.finished_at, span.dropped = (
                told,
                started_at,
                finished_at,
                True,
            )
            self._dropped[span.id] = span.parent_span_id
            if len(self._dropped) > _DROPPED_KEPT:
                del self._dropped[next(iter(self._dropped))]
        span.captured, self._counters.open_bytes, span.held = (
            EMPTY,
            self._counters.open_bytes - span.held,
            0,
        )

    def _finish(
        self, span: OpenSpan, status: SpanStatus, at: datetime, result: Raw | UnsetType
    ) -> None:
        if span.started_at is None:
            status = SpanStatus.CANCELLED  # created as one that never began: nothing else follows
        elif at < span.started_at:
            at = span.started_at  # which was given, and may lie in the future
        if span.dropped:
            span.status, span.finished_at = status, at
            return
        operation = FinishSpan(
            timestamp=at,
            idempotency_key=identifiers.idempotency_key(span.id, "finish"),
            instance_id=span.instance_id,
            span_id=span.id,
            status=status,
            result_payload=result,
        )
        self._buffer.record(operation, span, status, span.started_at, at)
