"""Recorder: the open spans of a client, and the operations that their steps become."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Final, TypeAlias

from msgspec import UNSET, Raw, UnsetType

from prefactor_core.context_stack import OURS, SpanContextStack
from prefactor_core.exceptions import (
    ClientNotInitializedError,
    PrefactorValueError,
    in_message,
)
from prefactor_core.exceptions.checks import check_end
from prefactor_core.exceptions.live import Live
from prefactor_core.exceptions.log import log
from prefactor_core.export.buffer import Buffer
from prefactor_core.export.identity import Identities
from prefactor_core.models.lifecycle import OPEN, Outcome, SpanStatus
from prefactor_core.operations.identifiers import is_pfid
from prefactor_core.payloads.capture import EMPTY, Capture, fields_of, truncated
from prefactor_core.payloads.markers import utf8
from prefactor_core.recording.span_index import SpanIndex
from prefactor_core.recording.span_record import SpanRecord
from prefactor_core.recording.span_steps import BeginRun, SpanSteps
from prefactor_core.schema_registry import SchemaRegistry
from prefactor_core.schema_registry.type_schema import Fields

_PENDING, _ACTIVE, _CANCELLED = SpanStatus.PENDING, SpanStatus.ACTIVE, SpanStatus.CANCELLED
_ENDS: Final = {str(status): status for status in SpanStatus}
_WARNINGS_KEPT: Final = 1_000
_NAMES_KEPT: Final = 1_000

Unended: TypeAlias = tuple[SpanRecord, Outcome, object, int | None, "Unended | None"]
"""A span whose end was interrupted: its outcome, result and time, and the one before it."""

logger = logging.getLogger("prefactor_core.recording")


class Recorder(Live):
    """Opens spans and moves them on. It keeps nothing of a span that has ended.

    Every method is a plain function, for any thread, and waits for nothing. A step of a span is
    one critical section under the lock of ``buffer.event_loop``: one transition, and at most one
    operation into ``buffer``. Payloads are captured before the lock is taken, because that runs
    code of the agent. ``begin_run`` is called before the first span of a run is recorded.
    ``registry``: the span types of classes. ``records``: False where everything is switched off.

    An exception from outside may interrupt any method anywhere: a signal handler raises, or there
    is no stack or memory left. A step is whole then, or did not happen. A span whose opening was
    interrupted was never there; a span whose end was interrupted stands in ``unended``, and the
    next call ends it.
    """

    _what = "what a client in this process knows of its open spans"

    def __init__(
        self,
        buffer: Buffer,
        identities: Identities,
        capture: Capture,
        begin_run: BeginRun,
        registry: SchemaRegistry | None = None,
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
        self._identities = identities
        self.index = SpanIndex(identities)
        self._steps = SpanSteps(buffer, self.index, capture, begin_run)
        self.closed = False
        # Names of span types that were checked. The first ones only: there may be any number.
        self.names: set[str] = set()
        # Whether a span is reported as active at its opening; and what wakes the reporter of long
        # spans, while it sleeps. Set by LongSpans.
        self.reports_at_once = False
        self.reporter: Callable[[], object] | None = None
        # Added to by one statement, and by nothing that might be interrupted as well.
        self.unended: Unended | None = None
        self._warned_of_late_payload: set[str] = set()

    def check_open(self) -> None:
        """Raises :class:`ClientScopeError` in a fork, and :class:`ClientNotInitializedError` if
        the client has closed."""
        self.event_loop.check_process()
        if self.closed:
            raise ClientNotInitializedError(
                "the client is not open, or closed already: use it inside "
                "'async with open_prefactor(...) as client:', or between initialize() and close()"
            )

    def name(self, schema_name: str) -> str:
        """The name of a span type as plain text: JSON is written of nothing else.

        Raises :class:`PrefactorValueError` for what is no name.
        """
        if not isinstance(schema_name, str) or not schema_name:
            raise PrefactorValueError(
                f"schema_name must be the name of a span type, got {in_message(schema_name)}"
            )
        name = utf8(str.__str__(schema_name))
        if name == schema_name and len(self.names) < _NAMES_KEPT:
            self.names.add(name)
        return name

    def open(
        self, span: SpanRecord, holder: FrameType | None = None, *, detached: bool = False
    ) -> None:
        """Open a span here, as the innermost of this context; nothing is recorded yet.

        Its parent is the one that it names, or the innermost open span of the same run in this
        context. Its payload is captured now: later changes of it do not matter. Several threads
        may do this; one of them opens it. ``holder``: the frame of the generator that holds the
        span open. ``detached``: not as the innermost.
        """
        if self.unended is not None:
            self.end_unended()
        payload = span.payload
        captured, held = EMPTY, 0
        if payload is not None and not span.serial:
            captured = self.capture(payload)
            held = len(captured)
            if span.run.check is not None:
                span.run.check.payload(span.schema_name, captured)
        if self._loop.is_forked:
            self._loop.check_process()
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
                held_bytes = counters.taken_bytes - counters.completed_bytes + counters.open_bytes
                if held and not span.has_place and held_bytes >= self.buffer.max_bytes:
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
                    parent = innermost
                if parent is None:
                    pass
                elif isinstance(parent, SpanRecord):
                    span.parent, span.parent_span_id = parent, parent.recorded_id
                    # The run of another client, too, has one clock here.
                    span.run = run = parent.run
                    if parent.unrecorded:
                        span.unrecorded = span.dropped = True
                elif parent is OURS:
                    span.unrecorded = span.dropped = True
                elif is_pfid(parent):
                    # Pushed by hand. The API would refuse the span for what is no id.
                    span.parent_span_id = str.__str__(parent)
                if span.parent is None and run.recorded_id not in self._identities.runs:
                    span.run = run = self._identities.keep(run)
                span.instance_id = run.recorded_id
                span.late = run.termination.ending
                # As Clock.now() does it, without its call.
                clock = run.clock
                now = clock.read()
                if now < clock.last or clock.is_carried_on:
                    now = clock.carried_on(now)
                span.created_at = clock.last = now
                if not run.registered or run.id != run.recorded_id:
                    index.may_get_another_id(span)
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
            if self.reporter is not None:
                self.wake_reporter()
            if self.reports_at_once and not span.waits_for_result:
                self.report(span)
        except BaseException:
            if opens:
                if span.status is _PENDING:
                    # Passed over from now on, wherever it is referred to already.
                    span.status = _CANCELLED
                self.unended = (span, "cancelled", None, None, self.unended)
            raise

    def start(
        self,
        span: SpanRecord,
        payload: Mapping[str, object] | Fields | None = None,
        at: int | None = None,
    ) -> None:
        """The span starts, now or ``at``; nothing if it has ended. ``payload``: None to start with
        the one that it was opened with. A payload that comes after the start is not recorded."""
        if self.unended is not None:
            self.end_unended()
        if self._loop.is_forked:
            return  # the span belongs to the process that this one was forked from
        if payload is not None:
            captured = self.capture(payload)
            if span.run.check is not None:
                span.run.check.payload(span.schema_name, captured)
            if not self.keep_payload(span, payload, captured) and fields_of(payload):
                self._warn_of_late_payload(span.schema_name)
        self._loop.step(self._steps.advance, span, _ACTIVE, at, None, UNSET, 0)

    def report(self, span: SpanRecord) -> None:
        """The create of a span is recorded, as of its opening, unless that has been done."""
        self._loop.step(self._steps.advance, span, _ACTIVE, span.created_at, None, UNSET, 0)

    def wake_reporter(self) -> None:
        """A span was opened, or there will be no more, while the reporter of long spans slept."""
        with self._lock:  # the reporter sets another one when it is awake
            if self.reporter is not None:
                self._loop.run_soon(self.reporter)
                # Only now: an interruption of the above must not leave it asleep.
                self.reporter = None

    def keep_payload(
        self, span: SpanRecord, payload: Mapping[str, object] | Fields, captured: Raw
    ) -> bool:
        """The span shall start with another payload; False if it has started."""
        size = len(captured)
        before = span.payload  # a __del__ of the agent's may run when it goes: after the lock
        with self._lock:
            if span.status is not _PENDING:
                return False
            others = self._counters.held_bytes - span.held
            if others >= self.buffer.max_bytes and not span.has_place:
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
        """The span is cancelled, now or ``at``: as one that never began, if it has not started.
        Nothing if it has ended.

        Raises :class:`PrefactorValueError` if that is before its start.
        """
        if at is not None:
            # A span that never began may have been skipped at any time.
            self._check_end(span, at, span.started_at)
        if self.unended is not None:
            self.end_unended()
        if self._loop.is_forked:
            return
        try:
            result = self.captured_result(span)
            self._end(span, _CANCELLED, at, None, result)
        except BaseException:
            self.unended = (span, "cancelled", None, at, self.unended)
            raise

    def end(
        self, span: SpanRecord, outcome: Outcome, data: object = None, at: int | None = None
    ) -> None:
        """The span ends, now or ``at``, with ``data`` merged into its result. Nothing if it has
        ended. A span that was not started has begun with its opening.

        Raises :class:`PrefactorValueError` for an end before its start.
        """
        if at is not None:
            self._check_end(span, at, span.started_at or span.created_at)
        if self.unended is not None:
            self.end_unended()
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
            # As end_as() does it, without its calls.
            began = span.created_at if outcome == "cancelled" else None
            _kept = payload, so_far
            size = 0 if result is UNSET else len(result)
            self._loop.step(self._steps.advance, span, _ENDS[outcome], at, began, result, size)
            SpanContextStack.remove(span)
        except BaseException:
            self.unended = (span, outcome, data, at, self.unended)
            raise
        if check is not None and outcome == "complete":
            # The span is recorded by now, whatever this raises.
            if payload is None or not fields_of(payload):  # not bool(), which may be user code
                check.payload(span.schema_name, EMPTY)
            if not isinstance(result, UnsetType):
                check.result(span.schema_name, result)

    def captured_result(self, span: SpanRecord, data: object = None) -> Raw | UnsetType:
        """The JSON of what the span would end with now: ``data`` merged into its result.

        Captured before the lock is taken. ``data`` is merged into a copy: of several threads that
        end a span only one counts.
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

    def end_as(
        self,
        span: SpanRecord,
        outcome: Outcome,
        at: int | None,
        result: Raw | UnsetType,
    ) -> None:
        """The span ends with a result that was captured before."""
        # A cancelled span has begun, too: without this it would be one that never did.
        began = span.created_at if outcome == "cancelled" else None
        self._end(span, _ENDS[outcome], at, began, result)

    def _end(
        self,
        span: SpanRecord,
        status: SpanStatus,
        at: int | None,
        began: int | None,
        result: Raw | UnsetType,
    ) -> None:
        # Kept until the lock is released: a __del__ of the agent's may run when they go.
        _kept = span.payload, span.result
        self._loop.step(
            self._steps.advance,
            span,
            status,
            at,
            began,
            result,
            0 if result is UNSET else len(result),
        )
        SpanContextStack.remove(span)

    def end_unended(self) -> None:
        """End the spans whose end or opening was interrupted."""
        while not self._loop.is_forked and (first := self.unended) is not None:
            span, outcome, data, at, self.unended = first
            try:
                self.end_as(span, outcome, at, self.captured_result(span, data))
            except (RecursionError, MemoryError):
                self.unended = (span, outcome, data, at, self.unended)
                return  # another time: what was called for may still succeed
            except BaseException:
                self.unended = (span, outcome, data, at, self.unended)
                raise

    def _check_end(self, span: SpanRecord, at: int, start: int | None) -> None:
        # Where the wall clock was set back, the start may be ahead of it: the end is the start
        # then.
        start = None if span.run.clock.is_ahead else start
        check_end("timestamp", at, f"the {span.schema_name!r} span", start)

    def _warn_of_late_payload(self, schema_name: str) -> None:
        warned = self._warned_of_late_payload
        if schema_name not in warned and len(warned) < _WARNINGS_KEPT:
            warned.add(schema_name)
            log(
                logger,
                logging.WARNING,
                "a %r span was already started, by its start() or by that of a child, or "
                "reported because it was open for report_after seconds: its later payload is not "
                "recorded. Give it to span(payload=...) instead",
                schema_name,
            )
