"""SpanContext: one span, in the agent's hands."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import datetime
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self

import anyio.lowlevel

from prefactor_core.context_stack import OURS, SpanContextStack
from prefactor_core.context_stack.generator_frames import (
    ENTER_ASYNC_CONTEXT,
    ENTER_CONTEXT,
    GENERATOR,
    holder_of,
)
from prefactor_core.exceptions import PrefactorCoreError, PrefactorValueError
from prefactor_core.exceptions.checks import to_time
from prefactor_core.exceptions.outcome import outcome_of
from prefactor_core.export.identity import RunIdentity
from prefactor_core.models.clock import to_datetime
from prefactor_core.models.lifecycle import OPEN, Outcome, SpanStatus
from prefactor_core.operations.identifiers import generate_related
from prefactor_core.payloads.capture import Capture
from prefactor_core.payloads.error_description import describe_error
from prefactor_core.recording.recorder import Recorder
from prefactor_core.recording.span_record import SpanRecord, new_span_id
from prefactor_core.schema_registry.type_schema import Fields
from prefactor_core.schema_registry.typed_span import TypedStep, from_result, name_and_params

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    Result = TypeVar("Result", default=Mapping[str, object], contravariant=True)
else:
    from typing import TypeVar

    Result = TypeVar("Result", contravariant=True)


class SpanContext(SpanRecord, Generic[Result]):
    """One step of a run: an LLM call, a tool call, a retrieval.

    ``async with instance.span("agent:llm") as span:`` or, in synchronous code, ``with``. The
    span is open from the entering of the block; spans that are opened inside it become its
    children. It ends with the block: ``complete``, ``failed`` with the error as result if the
    block raises, ``cancelled`` if it is cancelled. Whatever the block raises goes on as it is.

    In between, :meth:`start` tells when the work begins and with which payload (without it,
    the payload given to ``span()`` and the time of entering count), and :meth:`complete`,
    :meth:`fail` and :meth:`cancel` end the span early. The first end counts; what comes later
    changes nothing. No method waits for the API or raises because of it. ``start_nowait()``,
    ``complete_nowait()``, ``fail_nowait()`` and ``cancel_nowait()`` only record, for synchronous
    code. The ``async`` methods record, and then give the event loop a turn if they have given it
    none for a millisecond: other tasks run, and a cancellation arrives, also in a loop of nothing
    but such calls.

    ``SpanContext[Answer]``, the span of a type with classes, results in an ``Answer``: an object
    whose fields are those of the result. Any other span results in a mapping.

    What happened at another time than now says when: ``started_at=`` and ``timestamp=`` are
    aware datetimes. A :class:`~prefactor_core.PrefactorValueError` is raised, and nothing
    recorded, for one that is naive, and for an end before the span's start.
    """

    # Set by new_span().
    recorder: Recorder
    instance: object
    was_entered = False
    is_detached = False

    @property
    def id(self) -> str:
        """The span's id, a PFID.

        It is final, unless the run could not be registered yet (then it gets the account's
        partition as soon as that is known) or the API makes all ids itself (then it is the
        API's as soon as the span has arrived there).
        """
        return self.run.span_id(self.recorded_id)

    async def start(
        self,
        payload: Mapping[str, object] | Fields | None = None,
        *,
        started_at: datetime | None = None,
    ) -> None:
        """The work begins now, or began at ``started_at``, with ``payload`` as its parameters.

        Ancestors that have not started are started first, as of their entering. A second
        call does nothing.
        """
        self.start_nowait(payload, started_at=started_at)
        if self.recorder.event_loop.is_turn_due():
            await anyio.lowlevel.checkpoint()

    def start_nowait(
        self,
        payload: Mapping[str, object] | Fields | None = None,
        *,
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
                self._let_go()
            raise

    def set_result(self, data: Result) -> None:
        """Merge into the result that the span will end with; later keys win."""
        result = self.result
        if result is None:
            return  # it has ended
        fields: object = data
        if type(fields) is dict:
            try:
                result |= fields  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
                return
            except Exception:
                pass  # keys that raise when they are compared
        self.recorder.capture.merge(result, data)

    async def complete(
        self, result: Result | None = None, *, timestamp: datetime | None = None
    ) -> None:
        """The span ends now, or ended at ``timestamp``, complete; ``result`` is merged into its
        result."""
        self._end("complete", result, timestamp)
        if self.recorder.event_loop.is_turn_due():
            await anyio.lowlevel.checkpoint()

    def complete_nowait(
        self, result: Result | None = None, *, timestamp: datetime | None = None
    ) -> None:
        """As :meth:`complete`, in synchronous code."""
        self._end("complete", result, timestamp)

    async def fail(
        self,
        result: Result | Mapping[str, object] | None = None,
        *,
        timestamp: datetime | None = None,
    ) -> None:
        """The span ends now, or ended at ``timestamp``, failed; ``result`` is merged into its
        result."""
        self._end("failed", result, timestamp)
        if self.recorder.event_loop.is_turn_due():
            await anyio.lowlevel.checkpoint()

    def fail_nowait(
        self,
        result: Result | Mapping[str, object] | None = None,
        *,
        timestamp: datetime | None = None,
    ) -> None:
        """As :meth:`fail`, in synchronous code."""
        self._end("failed", result, timestamp)

    async def cancel(self, *, timestamp: datetime | None = None) -> None:
        """The span ends now, or ended at ``timestamp``, cancelled.

        Before :meth:`start` this records a step that was skipped: it never began (the API takes
        it from ``pending`` to ``cancelled``).
        """
        self.cancel_nowait(timestamp=timestamp)
        if self.recorder.event_loop.is_turn_due():
            await anyio.lowlevel.checkpoint()

    def cancel_nowait(self, *, timestamp: datetime | None = None) -> None:
        """As :meth:`cancel`, in synchronous code."""
        at = None if timestamp is None else to_time("timestamp", timestamp)
        if not self.serial:
            self.recorder.open(self, detached=self.is_detached)
        if self.status in OPEN:
            self.recorder.skip(self, at)

    async def finish(self, *, timestamp: datetime | None = None) -> None:
        """The span ends now, or ended at ``timestamp``, complete unless it has ended otherwise."""
        await self.complete(timestamp=timestamp)

    def detached(self) -> Self:
        """The same span, not the innermost one in its block: nothing becomes its child by being
        opened there, and :func:`~prefactor_core.current_span` does not give it.

        ``with instance.span("agent:llm").detached() as span:``; children name it, by
        ``parent_span_id=span.id``. For generators where it cannot be told whose turn it is: see
        "Spans" in the README. To be called before it is entered.
        """
        self.is_detached = True
        return self

    def __enter__(self, frame: FrameType | None = None) -> Self:
        if self.was_entered:
            raise PrefactorCoreError(
                f"the {self.schema_name!r} span was entered before: call span() again for another"
            )
        self.was_entered = True
        try:
            if not self.serial:
                # Whose block is it? That of the caller, or of a generator that runs through it.
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
            self._let_go()
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
            # There was no stack or memory left to look at it: no reason to trouble the agent.
            self.recorder.unended = self, outcome, None, None, self.recorder.unended
        except BaseException:
            self.recorder.unended = self, outcome, None, None, self.recorder.unended
            raise

    async def __aenter__(self) -> Self:
        if self.recorder.waits_when_full and self._waits_for_place():
            try:
                await self.recorder.buffer.wait_for_place(self)
                return self.__enter__(sys._getframe(1))  # pyright: ignore[reportPrivateUsage]
            except BaseException:
                self._let_go()
                if self.started_at is None:  # else it was recorded in its place
                    self.recorder.buffer.give_place_back(self)
                raise
        try:
            return self.__enter__(sys._getframe(1))  # pyright: ignore[reportPrivateUsage]
        except PrefactorCoreError:
            raise
        except BaseException:
            self._let_go()
            raise

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Asked without a call: an exception from outside would leave the span open here.
        if self.status not in OPEN:
            return
        self.__exit__(exc_type, error, traceback)
        # No checkpoint on the way out of an error: a cancellation that waits there would
        # take the place of the agent's own exception. Nor in a fork, where no loop runs: there
        # the span has not ended.
        has_ended = error is None and self.finished_at is not None
        if has_ended and self.recorder.event_loop.is_turn_due():
            await anyio.lowlevel.checkpoint()  # noqa: ASYNC102

    @property
    def capture(self) -> Capture:
        """Makes JSON of its payload and its result."""
        return self.recorder.capture

    def __repr__(self) -> str:
        status = self.status if self.serial else "not entered"
        return f"<SpanContext {self.schema_name!r} {self.id} {status}>"

    def _waits_for_place(self) -> bool:
        """Whether this has to wait while the buffer is full."""
        loop = self.recorder.event_loop
        return (
            not self.was_entered
            and not self.serial
            and loop.is_here
            and not loop.is_forked
            # The worker that makes a request of ours would wait for itself.
            and OURS not in SpanContextStack.get_stack()
        )

    def _let_go(self) -> None:
        """An exception came in the middle of the opening: nobody will end the span."""
        if self.serial:
            if self.status is SpanStatus.PENDING:
                self.status = SpanStatus.CANCELLED  # nothing of it was recorded, or will be
            self.recorder.unended = self, "cancelled", None, None, self.recorder.unended

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
                    self._let_go()
                raise


def new_span(
    recorder: Recorder,
    run: RunIdentity,
    step: str | TypedStep,
    parent_span_id: str | None = None,
    span_id: str | None = None,
    payload: Mapping[str, object] | Fields | None = None,
    instance: object = None,
) -> SpanContext[Any]:
    """A span of ``run`` that is not open yet.

    ``step``: its span type, or parameters that tell it. ``span_id``: an id of the caller's own.
    ``instance``: the run in the agent's hands, if that makes it.
    Raises :class:`PrefactorValueError` for names and ids that no span can have, and
    :class:`PrefactorTerminatedError` if the run was stopped.
    """
    late: tuple[str, ...] = ()
    if type(step) is str and step in recorder.names:
        name = step
    elif isinstance(step, str):
        name = recorder.name(step)
    else:
        name, params = name_and_params(recorder.registry, step, payload)
        name = recorder.name(name)
        payload = recorder.capture.fields_of(params)
        late = from_result(step)
    if span_id is not None or run.termination.reason is not None:
        span_id = new_span_id(run, span_id)
    else:
        span_id = generate_related(run.id)
    span: SpanContext[Any] = SpanContext(run, span_id, name, parent_span_id, payload, late)
    span.recorder, span.instance = recorder, instance
    return span


async def start_by_id(span: SpanContext[Any], started_at: datetime | None) -> str:
    """Start a span that is ended by its id, which this gives. It is the innermost one of this
    context until then."""
    at = None if started_at is None else to_time("started_at", started_at)
    if span.recorder.records:  # else nobody would leave it
        await span.__aenter__()
    try:
        if span.recorder.records:
            span.recorder.start(span, None, at)
        if span.recorder.event_loop.is_turn_due():
            await anyio.lowlevel.checkpoint()
        return span.id
    except BaseException:
        # Cancelled: nobody will get the id, so nobody could end the span.
        span.cancel_nowait()
        raise


def start_by_id_nowait(span: SpanContext[Any], started_at: datetime | None) -> str:
    """As :func:`start_by_id`, in synchronous code."""
    try:
        span.start_nowait(started_at=started_at)
        return span.id
    except BaseException:
        if span.is_open:
            # Nobody will get the id, so nobody could end the span.
            span.cancel_nowait()
        raise
