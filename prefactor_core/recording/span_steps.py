"""SpanSteps: the transitions of spans, and the operations that report them to the API."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from msgspec import UNSET, Raw, UnsetType

from prefactor_core.exceptions import PrefactorValueError, in_message
from prefactor_core.export.buffer import Buffer
from prefactor_core.export.identity import RunIdentity
from prefactor_core.models.lifecycle import OPEN, SpanStatus
from prefactor_core.operations import ENVELOPE_SIZE, CreateSpan, FinishSpan
from prefactor_core.operations.identifiers import is_pfid
from prefactor_core.payloads.capture import EMPTY, Capture
from prefactor_core.recording.span_index import SpanIndex
from prefactor_core.recording.span_record import SpanRecord

_PENDING, _ACTIVE, _CANCELLED = SpanStatus.PENDING, SpanStatus.ACTIVE, SpanStatus.CANCELLED
_DROPPED_KEPT: Final = 10_000

BeginRun: TypeAlias = Callable[[RunIdentity, int], None]
"""Records the start of a run that has not started, at a time in nanoseconds since 1970."""


class SpanSteps:
    """Makes the transitions of spans, and records each in ``buffer``.

    The caller of :meth:`advance` holds the lock of recording. An exception from outside may
    interrupt the call anywhere. Each operation is recorded together with the span's new status, or
    not at all; so the same call, made again, continues where it was interrupted.
    ``begin_run`` is called before the first span of a run is recorded.
    """

    def __init__(
        self, buffer: Buffer, index: SpanIndex, capture: Capture, begin_run: BeginRun
    ) -> None:
        self._buffer = buffer
        self._counters = buffer.counters
        self._index = index
        self._capture = capture
        self._begin_run = begin_run
        # For each dropped span, its nearest ancestor that was not dropped. Only the last ones are
        # kept: there may be any number.
        self._dropped: dict[str, str | None] = {}

    def advance(
        self,
        span: SpanRecord,
        goal: SpanStatus,
        at: int | None,
        began: int | None,
        result: Raw | UnsetType,
        result_size: int,
    ) -> None:
        """Bring an open span to the status ``goal``.

        ``at``: the time of the transition, None for now. ``began``: for a cancelled span that was
        not started, the time when it started after all; None if it never did.
        """
        if span.status is _PENDING:
            if span.parent is not None:
                self._start_ancestors(span.parent)
            if result_size and span.from_result:
                # Before the create is recorded: the API accepts no payload after it.
                self._fill_in(span, result)
            if at is None:
                # Clock.now(), without the call.
                clock = span.run.clock
                at = clock.read()
                if at < clock.last or clock.is_carried_on:
                    at = clock.carried_on(at)
                clock.last = at
            if goal is _ACTIVE:
                self._create(span, _ACTIVE, at, at)
            elif goal is _CANCELLED:
                # POST /agent_spans creates no cancelled span: two operations.
                self._create(span, _PENDING if began is None else _ACTIVE, began or at, began)
                self._finish(span, goal, at, result, result_size)
            else:
                created_at = span.created_at
                if at < created_at:  # a time that the caller gave for all open spans
                    at = created_at
                self._create(span, goal, created_at, created_at, at, result, result_size)
        elif span.status is _ACTIVE and goal is not _ACTIVE:
            self._finish(span, goal, at or span.run.clock.now(), result, result_size)
        if span.status in OPEN:
            return
        # Drop payload, result and parent: inherited contexts may keep this object alive.
        span.payload = span.result = span.parent = None
        span_id, index = span.recorded_id, self._index
        if span_id in index.spans and index.spans[span_id] is span:
            of_run = index.by_run[span.instance_id]
            del index.spans[span_id], of_run[span_id]
            if not of_run:
                del index.by_run[span.instance_id]
            if index.provisional:
                index.has_ended(span)
        if span.held or span_id in index.unreported:  # no create recorded, or one interrupted
            self._release(span)

    def _start_ancestors(self, parent: SpanRecord | None) -> None:
        """Record the creates of pending ancestors, outermost first, each as of its own opening.

        The API refuses a child whose parent it does not know.
        """
        pending: list[SpanRecord] = []
        while parent is not None and parent.status is _PENDING:
            pending.append(parent)
            parent = parent.parent
        # A loop, not recursion: trees may be deep.
        for ancestor in reversed(pending):
            self._create(ancestor, _ACTIVE, ancestor.created_at, ancestor.created_at)

    def _create(
        self,
        span: SpanRecord,
        status: SpanStatus,
        at: int,
        started_at: int | None,
        finished_at: int | None = None,
        result: Raw | UnsetType = UNSET,
        result_size: int = 0,
    ) -> None:
        """Record the create of a span; as pending only if the span is to be cancelled."""
        counters = self._counters
        # Active: if the finish that follows is interrupted, its repetition needs no create.
        new_status = _ACTIVE if status is _PENDING else status
        if span.parent is not None and span.parent.dropped:
            # The parent of a dropped parent is the nearest recorded ancestor.
            span.parent_span_id = span.parent.parent_span_id
        if span.unrecorded:
            self._buffer.release_slot(span)
            span.status, span.started_at, span.finished_at = new_status, started_at, finished_at
        elif span.run_was_ending or span.run.termination.over:
            # The API accepts nothing of a run after its finish.
            self._buffer.release_slot(span)
            self._buffer.drop_new("run_ended")
            self._drop(span, new_status, started_at, finished_at)
        else:
            if not span.run.begun:
                self._begin_run(span.run, at)
            operation = CreateSpan(
                timestamp=at,
                idempotency_key=f"{span.recorded_id}-create",
                instance_id=span.instance_id,
                span_id=span.recorded_id,
                schema_name=span.schema_name,
                status=status,
                payload=span.captured,
                parent_span_id=span.parent_span_id,
                finished_at=finished_at,
                result_payload=result,
            )
            held = span.held
            if not self._buffer.record(
                operation,
                ENVELOPE_SIZE + (held or len(span.captured)) + result_size,
                span,
                new_status,
                started_at,
                finished_at,
                held,
                span.has_slot,
            ):
                self._drop(span, new_status, started_at, finished_at)
        if span.recorded_id in self._index.unreported:
            # As _release() does it, without its call.
            span.captured, counters.open_bytes, span.held = (
                EMPTY,
                counters.open_bytes - span.held,
                0,
            )
            del self._index.unreported[span.recorded_id]
        # Else it is an ancestor that another client opened. That counts its payload, to its end.

    def _release(self, span: SpanRecord) -> None:
        """Stop counting the payload as that of an open span."""
        span.captured, self._counters.open_bytes, span.held = (
            EMPTY,
            self._counters.open_bytes - span.held,
            0,
        )
        if self._index.unreported.pop(span.recorded_id, None) is not None:
            self._buffer.journal.discarded(span.recorded_id, span.parent_span_id)

    def _finish(
        self,
        span: SpanRecord,
        status: SpanStatus,
        at: int,
        result: Raw | UnsetType,
        result_size: int,
    ) -> None:
        started_at = span.started_at
        if started_at is None:
            status = _CANCELLED  # created as never started: the API allows no other end
        elif at < started_at:
            at = started_at  # the caller may have given a start in the future
        if span.dropped:
            span.status, span.finished_at = status, at
            return
        operation = FinishSpan(
            timestamp=at,
            idempotency_key=f"{span.recorded_id}-finish",
            instance_id=span.instance_id,
            span_id=span.recorded_id,
            status=status,
            result_payload=result,
        )
        self._buffer.record(operation, ENVELOPE_SIZE + result_size, span, status, started_at, at)

    def _drop(
        self,
        span: SpanRecord,
        status: SpanStatus,
        started_at: int | None,
        finished_at: int | None,
    ) -> None:
        span.status, span.started_at, span.finished_at, span.dropped = (
            status,
            started_at,
            finished_at,
            True,
        )
        self._buffer.journal.discarded(span.recorded_id, span.parent_span_id)
        self._dropped[span.recorded_id] = span.parent_span_id
        if len(self._dropped) > _DROPPED_KEPT:
            del self._dropped[next(iter(self._dropped))]

    def _fill_in(self, span: SpanRecord, result: Raw | UnsetType) -> None:
        assert not isinstance(result, UnsetType)
        captured = self._capture.with_fields(span.captured, result, span.from_result)
        held = len(captured)
        span.captured, self._counters.open_bytes, span.held = (
            captured,
            self._counters.open_bytes + held - span.held,
            held,
        )

    def named_parent(self, span: SpanRecord) -> SpanRecord | None:
        """The parent that the span names, if that is an open span; else None, and the span's
        ``parent_span_id`` is the id that the API knows."""
        parent_id = span.parent_span_id
        if not is_pfid(parent_id):
            hint = "" if isinstance(parent_id, str) else "; a payload is passed as payload="
            raise PrefactorValueError(
                f"parent_span_id must be the id of a span, got {in_message(parent_id)}{hint}"
            )
        parent_id = str.__str__(parent_id)
        if parent_id == span.recorded_id:
            raise PrefactorValueError(f"parent_span_id {parent_id!r} is the span itself")
        parent = self._index.find(parent_id)
        if parent is None:
            # For a dropped span: its nearest ancestor that was not dropped.
            span.parent_span_id = self._dropped.get(parent_id, parent_id)
            return None
        if parent.instance_id != span.run.recorded_id:
            raise PrefactorValueError(
                f"parent_span_id {parent_id!r} is a span of another agent instance, "
                f"{parent.run.id!r}"
            )
        return parent
