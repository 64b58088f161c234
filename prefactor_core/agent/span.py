"""SpanContext: one span, with the methods for an agent."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import datetime
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

import anyio.lowlevel

from prefactor_core.agent.span_lifecycle import Result, SpanLifecycle
from prefactor_core.config.lazy_module import LazyModule
from prefactor_core.context_stack import OWN_REQUEST, SpanContextStack
from prefactor_core.context_stack.generator_frames import (
    ENTER_ASYNC_CONTEXT,
    ENTER_CONTEXT,
    GENERATOR,
    holder_of,
)
from prefactor_core.exceptions import PrefactorCoreError
from prefactor_core.exceptions.checks import to_time
from prefactor_core.exceptions.outcome import outcome_of
from prefactor_core.export.identity import RunIdentity
from prefactor_core.models.clock import to_datetime
from prefactor_core.models.lifecycle import OPEN, Outcome
from prefactor_core.operations.identifiers import generate_related
from prefactor_core.payloads.capture import Capture
from prefactor_core.payloads.error_description import describe_error
from prefactor_core.recording.span_record import new_span_id
from prefactor_core.schema_registry.type_schema import Fields
from prefactor_core.schema_registry.typed_span import TypedStep, from_result, name_and_params

if TYPE_CHECKING:
    from prefactor_core.recording import recorder as recording
else:
    recording = LazyModule("prefactor_core.recording.recorder")


class SpanContext(SpanLifecycle[Result]):
    """One step of a run: an LLM call, a tool call, a retrieval.

    Use ``async with instance.span("agent:llm") as span:`` or, in synchronous code, ``with``. The
    span is open from the entering of the block; spans that are opened inside it become its
    children. It ends with the block: ``complete``, ``failed`` with the error as result if the block
    raises, ``cancelled`` if it is cancelled. An exception of the block is raised on, unchanged.
    ``span()`` alone records nothing: enter it.

    The result of a failed block has ``error``: its ``type``, ``message`` and ``stacktrace``. So has
    that of every span that the exception leaves: the innermost makes the description, the others
    repeat it.

    Inside the block, :meth:`start` sets the start of the work and its payload (without it, the time
    of entering and the payload given to ``span()`` count). :meth:`complete`, :meth:`fail` and
    :meth:`cancel` end the span early. The first end counts: later calls, and a block that raises
    later, change nothing. No method waits for the API or raises because of it. ``start_nowait()``,
    ``complete_nowait()``, ``fail_nowait()`` and ``cancel_nowait()`` only record, for synchronous
    code. The ``async`` methods record, and yield to the event loop if they have not done so for a
    millisecond. So other tasks run, and a cancellation arrives, even in a loop of only such calls.

    A span is sent when it ends, as one operation, or two if it is cancelled. It is reported
    earlier, as ``active``, its ancestors first, by :meth:`start`, when an operation of a child is
    recorded, or when it is open for longer than ``report_after``
    (:class:`~prefactor_core.QueueConfig`): so Prefactor and the kill switch see the running step.
    The API takes no payload after the create.

    A callback that starts a step which another one ends has no block: :meth:`begin` opens the span
    without making it the current one, and :meth:`end` ends it, in any thread.

    The result of a ``SpanContext[Answer]``, the span of a type with classes, is an ``Answer``: an
    object whose fields are those of the result. The result of any other span is a mapping.

    ``started_at=`` and ``timestamp=`` give another time than now: a datetime with a time zone. One
    without, or an end before the span's start, raises
    :class:`~prefactor_core.PrefactorValueError`, and nothing is recorded.
    """

    # Set by new_span().
    instance: object

    @property
    def id(self) -> str:
        """The span's id, a PFID.

        It is final, with two exceptions: if the run could not be registered yet, it gets the
        account's partition as soon as that is known; if the API makes all ids itself, it becomes
        the API's id as soon as the API has accepted the span.
        """
        return self.run.span_id(self.recorded_id)

    def set_result(self, data: Result) -> None:
        """Merge ``data`` into the result of the span; later keys win."""
        result = self.result
        if result is None:
            return  # it has ended
        fields: object = data
        if type(fields) is dict:
            try:
                result |= fields  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
                return
            except Exception:
                pass  # keys whose comparison raises
        self.recorder.capture.merge(result, data)

    def detached(self) -> Self:
        """Return the same span, which will not be the innermost one in its block: spans opened
        there do not become its children, and :func:`~prefactor_core.current_span` ignores it.

        ``with instance.span("agent:llm").detached() as span:``; children name it with
        ``parent_span_id=span.id``. For generators whose spans cannot be distinguished from those of
        their consumers: ``examples/streaming_generators.py``. Call it before the span is entered.
        """
        self.is_detached = True
        return self

    def __enter__(self, frame: FrameType | None = None) -> Self:
        if self.was_entered:
            raise self._entered_before()
        self.was_entered = True
        try:
            if not self.serial:
                # The block belongs to the caller, or to a generator that the caller runs.
                holder = frame or sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
                code = holder.f_code
                if (
                    code.co_flags & GENERATOR
                    or code is ENTER_CONTEXT
                    or code is ENTER_ASYNC_CONTEXT
                ):
                    self.recorder.open(self, holder_of(holder), detached=self.is_detached)
                else:
                    self.recorder.open(self, None, detached=self.is_detached)
        except BaseException:
            self._cancel_opening()
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.status not in OPEN:
            return
        outcome: Outcome = "complete" if error is None else "cancelled"
        try:
            if not self.serial:  # left without having been entered
                self.recorder.open(self, detached=self.is_detached)
            if error is None:
                self.recorder.end(self, "complete")
                return
            outcome = outcome_of(error)
            if outcome == "failed":
                description = describe_error(error, to_datetime(self.created_at))
                self.recorder.end(self, outcome, {"error": description})
            else:
                self.recorder.end(self, outcome)
        except (RecursionError, MemoryError):
            # The stack or the memory is exhausted: end the span later, and raise nothing.
            if self.serial:
                self.recorder.interrupted = self, outcome, None, None, self.recorder.interrupted
        except BaseException:
            if self.serial:
                self.recorder.interrupted = self, outcome, None, None, self.recorder.interrupted
            raise

    async def __aenter__(self) -> Self:
        if self.recorder.waits_when_full and self._waits_for_slot():
            try:
                await self.recorder.buffer.wait_for_slot(self)
                return self.__enter__(sys._getframe(1))  # pyright: ignore[reportPrivateUsage]
            except BaseException:
                self._cancel_opening()
                if self.started_at is None:  # else its create has taken the slot
                    self.recorder.buffer.release_slot(self)
                raise
        try:
            return self.__enter__(sys._getframe(1))  # pyright: ignore[reportPrivateUsage]
        except PrefactorCoreError:
            raise
        except BaseException:
            self._cancel_opening()
            raise

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Without a call: an exception from outside in it would leave the span open.
        if self.status not in OPEN:
            return
        self.__exit__(exc_type, error, traceback)
        # No checkpoint if an error leaves: a pending cancellation would replace the agent's own
        # exception. Nor in a fork, where no loop runs and the span has not ended.
        has_ended = error is None and self.finished_at is not None
        if has_ended and self.recorder.event_loop.is_turn_due():
            await anyio.lowlevel.checkpoint()  # noqa: ASYNC102

    @property
    def capture(self) -> Capture:
        """The capture of payloads and results as JSON."""
        return self.recorder.capture

    def __repr__(self) -> str:
        status = self.status if self.serial else "not entered"
        return f"<SpanContext {self.schema_name!r} {self.id} {status}>"

    def _waits_for_slot(self) -> bool:
        """Whether entering has to wait while the buffer is full."""
        loop = self.recorder.event_loop
        return (
            not self.was_entered
            and not self.serial
            and loop.is_here
            and not loop.is_forked
            # Not in a request of this library: its worker would wait for itself.
            and OWN_REQUEST not in SpanContextStack.get_stack()
        )


def new_span(
    recorder: recording.Recorder,
    run: RunIdentity,
    step: str | TypedStep,
    parent_span_id: str | None = None,
    span_id: str | None = None,
    payload: Mapping[str, object] | Fields | None = None,
    instance: object = None,
) -> SpanContext[Any]:
    """Return a span of ``run`` that is not open yet.

    ``step``: its span type, or parameters of a class that has one. ``span_id``: the caller's own
    id. ``instance``: the handle of the run, if it makes the span.
    Raises :class:`PrefactorValueError` for invalid names and ids, and
    :class:`PrefactorTerminatedError` if the run was terminated.
    """
    fields_from_result: tuple[str, ...] = ()
    if type(step) is str and step in recorder.names:
        name = step
    elif isinstance(step, str):
        name = recorder.name(step)
    else:
        name, params = name_and_params(recorder.registry, step, payload)
        name = recorder.name(name)
        payload = cast("Fields", params)
        fields_from_result = from_result(step)
    if span_id is not None or run.termination.reason is not None:
        span_id = new_span_id(run, span_id)
    else:
        span_id = generate_related(run.id)
    span: SpanContext[Any] = SpanContext(
        run, span_id, name, parent_span_id, payload, fields_from_result
    )
    span.recorder, span.instance = recorder, instance
    return span


async def start_by_id(span: SpanContext[Any], started_at: datetime | None) -> str:
    """Start a span, and return its id, by which the caller ends it. Until then it is the innermost
    span of this context."""
    at = None if started_at is None else to_time("started_at", started_at)
    if span.recorder.records:  # a disabled span would never be left
        await span.__aenter__()
    try:
        if span.recorder.records:
            span.recorder.start(span, None, at)
        if span.recorder.event_loop.is_turn_due():
            await anyio.lowlevel.checkpoint()
        return span.id
    except BaseException:
        # Cancelled: the caller gets no id and could never end the span.
        span.cancel_nowait()
        raise


def start_by_id_nowait(span: SpanContext[Any], started_at: datetime | None) -> str:
    """As :func:`start_by_id`, in synchronous code."""
    try:
        span.start_nowait(started_at=started_at)
        return span.id
    except BaseException:
        if span.is_open:
            # The caller gets no id and could never end the span.
            span.cancel_nowait()
        raise
