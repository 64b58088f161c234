"""SpanManager: the open spans of a client, and the operations that tell about them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from msgspec import UNSET, Raw, UnsetType

from prefactor_core import identifiers
from prefactor_core.capture import EMPTY, Capture, fields_of, merge, with_fields
from prefactor_core.checks import to_end
from prefactor_core.clock import Clock
from prefactor_core.context_stack import SpanContextStack
from prefactor_core.delivery.identity import Identities, RunIdentity
from prefactor_core.delivery.outbox import Outbox
from prefactor_core.exceptions import (
    ClientNotInitializedError,
    InstanceNotFoundError,
    OperationError,
    PrefactorTerminatedError,
    PrefactorValueError,
    SpanNotFoundError,
)
from prefactor_core.lifecycle import Outcome, SpanStatus, check_outcome
from prefactor_core.log import log
from prefactor_core.managers.span_operations import SpanOperations
from prefactor_core.models import Span
from prefactor_core.open_span import OpenSpan
from prefactor_core.operations import CreateSpan, OperationType
from prefactor_core.schema_registry import SchemaRegistry
from prefactor_core.span_context import SpanContext
from prefactor_core.typed_span import TypedStep, from_result, name_and_payload

_ENDS = {str(status): status for status in SpanStatus}

logger = logging.getLogger("prefactor_core.managers.span")


class SpanManager:
    """Knows every open span by its id, and nothing of those that have ended.

    ``outbox`` takes each operation, in the order in which things happened; ``begin_run`` is
    called before a span is told. Everything here but :meth:`wait_for_place` is a plain
    function, for any thread: recording waits for nothing. What moves a span on holds the lock
    of ``outbox.home``, so that each step is told once and in order; payloads are looked at
    before, since that runs the code of others.
    """

    records = True

    def __init__(
        self,
        outbox: Outbox,
        identities: Identities,
        capture: Capture,
        begin_run: Callable[[CreateSpan, bool], None],
        registry: SchemaRegistry | None = None,
    ) -> None:
        self._outbox = outbox
        self._home = outbox.home
        self._lock = outbox.home.lock
        self._identities = identities
        self._capture = capture
        self._registry = registry
        self._operations = SpanOperations(outbox, begin_run)
        # In the order of entering, so parents stand before their children.
        self._spans: dict[str, OpenSpan] = {}
        self._warned_of_late_payload: set[str] = set()
        self._closed = False

    def run_of(self, instance_id: str) -> RunIdentity:
        """What the API calls the run of this id, which may be one that others registered.

        Raises :class:`InstanceNotFoundError` for what is no id of a run.
        """
        if not identifiers.is_pfid(instance_id):
            raise InstanceNotFoundError(
                f"instance_id {instance_id!r} is not the id of an agent instance (32 characters); "
                "use the id of what create_agent_instance() gave"
            )
        return self._identities.of(instance_id)

    def new_id(self, run: RunIdentity, schema_name: str, span_id: str | None = None) -> str:
        """The id of a span to be: ``span_id`` if it can be one, else a new one.

        Raises :class:`PrefactorValueError` for names and ids that no span can have, and
        :class:`PrefactorTerminatedError` if the run was stopped.
        """
        if run.termination.reason is not None and run.termination.stops_spans:
            raise PrefactorTerminatedError(str(run.termination.reason), run.id)
        if not isinstance(schema_name, str) or not schema_name:
            raise PrefactorValueError(
                f"schema_name must be the name of a span type, got {schema_name!r}"
            )
        if span_id is None:
            return identifiers.generate_related(run.id)
        if not identifiers.is_pfid(span_id):
            raise PrefactorValueError(f"span_id must be a PFID, got {span_id!r}")
        partition = identifiers.partition_of(run.id)
        if identifiers.partition_of(span_id) != partition and run.registered:
            raise PrefactorValueError(
                f"span_id {span_id!r} is not of the partition of instance {run.id!r}"
            )
        return span_id

    @property
    def waits_for_place(self) -> bool:
        """Whether a span of asynchronous code waits while the outbox is full."""
        home = self._home
        return self._outbox.waits_when_full and home.is_here and not home.is_left

    async def wait_for_place(self) -> None:
        """Return when a span may be opened that is sure to be recorded."""
        await self._outbox.wait_for_place()

    def give_place_back(self) -> None:
        """The span that has waited for its place is not opened."""
        self._outbox.give_place_back()

    def context(
        self,
        run: RunIdentity,
        step: str | TypedStep,
        parent_span_id: str | None = None,
        span_id: str | None = None,
        payload: Mapping[str, object] | None = None,
    ) -> SpanContext[Any]:
        """A span in the agent's hands; ``step``: its span type, or parameters that tell it."""
        if isinstance(step, str):
            return SpanContext(self, run, step, parent_span_id, span_id, payload)
        schema_name, payload = name_and_payload(self._registry, step, payload)
        late = from_result(step)
        return SpanContext(self, run, schema_name, parent_span_id, span_id, payload, late)

    def prepare(
        self,
        instance_id: str,
        schema_name: str,
        parent_span_id: str | None = None,
        payload: Mapping[str, object] | None = None,
        span_id: str | None = None,
    ) -> str:
        """Open a span here, as the innermost of this context; nothing is told yet. Its id.

        Without ``parent_span_id`` the parent is the innermost open span of the same
        instance in this context.
        """
        run = self.run_of(instance_id)
        span_id = self.new_id(run, schema_name, span_id)
        return self.open(span_id, run, schema_name, parent_span_id, payload).id

    def open(
        self,
        span_id: str,
        run: RunIdentity,
        schema_name: str,
        parent_span_id: str | None,
        payload: Mapping[str, object] | None,
        has_place: bool = False,
        context: SpanContext[Any] | None = None,
        result: dict[str, object] | None = None,
    ) -> OpenSpan:
        """As :meth:`prepare`, with what :meth:`run_of` and :meth:`new_id` gave; the span itself.

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
                    payload={} if payload is None else payload,
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

    def start(self, span_id: str, payload: Mapping[str, object] | None = None) -> str:
        """The span starts now, with ``payload`` or what it was prepared with. Its id.

        A span that was started already keeps its payload: the API takes none later.
        """
        self.begin(self._find(span_id), payload)
        return span_id

    def begin(
        self,
        span: OpenSpan,
        payload: Mapping[str, object] | None = None,
        at: datetime | None = None,
    ) -> None:
        """As :meth:`start`, of the span itself, now or ``at``; nothing if it has ended."""
        if payload is not None and not self._home.is_left:
            captured = self._capture(payload)
            if span.run.check is not None:
                span.run.check.payload(span.schema_name, captured)
            with self._lock:
                pending = span.status is SpanStatus.PENDING
                if pending:
                    # Swapped: what it was given before ends after the lock.
                    span.payload, payload = payload, span.payload
                    span.captured = captured
            if not pending and fields_of(payload):
                self._warn_of_late_payload(span.schema_name)
        self._move(span, SpanStatus.ACTIVE, at)

    def create(
        self,
        instance_id: str,
        schema_name: str,
        parent_span_id: str | None = None,
        payload: Mapping[str, object] | None = None,
        has_place: bool = False,
    ) -> str:
        """Open and start a span; it stays the innermost of this context until it ends."""
        run = self.run_of(instance_id)
        span_id = self.new_id(run, schema_name)
        self.open(span_id, run, schema_name, parent_span_id, payload, has_place)
        return self.start(span_id)

    def cancel_unstarted(self, span_id: str) -> None:
        """The span is cancelled; if it had not started, as one that never did."""
        self.skip(self._find(span_id))

    def skip(self, span: OpenSpan, at: datetime | None = None) -> None:
        """As :meth:`cancel_unstarted`, of the span itself, now or ``at``; nothing if it has
        ended.

        Raises :class:`PrefactorValueError` if that is before its start.
        """
        if at is not None:
            # It need not have begun: what was skipped may have been so at any time.
            at = to_end("timestamp", at, f"the {span.schema_name!r} span", span.started_at)
        self._move(span, SpanStatus.CANCELLED, at, result=self._result(span))

    def finish(
        self,
        span_id: str,
        result_payload: Mapping[str, object] | None = None,
        status: Outcome = "complete",
        *,
        timestamp: datetime | None = None,
    ) -> None:
        """The span ends now, or at ``timestamp``, with ``result_payload`` merged into its result.

        One that was not started has begun with its entering. Raises
        :class:`PrefactorValueError` for a time that is naive, or before that.
        """
        check_outcome(status)
        self.end(self._find(span_id), result_payload, status, timestamp)

    def end(
        self,
        span: OpenSpan,
        result_payload: object,
        status: Outcome,
        at: datetime | None = None,
    ) -> None:
        """As :meth:`finish`, of the span itself; nothing if it has ended."""
        if at is not None:
            start = span.started_at or span.created_at
            at = to_end("timestamp", at, f"the {span.schema_name!r} span", start)
        result = self._result(span, result_payload)
        check, has_payload = span.run.check, bool(span.payload)
        self._end(span, status, result, at)
        if check is not None and status == "complete" and not self._home.is_left:
            # What the agent did is recorded by now, whatever this raises.
            if not has_payload:
                check.payload(span.schema_name, EMPTY)
            check.result(span.schema_name, EMPTY if isinstance(result, UnsetType) else result)

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

    def update_payload(self, span_id: str, payload: Mapping[str, object]) -> None:
        """Merge into the payload that the span will start with.

        Raises :class:`OperationError` once it has started: the API has no call for that.
        """
        span = self._find(span_id)
        if span.status is not SpanStatus.PENDING:
            raise OperationError(
                f"span {span_id!r} has started, and the API changes no payload after that; "
                "put what came later into the result",
                OperationType.UPDATE_SPAN_PAYLOAD,
            )
        merged = fields_of(span.payload)
        merge(merged, payload)
        span.payload, span.captured = merged, self._capture(merged)

    def get_span(self, span_id: str) -> Span:
        """The open span of this id. Raises :class:`SpanNotFoundError` if there is none."""
        return self._find(span_id)

    def _lookup(self, span_id: str) -> OpenSpan | None:
        span = self._spans.get(span_id)
        if span is None:
            # What the API calls a span may differ from what it is recorded as.
            for candidate in list(self._spans.values()):
                if candidate.run.span_id(candidate.id) == span_id:
                    return candidate
        return span

    def _find(self, span_id: str) -> OpenSpan:
        span = self._lookup(span_id)
        if span is None:
            raise SpanNotFoundError(
                f"no open span has the id {span_id!r}: it has ended, or is not of this client"
            )
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
        context = span.context
        if context and context.from_result and result is not UNSET:
            # Before it is told: after that the API takes no payload.
            span.captured = with_fields(span.captured, result, context.from_result)
        if began is not None:
            self._operations.advance(span, SpanStatus.ACTIVE, began)
        self._operations.advance(span, goal, at or span.clock.now(), result, at is not None)
        if goal is not SpanStatus.ACTIVE:
            # What an inherited context may still refer to is from now on a small shell.
            span.payload, span.result = {}, {}
            span.parent = span.context = None
            del self._spans[span.id]
