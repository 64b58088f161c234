"""OpenSpans: the spans of a client that are open, as they move on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from msgspec import UNSET, Raw, UnsetType

from prefactor_core import identifiers
from prefactor_core.capture import EMPTY, Capture, fields_of, merge
from prefactor_core.checks import to_end
from prefactor_core.clock import Clock
from prefactor_core.context_stack import SpanContextStack
from prefactor_core.delivery.identity import Identities, RunIdentity
from prefactor_core.delivery.outbox import Outbox
from prefactor_core.exceptions import (
    ClientNotInitializedError,
    PrefactorValueError,
)
from prefactor_core.lifecycle import Outcome, SpanStatus
from prefactor_core.log import log
from prefactor_core.managers.span_operations import SpanOperations
from prefactor_core.open_span import OpenSpan
from prefactor_core.operations import CreateSpan
from prefactor_core.span_context import SpanContext
from prefactor_core.type_schema import Fields

_ENDS = {str(status): status for status in SpanStatus}

logger = logging.getLogger("prefactor_core.managers.open_spans")


class OpenSpans:
    """Opens spans and moves them on; knows nothing of those that have ended.

    ``outbox`` takes each operation, in the order in which things happened; ``begin_run`` is
    called before a span is told. Everything here is a plain function, for any thread: recording
    waits for nothing. What moves a span on holds the lock of ``outbox.home``, so that each step
    is told once and in order; payloads are looked at before, since that runs the code of others.
    """

    def __init__(
        self,
        outbox: Outbox,
        identities: Identities,
        capture: Capture,
        begin_run: Callable[[CreateSpan, bool], None],
    ) -> None:
        self._outbox = outbox
        self._home = outbox.home
        self._lock = outbox.home.lock
        self._identities = identities
        self._capture = capture
        self._operations = SpanOperations(outbox, begin_run)
        # In the order of entering, so parents stand before their children.
        self._spans: dict[str, OpenSpan] = {}
        self._warned_of_late_payload: set[str] = set()
        self._closed = False

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
    ) -> OpenSpan:
        """Open a span here, as the innermost of this context; nothing is told yet.

        ``parent_span_id``: None for the innermost open span of the same run in this context.
        ``payload`` is captured now: what changes in it later does not matter. ``has_place``:
        it has waited for its place, so that it is recorded also if the outbox is full.
        ``context``: what the agent holds of it; opened once, also by several threads.
        ``result``: what it will end with, as far as that is known; added to from outside.
        """
        captured = EMPTY if payload is None else self._capture(payload)
        if run.check is not None and payload is not None:
            run.check.payload(schema_name, captured)
        if self._home.is_left:
            self._home.check_process()
        with self._lock:
            if self._closed:
                raise ClientNotInitializedError(
                    f"the {schema_name!r} span was made by a client that has closed since"
                )
            span = None if context is None else context.opened
            if span is None:
                if span_id in self._spans:
                    raise PrefactorValueError(f"span_id {span_id!r} belongs to a span that is open")
                parent, parent_span_id = self._parent_of(span_id, run, parent_span_id)
                # A child runs on its parent's clock, so that it cannot lie outside of it.
                clock = parent.clock if parent else Clock()
                span = self._spans[span_id] = OpenSpan(
                    id=span_id,
                    instance_id=run.recorded_id,
                    schema_name=schema_name,
                    parent_span_id=parent_span_id,
                    payload=_fields(payload),
                    result={} if result is None else result,
                    created_at=clock.now(),
                    clock=clock,
                    captured=captured,
                    run=run,
                    parent=parent,
                    has_place=has_place,
                    context=context,
                )
                if context is not None:
                    context.opened = span
        SpanContextStack.push(span)
        return span

    def _parent_of(
        self, span_id: str, run: RunIdentity, parent_span_id: str | None
    ) -> tuple[OpenSpan | None, str | None]:
        """The open span above a new one, if it is known, and the id that the API shall hear."""
        if parent_span_id is None:
            innermost = SpanContextStack.innermost(run.recorded_id)
            if isinstance(innermost, OpenSpan):
                return innermost, innermost.id
            return None, innermost if isinstance(innermost, str) else None
        if not identifiers.is_pfid(parent_span_id):
            # A text is shown; of anything else, which may be a payload, only what it is.
            shown = (
                repr(parent_span_id)
                if isinstance(parent_span_id, str)
                else f"a {type(parent_span_id).__qualname__}; a payload is passed as payload="
            )
            raise PrefactorValueError(f"parent_span_id must be the id of a span, got {shown}")
        if parent_span_id == span_id:
            raise PrefactorValueError(f"parent_span_id {parent_span_id!r} is the span itself")
        parent = self._lookup(parent_span_id)
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
        if payload is not None and not self._home.is_left:
            captured = self._capture(payload)
            if span.run.check is not None:
                span.run.check.payload(span.schema_name, captured)
            with self._lock:
                pending = span.status is SpanStatus.PENDING
                if pending:
                    # Swapped: what it was given before ends after the lock.
                    span.payload, payload = _fields(payload), span.payload
                    span.captured = captured
            if not pending and fields_of(payload):
                self._warn_of_late_payload(span.schema_name)
        self._move(span, SpanStatus.ACTIVE, at)

    def skip(self, span: OpenSpan, at: datetime | None = None) -> None:
        """The span is cancelled, now or ``at``, as one that never began if it had not started;
        nothing if it has ended.

        Raises :class:`PrefactorValueError` if that is before its start.
        """
        if at is not None:
            # It need not have begun: what was skipped may have been so at any time.
            at = to_end("timestamp", at, f"the {span.schema_name!r} span", span.started_at)
        self._move(span, SpanStatus.CANCELLED, at, result=self._result(span))

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
            start = span.started_at or span.created_at
            at = to_end("timestamp", at, f"the {span.schema_name!r} span", start)
        result, payload = self._result(span, result_payload), span.payload
        self._end(span, status, result, at)
        if span.run.check is not None and status == "complete" and not self._home.is_left:
            # What the agent did is recorded by now, whatever this raises.
            if not fields_of(payload):  # not bool() of it, which may be the caller's code
                span.run.check.payload(span.schema_name, EMPTY)
            if not isinstance(result, UnsetType):
                span.run.check.result(span.schema_name, result)

    def results_of_open(
        self, instance_id: str | None, result_payload: Mapping[str, object] | None = None
    ) -> dict[str, Raw | UnsetType]:
        """What is still open of an instance (None: of all) would end with, by the spans' ids.

        For :meth:`finish_open`, whose caller may hold the lock then.
        """
        return {span.id: self._result(span, result_payload) for span in self._open_of(instance_id)}

    def finish_open(
        self,
        instance_id: str | None,
        status: Outcome,
        results: Mapping[str, Raw | UnsetType],
        at: datetime | None = None,
    ) -> None:
        """End what is still open of an instance (None: of all), children before parents; now, or
        ``at``, but no span before its start."""
        with self._lock:
            for span in reversed(self._open_of(instance_id)):
                # One that another thread has opened since the results were looked at has none.
                self._end(span, status, results.get(span.id, UNSET), at)

    def _open_of(self, instance_id: str | None) -> list[OpenSpan]:
        if instance_id is None:
            return list(self._spans.values())
        recorded_id = self._identities.of(instance_id).recorded_id
        return [s for s in list(self._spans.values()) if s.instance_id == recorded_id]

    def close(self) -> None:
        """Open no more spans."""
        with self._lock:
            self._closed = True

    def _lookup(self, span_id: str) -> OpenSpan | None:
        span = self._spans.get(span_id)
        if span is None:
            # What the API calls a span may differ from what it is recorded as.
            for candidate in list(self._spans.values()):
                if candidate.run.span_id(candidate.id) == span_id:
                    return candidate
        return span

    def _warn_of_late_payload(self, schema_name: str) -> None:
        if schema_name not in self._warned_of_late_payload:
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
        if (payload is None and not span.result) or self._home.is_left:
            return UNSET
        result = span.result
        if payload is not None:
            result = dict(result)
            merge(result, payload)
        return self._capture.result(result) if result else UNSET

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
        if self._home.is_left:
            return  # of the process that was forked from: its span, and its to end
        # What only the span still holds ends after the lock: that may run the code of others too.
        _held = span.payload, span.result, span.context
        self._home.step(self._advance, span, goal, at, began, result)
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
        if span.ended:
            return  # another thread was faster
        late = span.context and span.context.from_result
        if late and result is not UNSET and span.status is SpanStatus.PENDING:
            # Before it is told: after that the API takes no payload.
            span.captured = self._capture.with_fields(span.captured, result, late)
        if began is not None:
            self._operations.advance(span, SpanStatus.ACTIVE, began)
        self._operations.advance(span, goal, at or span.clock.now(), result, at is not None)
        if goal is not SpanStatus.ACTIVE:
            # What an inherited context may still refer to is from now on a small shell.
            span.payload, span.result = {}, {}
            span.parent = span.context = None
            del self._spans[span.id]


def _fields(payload: Mapping[str, object] | Fields | None) -> Mapping[str, object]:
    if payload is None:
        return {}
    return payload if isinstance(payload, Mapping) else fields_of(payload)
