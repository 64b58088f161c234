"""Recorder: opens, starts and ends the spans of a client, and records them as operations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import FrameType
from typing import Final, TypeAlias

from msgspec import UNSET, Raw, UnsetType

from prefactor_core.context_stack import OWN_REQUEST, SpanContextStack
from prefactor_core.context_stack.finders import finders, found_in, remove_finders
from prefactor_core.exceptions import ClientNotInitializedError, PrefactorValueError, in_message
from prefactor_core.exceptions.checks import check_end
from prefactor_core.exceptions.uncopyable import Uncopyable
from prefactor_core.export.buffer import Buffer
from prefactor_core.export.identity import Identities
from prefactor_core.models.lifecycle import OPEN, Outcome, SpanStatus
from prefactor_core.operations.identifiers import is_pfid
from prefactor_core.payloads.capture import EMPTY, Capture, fields_of, truncated
from prefactor_core.payloads.markers import utf8
from prefactor_core.recording.late_payloads import LatePayloads
from prefactor_core.recording.span_index import SpanIndex
from prefactor_core.recording.span_record import SpanRecord, deeper, refresh_pending
from prefactor_core.recording.span_steps import BeginRun, SpanSteps
from prefactor_core.schema_registry import SchemaRegistry
from prefactor_core.schema_registry.type_schema import Fields

_PENDING, _ACTIVE, _CANCELLED = SpanStatus.PENDING, SpanStatus.ACTIVE, SpanStatus.CANCELLED
_ENDS: Final = {str(status): status for status in SpanStatus}
_KEPT: Final = 1_000

Interrupted: TypeAlias = tuple[SpanRecord, Outcome, object, int | None, "Interrupted | None"]
"""A span whose end was interrupted, with its outcome, result and time, and the entry before it."""


class Recorder(Uncopyable):
    """Opens, starts and ends spans. It keeps nothing of a span that has ended.

    Every method is synchronous, waits for nothing, and may be called in any thread. Each step of
    a span is one critical section under the lock of ``buffer.event_loop``: one transition, and at
    most one operation into ``buffer`` (two to cancel a pending span; and the creates of pending
    ancestors). Payloads are captured before the lock is acquired, because that runs code of the
    agent.
    ``begin_run`` is called before the first span of a run is recorded. ``registry``: the span types
    of classes. ``records``: False if the client is disabled.

    An exception from outside may interrupt any method anywhere: a signal handler raises, or the
    stack or the memory is exhausted. The step has happened then as a whole, or not at all.
    A span whose opening was interrupted is not recorded, or ends as cancelled if its create is. A
    span whose end was interrupted is added to ``interrupted``, and the next call ends it.
    """

    _kind = "the record of a client's open spans in this process"

    def __init__(
        self,
        buffer: Buffer,
        identities: Identities,
        capture: Capture,
        begin_run: BeginRun,
        registry: SchemaRegistry,
        *,
        records: bool = True,
    ) -> None:
        self.records = records
        self.registry = registry
        self.buffer = buffer
        self.capture = capture
        self._capture_result = capture if capture.enabled else capture.result
        self.waits_when_full = buffer.waits_when_full
        self.event_loop = self._loop = buffer.event_loop
        self._lock = self._loop.lock
        self._counters = buffer.counters
        self._journal, self._has_journal = buffer.journal, buffer.journal.is_on
        self._identities = identities
        self.index = SpanIndex(identities)
        self._steps = SpanSteps(buffer, self.index, capture, begin_run)
        self.closed = False
        # The checked names of span types. Only the first ones: there may be any number.
        self.names: set[str] = set()
        # Set by LongSpans: whether a span is reported as active at its opening; and the function
        # that wakes LongSpans, while it sleeps.
        self.reports_at_once = False
        self.reporter: Callable[[], object] | None = None
        # Each addition is one statement: a call could be interrupted as well.
        self.interrupted: Interrupted | None = None
        self._late_payloads = LatePayloads()

    def check_open(self) -> None:
        """Raise ``ClientScopeError`` in a fork, :class:`ClientNotInitializedError` if closed."""
        self.event_loop.check_process()
        if self.closed:
            raise ClientNotInitializedError(
                "the client is not open, or closed already: record inside of its block, or before "
                "its close()"
            )

    def name(self, schema_name: str) -> str:
        """The name of a span type as a plain ``str``: msgspec encodes no subclass.

        Raises :class:`PrefactorValueError` for an invalid name.
        """
        if not isinstance(schema_name, str) or not schema_name:
            raise PrefactorValueError(
                f"schema_name must be the name of a span type, got {in_message(schema_name)}"
            )
        name = utf8(str.__str__(schema_name))
        if name == schema_name and len(self.names) < _KEPT:
            self.names.add(name)
        return name

    def open(
        self, span: SpanRecord, holder: FrameType | None = None, *, detached: bool = False
    ) -> None:
        """Open a span locally, as the innermost of this context. Nothing is recorded yet.

        Its parent is ``parent_span_id`` if given, else the innermost open span of the same run in
        this context, or the current one of another library if that is deeper. Its payload is
        captured now, so later changes of it do not matter. The first of several threads opens it.
        ``holder``: the frame of the generator that holds it open. ``detached``: not as innermost.
        """
        if self.interrupted is not None:
            self.end_interrupted()
        payload = span.payload
        captured, held = EMPTY, 0
        if payload is not None and not span.serial:
            captured = self.capture(payload)
            held = len(captured)
            if span.run.check is not None:
                span.run.check.payload(span.schema_name, captured)
        if self._loop.is_forked:
            self._loop.check_process()
        found = found_in(span.run.recorded_id) if finders and span.parent_span_id is None else None
        opens = False
        try:
            with self._lock:
                if span.serial or span.status not in OPEN:
                    if span.status in OPEN and not detached:
                        SpanContextStack.enter(span, holder)
                    return
                if self.closed:
                    raise ClientNotInitializedError(
                        f"the {span.schema_name!r} span was made by a client that has closed since"
                    )
                index, counters, run = self.index, self._counters, span.run
                span_id = span.recorded_id
                if span_id in index.spans:
                    raise PrefactorValueError(f"span_id {span_id!r} belongs to a span that is open")
                held_bytes = counters.queued_bytes - counters.completed_bytes + counters.open_bytes
                if held and not span.has_slot and held_bytes >= self.buffer.max_bytes:
                    captured = truncated(held)
                    held = len(captured)
                named = span.parent_span_id is not None
                parent: object = self._steps.named_parent(span) if named else None
                opens = True
                if not detached:
                    innermost = SpanContextStack.enter(span, holder)
                else:
                    innermost = SpanContextStack.innermost(run.recorded_id)
                if not named:
                    parent = innermost if found is None else deeper(innermost, found)
                if parent is None:
                    pass
                elif isinstance(parent, SpanRecord):
                    span.parent, span.parent_span_id = parent, parent.recorded_id
                    # A run that another client registered has one clock here, too.
                    span.run = run = parent.run
                    if parent.dropped:  # its parent is the nearest recorded ancestor
                        span.parent_span_id = parent.parent_span_id
                        span.unrecorded = span.dropped = parent.unrecorded
                elif parent is OWN_REQUEST:
                    span.unrecorded = span.dropped = True
                elif is_pfid(parent):
                    # Pushed by hand. The API would refuse a span whose parent is no PFID.
                    span.parent_span_id = str.__str__(parent)
                if run.cause is not None:
                    captured = span.with_cause(captured)
                    held = len(captured)
                if span.parent is None and run.recorded_id not in self._identities.runs:
                    span.run = run = self._identities.keep(run)
                span.instance_id = run.recorded_id
                span.run_was_ending = run.termination.ending
                # Clock.now(), without the call.
                clock = run.clock
                now = clock.read()
                if now < clock.last or clock.is_carried_on:
                    now = clock.carried_on(now)
                span.created_at = clock.last = now
                if not run.registered or run.id != run.recorded_id:
                    index.may_get_another_id(span)
                if self._has_journal and not span.dropped:
                    name, parent_id, run_id = span.schema_name, span.parent_span_id, run.recorded_id
                    self._journal.opened(span_id, run_id, name, parent_id, now, captured)
                of_run: dict[str, SpanRecord] = {}
                # From here on there is no call and no new container, so that neither an exception
                # nor a finaliser comes in between.
                if run.recorded_id in index.by_run:
                    of_run = index.by_run[run.recorded_id]
                else:
                    index.by_run[run.recorded_id] = of_run
                index.opened += 1
                index.spans[span_id] = index.unreported[span_id] = of_run[span_id] = span
                span.serial = index.opened
                span.captured = captured
                span.held = held
                counters.open_bytes += held
            if found is not None:
                refresh_pending(span.parent)
            if self.reporter is not None:
                self.wake_reporter()
            if self.reports_at_once and not span.waits_for_result:
                self.report(span)
        except BaseException:
            if opens:
                if span.status is _PENDING:
                    # A context that refers to the span already skips it from now on.
                    span.status = _CANCELLED
                self.interrupted = (span, "cancelled", None, None, self.interrupted)
            raise

    def start(
        self,
        span: SpanRecord,
        payload: Mapping[str, object] | Fields | None = None,
        at: int | None = None,
    ) -> None:
        """Start a span, now or ``at``; nothing if it has ended.

        ``payload``: None for the payload of the opening. A payload after the start is not recorded.
        """
        if self.interrupted is not None:
            self.end_interrupted()
        if self._loop.is_forked:
            return  # the span belongs to the parent process
        if payload is not None:
            captured = self.capture(payload)
            if span.run.check is not None:
                span.run.check.payload(span.schema_name, captured)
            if not self.keep_payload(span, payload, captured) and fields_of(payload):
                self._late_payloads.warn(span.schema_name)
        self._loop.step(self._steps.advance, span, _ACTIVE, at, None, UNSET, 0)

    def report(self, span: SpanRecord) -> None:
        """Record the create of a span, with the time of its opening, unless it is recorded."""
        self._loop.step(self._steps.advance, span, _ACTIVE, span.created_at, None, UNSET, 0)

    def wake_reporter(self) -> None:
        """Wake LongSpans if it sleeps: a span was opened, or the client closes."""
        with self._lock:  # LongSpans sets another one when it is awake
            if self.reporter is not None:
                self._loop.run_soon(self.reporter)
                # Last: if the call was interrupted, the next span wakes it.
                self.reporter = None

    def keep_payload(
        self, span: SpanRecord, payload: Mapping[str, object] | Fields, captured: Raw
    ) -> bool:
        """Replace the payload of a span that has not started; False if it has."""
        if span.run.cause is not None:
            captured = span.with_cause(captured)
        size = len(captured)
        before = span.payload  # kept until the lock is released: a user's __del__ may run
        with self._lock:
            if span.status is not _PENDING:
                return False
            others = self._counters.held_bytes - span.held
            if others >= self.buffer.max_bytes and not span.has_slot:
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

    def skip(self, span: SpanRecord, at: int | None = None) -> None:
        """Cancel a span, now or ``at``; nothing if it has ended.

        A span that was not started is recorded as one that never started. Raises
        :class:`PrefactorValueError` for a time before its start.
        """
        if at is not None:
            # A span that never started has no start to compare with.
            self._check_end(span, at, span.started_at)
        if self.interrupted is not None:
            self.end_interrupted()
        if self._loop.is_forked:
            return
        try:
            self.end_as(span, "cancelled", at, self.captured_result(span), has_started=False)
            if self.index.after_end:
                self.index.call_after_end(span)
        except BaseException:
            self.interrupted = (span, "cancelled", None, at, self.interrupted)
            raise

    def end(
        self, span: SpanRecord, outcome: Outcome, data: object = None, at: int | None = None
    ) -> None:
        """End a span, now or ``at``, with ``data`` merged into its result; nothing if it has ended.

        A span that was not started counts as started at its opening. Raises
        :class:`PrefactorValueError` for an end before its start.
        """
        if at is not None:
            self._check_end(span, at, span.started_at or span.created_at)
        if self.interrupted is not None:
            self.end_interrupted()
        if self._loop.is_forked:
            return
        check = span.run.check
        payload = span.payload
        try:
            result: Raw | UnsetType
            so_far = span.result  # read once: another thread may end it
            if data is None and so_far:
                result = self._capture_result(so_far)
            else:
                result = self.captured_result(span, data)
            # end_as(), without the calls.
            began = span.created_at if outcome == "cancelled" else None
            _kept = payload, so_far
            size = 0 if result is UNSET else len(result)
            self._loop.step(self._steps.advance, span, _ENDS[outcome], at, began, result, size)
            SpanContextStack.remove(span)
            if self.index.after_end:
                self.index.call_after_end(span)
        except BaseException:
            self.interrupted = (span, outcome, data, at, self.interrupted)
            raise
        if check is not None and outcome == "complete":
            # After the recording, because a check may raise.
            if payload is None or not fields_of(payload):  # not bool(): it may call user code
                check.payload(span.schema_name, EMPTY)
            if not isinstance(result, UnsetType):
                check.result(span.schema_name, result)

    def captured_result(self, span: SpanRecord, data: object = None) -> Raw | UnsetType:
        """The JSON of the result so far, with ``data`` merged in; UNSET if it is empty.

        Called before the lock is acquired. ``data`` is merged into a copy: if several threads end a
        span, one of them counts.
        """
        result = span.result
        if data is not None:
            result = dict(result or {})
            self.capture.merge(result, data)
        if not result:
            return UNSET
        return self._capture_result(result)

    def close(self) -> None:
        """Open no more spans."""
        with self._lock:
            self.closed = True
        remove_finders(self)

    def end_as(
        self,
        span: SpanRecord,
        outcome: Outcome,
        at: int | None,
        result: Raw | UnsetType,
        *,
        has_started: bool = True,
    ) -> None:
        """End a span with a captured result.

        ``has_started``: False to cancel a pending span as one that never started.
        """
        began = span.created_at if has_started and outcome == "cancelled" else None
        # Keep references until the lock is released: a user's __del__ may run.
        _kept = span.payload, span.result
        size = 0 if result is UNSET else len(result)
        self._loop.step(self._steps.advance, span, _ENDS[outcome], at, began, result, size)
        SpanContextStack.remove(span)

    def end_interrupted(self) -> None:
        """End the spans whose opening or end was interrupted."""
        while not self._loop.is_forked and (first := self.interrupted) is not None:
            span, outcome, data, at, self.interrupted = first
            try:
                self.end_as(span, outcome, at, self.captured_result(span, data))
                # The journal may know of an opening that was interrupted.
                self._loop.step(self._journal.discarded, span.recorded_id, span.parent_span_id)
            except (RecursionError, MemoryError):
                self.interrupted = (span, outcome, data, at, self.interrupted)
                return  # the next call tries again; this one may still succeed
            except BaseException:
                self.interrupted = (span, outcome, data, at, self.interrupted)
                raise

    def _check_end(self, span: SpanRecord, at: int, start: int | None) -> None:
        # If the wall clock was set back, the start may be ahead of it: the span ends at its start.
        start = None if span.run.clock.is_ahead else start
        check_end("timestamp", at, f"the {span.schema_name!r} span", start)
