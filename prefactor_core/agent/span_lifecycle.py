"""SpanLifecycle: the methods that start and end a span by a call, without a block."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Generic, Self

import anyio.lowlevel

from prefactor_core.config.lazy_module import LazyModule
from prefactor_core.exceptions import PrefactorCoreError, PrefactorValueError
from prefactor_core.exceptions.checks import check_outcome, to_time
from prefactor_core.exceptions.outcome import outcome_of
from prefactor_core.models.clock import to_datetime
from prefactor_core.models.lifecycle import OPEN, Outcome, SpanStatus
from prefactor_core.payloads.error_description import describe_error
from prefactor_core.recording.span_record import SpanRecord
from prefactor_core.schema_registry.type_schema import Fields

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    from prefactor_core.recording import recorder as recording

    Result = TypeVar("Result", default=Mapping[str, object], contravariant=True)
else:
    from typing import TypeVar

    recording = LazyModule("prefactor_core.recording.recorder")

    Result = TypeVar("Result", contravariant=True)


class SpanLifecycle(SpanRecord, Generic[Result]):
    """The start and the end of a :class:`~prefactor_core.SpanContext`, by calls."""

    # Set by new_span().
    recorder: recording.Recorder
    was_entered = False
    is_detached = False

    def begin(self) -> Self:
        """Open the span, as entering its block does, for an :meth:`end` elsewhere; return it.

        For callbacks that start here and end there, in any thread or task. The span does not become
        the current one: its children name it by ``parent_span_id=span.id``. Its own parent, unless
        it names one, is the innermost open span of its run in the calling context. It never waits,
        also with ``when_full="wait"``.

        Raises :class:`~prefactor_core.PrefactorCoreError` if the span was begun or entered before.
        """
        if self.was_entered:
            raise self._entered_before()
        self.was_entered = self.is_detached = True
        try:
            self.recorder.open(self, detached=True)
        except BaseException:
            self._cancel_opening()
            raise
        return self

    def end(
        self,
        outcome: Outcome | None = None,
        result: Result | Mapping[str, object] | None = None,
        *,
        error: BaseException | None = None,
        timestamp: datetime | None = None,
    ) -> None:
        """End a span of :meth:`begin`, now or at ``timestamp``, as leaving its block does.

        ``outcome``: ``complete``, ``failed`` or ``cancelled``; by default that of a block which
        ``error`` leaves, ``complete`` without an error. ``result`` is merged into the result.
        ``error``: the exception that ended the step. The result describes it as it does that of a
        block, unless it is a cancellation.

        The first end counts, in any thread; later calls change nothing. Raises
        :class:`~prefactor_core.PrefactorValueError` for another outcome, and for an ``error`` that
        is no exception.
        """
        if outcome is not None:
            check_outcome(outcome, "outcome")
        if error is not None and not isinstance(error, BaseException):
            raise PrefactorValueError(
                f"error must be an exception, got {type(error).__qualname__}: put a text into the "
                "result, as {'error': {'message': text}}"
            )
        if self.status not in OPEN:
            return
        self.is_detached = True  # one that was never begun is opened now
        ended_by: Outcome = "complete" if error is None else outcome_of(error)
        data: object = result
        if error is not None and ended_by == "failed":
            fields: dict[str, object] = {}
            if result is not None:
                self.recorder.capture.merge(fields, result)
            fields["error"] = describe_error(error, to_datetime(self.created_at))
            data = fields
        self._end(outcome or ended_by, data, timestamp)

    async def start(
        self,
        payload: Mapping[str, object] | Fields | None = None,
        started_at: datetime | None = None,
    ) -> None:
        """Start the work, now or at ``started_at``, with ``payload`` as its parameters.

        Reports the span at once, and its ancestors first, with the times of their entering. A
        second call does nothing. Once the span has been reported, a payload that comes only now is
        not recorded, which a warning says.
        """
        self.start_nowait(payload, started_at=started_at)
        if self.recorder.event_loop.is_turn_due():
            await anyio.lowlevel.checkpoint()

    def start_nowait(
        self,
        payload: Mapping[str, object] | Fields | None = None,
        started_at: datetime | None = None,
    ) -> None:
        """As :meth:`start`, in synchronous code."""
        at = None if started_at is None else to_time("started_at", started_at)
        was_open = self.serial
        try:
            if not was_open:
                self.recorder.open(self, detached=self.is_detached)
            if self.status in OPEN:
                self.recorder.start(self, payload, at)
        except BaseException:
            if not was_open:
                self._cancel_opening()
            raise

    async def complete(
        self, result: Result | None = None, timestamp: datetime | None = None
    ) -> None:
        """End the span, now or at ``timestamp``, as complete; ``result`` is merged into its
        result."""
        self._end("complete", result, timestamp)
        if self.recorder.event_loop.is_turn_due():
            await anyio.lowlevel.checkpoint()

    def complete_nowait(
        self, result: Result | None = None, timestamp: datetime | None = None
    ) -> None:
        """As :meth:`complete`, in synchronous code."""
        self._end("complete", result, timestamp)

    async def fail(
        self,
        result: Result | Mapping[str, object] | None = None,
        timestamp: datetime | None = None,
    ) -> None:
        """End the span, now or at ``timestamp``, as failed; ``result`` is merged into its
        result."""
        self._end("failed", result, timestamp)
        if self.recorder.event_loop.is_turn_due():
            await anyio.lowlevel.checkpoint()

    def fail_nowait(
        self,
        result: Result | Mapping[str, object] | None = None,
        timestamp: datetime | None = None,
    ) -> None:
        """As :meth:`fail`, in synchronous code."""
        self._end("failed", result, timestamp)

    async def cancel(self, timestamp: datetime | None = None) -> None:
        """End the span, now or at ``timestamp``, as cancelled.

        Before :meth:`start` this records a skipped step that never started: the API moves it from
        ``pending`` to ``cancelled``.
        """
        self.cancel_nowait(timestamp=timestamp)
        if self.recorder.event_loop.is_turn_due():
            await anyio.lowlevel.checkpoint()

    def cancel_nowait(self, timestamp: datetime | None = None) -> None:
        """As :meth:`cancel`, in synchronous code."""
        at = None if timestamp is None else to_time("timestamp", timestamp)
        if not self.serial:
            self.recorder.open(self, detached=self.is_detached)
        if self.status in OPEN:
            self.recorder.skip(self, at)

    async def finish(self, timestamp: datetime | None = None) -> None:
        """End the span, now or at ``timestamp``, as complete; nothing if it has ended."""
        await self.complete(timestamp=timestamp)

    def _cancel_opening(self) -> None:
        """Cancel a span whose opening was interrupted by an exception: its caller cannot end it."""
        if self.serial:
            if self.status is SpanStatus.PENDING:
                self.status = SpanStatus.CANCELLED  # nothing of it is ever recorded
            self.recorder.interrupted = self, "cancelled", None, None, self.recorder.interrupted

    def _end(self, outcome: Outcome, result: object, timestamp: datetime | None) -> None:
        at = None if timestamp is None else to_time("timestamp", timestamp)
        was_open = self.serial
        if not was_open:
            self.recorder.open(self, detached=self.is_detached)
        if self.status in OPEN:
            try:
                self.recorder.end(self, outcome, result, at)
            except PrefactorValueError:
                if not was_open:
                    self._cancel_opening()
                raise

    def _entered_before(self) -> PrefactorCoreError:
        return PrefactorCoreError(
            f"the {self.schema_name!r} span was entered before: call span() again for another"
        )
