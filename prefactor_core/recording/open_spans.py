"""OpenSpans: the spans of a client that are open, as they move on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import datetime
from types import FrameType
from typing import Any, Final, TypeAlias

from msgspec import UNSET, Raw, UnsetType

from prefactor_core.agent.span_context import SpanContext
from prefactor_core.context_stack import OURS, SpanContextStack
from prefactor_core.exceptions import (
    ClientNotInitializedError,
    PrefactorValueError,
    in_message,
)
from prefactor_core.exceptions.checks import to_end
from prefactor_core.exceptions.live import Live
from prefactor_core.exceptions.log import log
from prefactor_core.export.buffer import Buffer
from prefactor_core.export.identity import Identities, RunIdentity
from prefactor_core.models.lifecycle import Outcome, SpanStatus
from prefactor_core.operations import CreateSpan, identifiers
from prefactor_core.payloads.capture import EMPTY, Capture, fields_of, truncated
from prefactor_core.recording.open_span import OpenSpan
from prefactor_core.recording.span_index import SpanIndex
from prefactor_core.recording.span_operations import SpanOperations
from prefactor_core.schema_registry.type_schema import Fields

_ENDS = {str(status): status for status in SpanStatus}
_PENDING, _ACTIVE = SpanStatus.PENDING, SpanStatus.ACTIVE
_WARNINGS_KEPT: Final = 1_000

Unended: TypeAlias = tuple[OpenSpan, Outcome, object, datetime | None, "Unended | None"]
"""A span whose end was interrupted, with how it ends, its result and when; and the one before."""

logger = logging.getLogger("prefactor_core.recording.open_spans")


class OpenSpans(Live):
    """Opens spans and moves them on; knows nothing of those that have ended.

    ``buffer`` takes each operation, in the order in which things happened; ``begin_run`` is
    called before a span is told. Everything here is a plain function, for any thread: recording
    waits for nothing. What moves a span on holds the lock of ``buffer.event_loop``, so that each
    step is told once and in order; payloads are looked at before, since that runs the code of
    others.

    An exception from outside may interrupt any call here, anywhere: for want of stack or memory,
    or raised by a signal handler. What such a call leaves is whole. A span whose opening was
    interrupted was never there; one whose end was interrupted is in ``unended``, and the next call
    ends it.
    """

    _what = "what a client in this process knows of its open spans"

    def __init__(
        self,
        buffer: Buffer,
        identities: Identities,
        capture: Capture,
        begin_run: Callable[[CreateSpan], None],
    ) -> None:
        self._buffer = buffer
        self._counters = buffer.counters
        self._event_loop = buffer.event_loop
        self._lock = buffer.event_loop.lock
        self._identities = identities
        self.capture = self._capture = capture
        self._operations = SpanOperations(buffer, begin_run)
        self.index = SpanIndex(buffer.counters, identities)
        self._warned_of_late_payload: set[str] = set()
        self._closed = False
        # Added to by one statement, and by nothing that might be interrupted as well.
        self.unended: Unended | None = None

    def open(
        self,
        span_id: str,
        run: RunIdentity,
        schema_name: str,
        parent_span_id: str | None,
        payload: Mapping[str, object] | Fields | None,
        has_place: bool = False,
        context: SpanContext[Any] | None = None,
        result: dict[str, object] | None = None,
        holder: FrameType | None = None,
        detached: bool = False,
    ) -> OpenSpan:
        """Open a span here, as the innermost of this context; nothing is told yet.

        ``parent_span_id``: None for the innermost open span of the same run in this context.
        ``payload`` is captured now: what changes in it later does not matter. ``has_place``:
        it has waited for its place, so that it is recorded also if the buffer is full.
        ``context``: what the agent holds of it; opened once, also by several threads.
        ``result``: what it will end with, as far as that is known; added to from outside.
        ``holder``: the generator that holds it open. ``detached``: not as the innermost.
        """
        if self.unended is not None:
            self._end_unended()
        captured, held = EMPTY, 0
        if payload is not None:
            captured = self._capture(payload)
            held = len(captured)
            if run.check is not None:
                run.check.payload(schema_name, captured)
            if type(payload) is not dict:
                payload = _fields(payload)
        if self._event_loop.is_forked:
            self._event_loop.check_process()
        span: OpenSpan | None = None
        opening: OpenSpan | None = None
        try:
            with self._lock:
                if self._closed:
                    raise ClientNotInitializedError(
                        f"the {schema_name!r} span was made by a client that has closed since"
                    )
                if context is not None:
                    span = context.opened
                if span is None:
                    if span_id in self.index.spans:
                        raise PrefactorValueError(
                            f"span_id {span_id!r} belongs to a span that is open"
                        )
                    if (
                        held
                        and not has_place
                        and self._counters.held_bytes >= self._buffer.max_bytes
                    ):
                        captured = truncated(held)
                        held = len(captured)
                    parent, parent_span_id = self._parent_of(span_id, run, parent_span_id)
                    ours = parent_span_id is OURS or (parent is not None and parent.ours)
                    # The run of another client, too, has one clock here.
                    if parent is not None:
                        run = parent.run
                    elif run.recorded_id not in self._identities.runs:
                        run = self._identities.keep(run)
                    opening = OpenSpan(
                        id=span_id,
                        instance_id=run.recorded_id,
                        schema_name=schema_name,
                        parent_span_id=None if ours else parent_span_id,
                        payload={} if payload is None else payload,  # pyright: ignore[reportUnknownArgumentType]
                        result={} if result is None else result,
                        created_at=run.clock.now(),
                        captured=captured,
                        run=run,
                        parent=parent,
                        has_place=has_place,
                        late=run.termination.ending,
                        dropped=ours,
                        ours=ours,
                        context=context,
                    )
                    self.index.add(opening, held)
                    if context is not None:
                        context.opened = opening
                    span = opening
            if not detached:
                SpanContextStack.enter(span, holder)
        except BaseException:
            if opening is not None:
                # Passed over from now on, wherever it is referred to already.
                opening.status = SpanStatus.CANCELLED
                self.unended = (opening, "cancelled", None, None, self.unended)
            raise
        return span

    def _forget(self, span: OpenSpan) -> None:
        """The span is open no more; what an inherited context may refer to is a small shell."""
        span.payload, span.result = {}, {}
        span.parent = span.context = None
        if span.held:  # it was never told, or interrupted right after
            span.captured, self._counters.open_bytes, span.held = (
                EMPTY,
                self._counters.open_bytes - span.held,
                0,
            )
        self.index.remove(span)

    def _end_unended(self) -> None:
        """End what could not end, or be opened, when it should."""
        while (first := self.unended) is not None:
            span, outcome, result, at, self.unended = first
            try:
                self._end(span, outcome, self._result(span, result), at)
            except (RecursionError, MemoryError):
                self.unended = (span, outcome, result, at, self.unended)
                return  # another time: what was called for may still do
            except BaseException:
                self.unended = (span, outcome, result, at, self.unended)
                raise

    def _parent_of(
        self, span_id: str, run: RunIdentity, parent_span_id: str | None
    ) -> tuple[OpenSpan | None, str | None]:
        """The open span above a new one, if it is known, and the id that the API shall hear."""
        if parent_span_id is None:
            innermost = SpanContextStack.innermost(run.recorded_id)
            if innermost is None:
                return None, None
            if isinstance(innermost, OpenSpan):
                return innermost, innermost.id
            if innermost is OURS:
                return None, OURS
            # Pushed by hand. What is no id would cost the API's refusal of the whole span.
            return None, str.__str__(innermost) if identifiers.is_pfid(innermost) else None
        if not identifiers.is_pfid(parent_span_id):
            hint = "" if isinstance(parent_span_id, str) else "; a payload is passed as payload="
            raise PrefactorValueError(
                f"parent_span_id must be the id of a span, got {in_message(parent_span_id)}{hint}"
            )
        parent_span_id = str.__str__(parent_span_id)
        if parent_span_id == span_id:
            raise PrefactorValueError(f"parent_span_id {parent_span_id!r} is the span itself")
        parent = self.index.find(parent_span_id)
        if parent is None:
            return None, self._operations.recorded(parent_span_id)
        if parent.instance_id != run.recorded_id:
            raise PrefactorValueError(
                f"parent_span_id {parent_span_id!r} is a span of another agent instance, "
                f"{parent.run.id!r}"
            )
        return parent, parent.id

    def begin(
        self,
        span: OpenSpan,
        payload: Mapping[str, object] | Fields | None = None,
        at: datetime | None = None,
    ) -> None:
        """The span starts, now or ``at``; nothing if it has ended. ``payload``: None to start with
        what it was opened with; one that comes after its start is not recorded."""
        if self.unended is not None:
            self._end_unended()
        if payload is not None and not self._event_loop.is_forked:
            captured = self._capture(payload)
            if span.run.check is not None:
                span.run.check.payload(span.schema_name, captured)
            if not self.keep_payload(span, _fields(payload), captured) and fields_of(payload):
                self._warn_of_late_payload(span.schema_name)
        self._move(span, SpanStatus.ACTIVE, at)

    def keep_payload(self, span: OpenSpan, payload: Mapping[str, object], captured: Raw) -> bool:
        """The span shall start with another payload; False if it has started."""
        size = len(captured)
        before = span.payload  # what it was given before ends after the lock
        with self._lock:
            if span.status is not SpanStatus.PENDING:
                return False
            others = self._counters.held_bytes - span.held
            if others >= self._buffer.max_bytes and not span.has_place:
                captured = truncated(size)
                size = len(captured)
            span.payload, span.captured, self._counters.open_bytes, span.held = (
                payload,
                captured,
                self._counters.open_bytes + size - span.held,
                size,
            )
        del before
        return True

    def skip(self, span: OpenSpan, at: datetime | None = None) -> None:
        """The span is cancelled, now or ``at``, as one that never began if it had not started;
        nothing if it has ended.

        Raises :class:`PrefactorValueError` if that is before its start.
        """
        if at is not None:
            # It need not have begun: what was skipped may have been so at any time.
            at = _to_end(span, at, span.started_at)
        if self.unended is not None:
            self._end_unended()
        try:
            self._move(span, SpanStatus.CANCELLED, at, result=self._result(span))
        except BaseException:
            self.unended = (span, "cancelled", None, at, self.unended)
            raise

    def end(
        self,
        span: OpenSpan,
        result_payload: object,
        status: Outcome,
        at: datetime | None = None,
    ) -> None:
        """The span ends, now or ``at``, with ``result_payload`` merged into its result; nothing if
        it has ended.

        One that was not started has begun with its entering. Raises
        :class:`PrefactorValueError` for an end before that.
        """
        if at is not None:
            at = _to_end(span, at, span.started_at or span.created_at)
        if self.unended is not None:
            self._end_unended()
        payload = span.payload
        try:
            result = self._result(span, result_payload)
            # Cancelled at once, it would be one that never began.
            began = span.created_at if status == "cancelled" else None
            self._move(span, _ENDS[status], at, began, result)
        except BaseException:
            self.unended = (span, status, result_payload, at, self.unended)
            raise
        if span.run.check is not None and status == "complete" and not self._event_loop.is_forked:
            # What the agent did is recorded by now, whatever this raises.
            if not fields_of(payload):  # not bool() of it, which may be the caller's code
                span.run.check.payload(span.schema_name, EMPTY)
            if not isinstance(result, UnsetType):
                span.run.check.result(span.schema_name, result)

    def close(self) -> None:
        """Open no more spans."""
        with self._lock:
            self._closed = True

    def _warn_of_late_payload(self, schema_name: str) -> None:
        warned = self._warned_of_late_payload
        if schema_name not in warned and len(warned) < _WARNINGS_KEPT:
            self._warned_of_late_payload.add(schema_name)
            log(
                logger,
                logging.WARNING,
                "a %r span was already started, by its start() or by that of a child: its "
                "later payload is not recorded. Give it to span(payload=...) instead",
                schema_name,
            )

    def _result(self, span: OpenSpan, payload: object = None) -> Raw | UnsetType:
        """What the span would end with, now: ``payload`` merged into its result.

        Looked at before the lock is taken, since it runs the code of others. Merged into a copy:
        of several threads that end a span only one counts.
        """
        if (payload is None and not span.result) or self._event_loop.is_forked:
            return UNSET
        result = span.result
        if payload is not None:
            result = dict(result)
            self._capture.merge(result, payload)
        if not result:
            return UNSET
        return self._capture(result) if self._capture.enabled else self._capture.result(result)

    def _end(
        self,
        span: OpenSpan,
        status: Outcome,
        result: Raw | UnsetType,
        at: datetime | None = None,
    ) -> None:
        # Cancelled at once, it would be one that never began.
        began = span.created_at if status == "cancelled" else None
        self._move(span, _ENDS[status], at, began, result)

    def _move(
        self,
        span: OpenSpan,
        goal: SpanStatus,
        at: datetime | None = None,
        began: datetime | None = None,
        result: Raw | UnsetType = UNSET,
    ) -> None:
        """Bring the span to ``goal``, now or ``at``; by way of its start if it ``began``."""
        if self._event_loop.is_forked:
            return  # of the process that was forked from: its span, and its to end
        # What only the span still holds ends after the lock: that may run the code of others too.
        _held = span.payload, span.result, span.context
        self._event_loop.step(self._advance, span, goal, at, began, result)
        if goal is not SpanStatus.ACTIVE:
            SpanContextStack.remove(span)

    def _advance(
        self,
        span: OpenSpan,
        goal: SpanStatus,
        at: datetime | None,
        began: datetime | None,
        result: Raw | UnsetType,
    ) -> None:
        status = span.status  # not span.ended: a call
        if status is not _PENDING and status is not _ACTIVE:
            # Another thread was faster, or an exception came right after it had ended.
            self._forget(span)
            return
        late = span.context and span.context.from_result
        if late and result is not UNSET and status is _PENDING:
            # Before it is told: after that the API takes no payload.
            captured = self._capture.with_fields(span.captured, result, late)
            held = len(captured)
            span.captured, self._counters.open_bytes, span.held = (
                captured,
                self._counters.open_bytes + held - span.held,
                held,
            )
        if began is not None:
            self._operations.advance(span, SpanStatus.ACTIVE, began)
        self._operations.advance(span, goal, at or span.run.clock.now(), result)
        if goal is not SpanStatus.ACTIVE:
            self._forget(span)


def _to_end(span: OpenSpan, at: datetime, start: datetime | None) -> datetime:
    # Where the wall was set back, the start may be ahead of it: the end is the start then.
    start = None if span.run.clock.is_ahead else start
    return to_end("timestamp", at, f"the {span.schema_name!r} span", start)


def _fields(payload: Mapping[str, object] | Fields) -> Mapping[str, object]:
    return payload if isinstance(payload, Mapping) else fields_of(payload)
