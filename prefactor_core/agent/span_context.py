"""SpanContext: one span, in the agent's hands."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import datetime
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self

import anyio.lowlevel

from prefactor_core.config.lazy_module import LazyModule
from prefactor_core.context_stack.generator_frames import (
    ENTER_ASYNC_CONTEXT,
    ENTER_CONTEXT,
    GENERATOR,
    holder_of,
)
from prefactor_core.exceptions import PrefactorCoreError, PrefactorValueError
from prefactor_core.exceptions.checks import to_time
from prefactor_core.exceptions.live import Live
from prefactor_core.exceptions.outcome import outcome_of
from prefactor_core.models.lifecycle import Outcome, SpanStatus
from prefactor_core.operations.identifiers import generate
from prefactor_core.payloads.capture import Capture
from prefactor_core.payloads.error_description import describe_error
from prefactor_core.schema_registry.type_schema import Fields

if TYPE_CHECKING:
    from prefactor_core import managers
    from prefactor_core.agent.agent_instance import AgentInstanceHandle
    from prefactor_core.export import identity
    from prefactor_core.recording.open_span import OpenSpan
else:
    managers = LazyModule("prefactor_core.managers")
    identity = LazyModule("prefactor_core.export.identity")

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    Result = TypeVar("Result", default=Mapping[str, object], contravariant=True)
else:
    from typing import TypeVar

    Result = TypeVar("Result", contravariant=True)


_PENDING, _ACTIVE = SpanStatus.PENDING, SpanStatus.ACTIVE


class SpanContext(Live, Generic[Result]):
    """One step of a run: an LLM call, a tool call, a retrieval.

    ``async with instance.span("agent:llm") as span:`` or, in synchronous code, ``with``. The
    span is open from the entering of the block; spans that are opened inside it become its
    children. It ends with the block: ``complete``, ``failed`` with the error as result if the
    block raises, ``cancelled`` if it is cancelled. Whatever the block raises goes on as it is.

    In between, :meth:`start` tells when the work begins and with which payload (without it,
    the payload given to ``span()`` and the time of entering count), and :meth:`complete`,
    :meth:`fail` and :meth:`cancel` end the span early. The first end counts; what comes later
    changes nothing. No method waits for the API or raises because of it: the ``async`` ones
    record and then give other tasks a turn, and ``start_nowait()``, ``complete_nowait()``,
    ``fail_nowait()`` and ``cancel_nowait()`` only record, for synchronous code.

    ``SpanContext[Answer]``, the span of a type with classes, results in an ``Answer``: an object
    whose fields are those of the result. Any other span results in a mapping.

    What happened at another time than now says when: ``started_at=`` and ``timestamp=`` are
    aware datetimes. A :class:`~prefactor_core.PrefactorValueError` is raised, and nothing
    recorded, for one that is naive, and for an end before the span's start.
    """

    _what = "a span in this process"

    __slots__ = (
        "_detached",
        "_entered",
        "_has_place",
        "_id",
        "_parent_span_id",
        "_payload",
        "_result",
        "_run",
        "_schema_name",
        "_spans",
        "from_result",
        "instance",
        "opened",
    )

    def __init__(
        self,
        spans: managers.SpanManager,
        run: identity.RunIdentity,
        schema_name: str,
        parent_span_id: str | None = None,
        span_id: str | None = None,
        payload: Mapping[str, object] | Fields | None = None,
        from_result: tuple[str, ...] = (),
    ) -> None:
        self._spans = spans
        self._run = run
        self._id = spans.new_id(run, schema_name, span_id)
        self._schema_name = schema_name
        self._parent_span_id = parent_span_id
        self._payload = payload
        self.from_result = from_result
        # The run in the agent's hands, if it was that one that made this.
        self.instance: AgentInstanceHandle | None = None
        self._result: dict[str, object] = {}
        # The span itself, once it has been opened; set with the lock of recording held.
        self.opened: OpenSpan | None = None
        self._entered = False
        self._has_place = False
        self._detached = False

    @property
    def id(self) -> str:
        """The span's id, a PFID.

        It is final, unless the run could not be registered yet (then it gets the account's
        partition as soon as that is known) or the API makes all ids itself (then it is the
        API's as soon as the span has arrived there).
        """
        return self._run.span_id(self._id)

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
        await anyio.lowlevel.checkpoint()

    def start_nowait(
        self,
        payload: Mapping[str, object] | Fields | None = None,
        *,
        started_at: datetime | None = None,
    ) -> None:
        """As :meth:`start`, in synchronous code."""
        at = None if started_at is None else to_time("started_at", started_at)
        before = self.opened
        try:
            span = self._open()
            if not span.ended:
                self._spans.begin(span, payload, at)
        except PrefactorValueError:
            raise
        except BaseException:
            if before is None:
                self._let_go()
            raise

    def set_result(self, data: Result) -> None:
        """Merge into the result that the span will end with; later keys win."""
        self._spans.capture.merge(self._result, data)

    async def complete(
        self, result: Result | None = None, *, timestamp: datetime | None = None
    ) -> None:
        """The span ends now, or ended at ``timestamp``, complete; ``result`` is merged into its
        result."""
        self.complete_nowait(result, timestamp=timestamp)
        await anyio.lowlevel.checkpoint()

    def complete_nowait(
        self, result: Result | None = None, *, timestamp: datetime | None = None
    ) -> None:
        """As :meth:`complete`, in synchronous code."""
        self._finish("complete", result, timestamp)

    async def fail(
        self,
        result: Result | Mapping[str, object] | None = None,
        *,
        timestamp: datetime | None = None,
    ) -> None:
        """The span ends now, or ended at ``timestamp``, failed; ``result`` is merged into its
        result."""
        self.fail_nowait(result, timestamp=timestamp)
        await anyio.lowlevel.checkpoint()

    def fail_nowait(
        self,
        result: Result | Mapping[str, object] | None = None,
        *,
        timestamp: datetime | None = None,
    ) -> None:
        """As :meth:`fail`, in synchronous code."""
        self._finish("failed", result, timestamp)

    async def cancel(self, *, timestamp: datetime | None = None) -> None:
        """The span ends now, or ended at ``timestamp``, cancelled.

        Before :meth:`start` this records a step that was skipped: it never began (API.md
        section 8, pending to cancelled).
        """
        self.cancel_nowait(timestamp=timestamp)
        await anyio.lowlevel.checkpoint()

    def cancel_nowait(self, *, timestamp: datetime | None = None) -> None:
        """As :meth:`cancel`, in synchronous code."""
        at = None if timestamp is None else to_time("timestamp", timestamp)
        span = self._open()
        if not span.ended:
            self._spans.skip(span, at)

    async def finish(self, *, timestamp: datetime | None = None) -> None:
        """The span ends now, or ended at ``timestamp``, complete unless it has ended otherwise."""
        self.complete_nowait(timestamp=timestamp)
        await anyio.lowlevel.checkpoint()

    def detached(self) -> Self:
        """The same span, not the innermost one in its block: nothing becomes its child by being
        opened there, and :func:`~prefactor_core.current_span` does not give it.

        ``with instance.span("agent:llm").detached() as span:``; children name it, by
        ``parent_span_id=span.id``. For generators where it cannot be told whose turn it is: see
        "Spans" in the README. To be called before it is entered.
        """
        self._detached = True
        return self

    def __enter__(self, frame: FrameType | None = None) -> Self:
        if self._entered:
            raise PrefactorCoreError(
                f"the {self._schema_name!r} span was entered before: call span() again for another"
            )
        self._entered = True
        try:
            # Of whose block it is: see _open().
            self._open(frame or sys._getframe(1))  # pyright: ignore[reportPrivateUsage]
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
        outcome: Outcome = "complete" if error is None else "cancelled"
        try:
            if error is None:
                self._finish("complete", None)
                return
            outcome = outcome_of(error)
            if outcome == "failed":
                entered = self._open().created_at
                self._finish(outcome, {"error": describe_error(error, entered)})
            else:
                self._finish(outcome, None)
        except (RecursionError, MemoryError):
            # There was no stack or memory left to look at it: no reason to trouble the agent.
            if self.opened is not None:
                self._spans.unended = self.opened, outcome, None, None, self._spans.unended
        except BaseException:
            if self.opened is not None:
                self._spans.unended = self.opened, outcome, None, None, self._spans.unended
            raise

    async def __aenter__(self) -> Self:
        if self._spans.waits_for_place and not self._entered and self.opened is None:
            await self._spans.wait_for_place()
            self._has_place = True
            try:
                return self.__enter__(sys._getframe(1))  # pyright: ignore[reportPrivateUsage]
            except BaseException:
                self._let_go()
                self._spans.give_place_back()
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
        span = self.opened
        if span is not None and span.finished_at is not None:
            return  # what ended it has made a checkpoint
        self.__exit__(exc_type, error, traceback)
        # No checkpoint on the way out of an error: a cancellation that waits there would
        # take the place of the agent's own exception. Nor in a fork, where no loop runs: there
        # the span has not ended.
        if error is None and self._open().ended:
            await anyio.lowlevel.checkpoint()  # noqa: ASYNC102

    @property
    def capture(self) -> Capture:
        """Makes JSON of its payload and its result."""
        return self._spans.capture

    @property
    def is_open(self) -> bool:
        """Whether it was opened, and has not ended."""
        return self.opened is not None and not self.opened.ended

    def __repr__(self) -> str:
        status = self.opened.status if self.opened else "not entered"
        return f"<SpanContext {self._schema_name!r} {self.id} {status}>"

    def _let_go(self) -> None:
        """An exception came in the middle of the opening: nobody will end the span."""
        span = self.opened
        if span is not None:
            if span.status is SpanStatus.PENDING:
                span.status = SpanStatus.CANCELLED  # nothing was told of it, and nothing will be
            self._spans.unended = span, "cancelled", None, None, self._spans.unended

    def _open(self, frame: FrameType | None = None) -> OpenSpan:
        span = self.opened
        if span is None:
            holder: FrameType | None = None
            if frame is not None:
                code = frame.f_code
                if (
                    code.co_flags & GENERATOR
                    or code is ENTER_CONTEXT
                    or code is ENTER_ASYNC_CONTEXT
                ):
                    holder = holder_of(frame)
            span = self._spans.open(
                self._id,
                self._run,
                self._schema_name,
                self._parent_span_id,
                self._payload,
                self._has_place,
                self,
                self._result,
                holder,
                self._detached,
            )
            self._payload = None
        return span

    def _finish(self, outcome: Outcome, result: object, timestamp: datetime | None = None) -> None:
        at = None if timestamp is None else to_time("timestamp", timestamp)
        span = self.opened
        if span is None:
            span = self._open()
        status = span.status  # not span.ended: a call
        if status is _PENDING or status is _ACTIVE:
            self._spans.end(span, result, outcome, at)


# The disabled span that was entered last in this context and has not been left.
_disabled: ContextVar[DisabledSpan | None] = ContextVar("prefactor_core_disabled", default=None)


class DisabledSpan(SpanContext[Any]):
    """A span where everything is switched off: all its calls work, and do nothing."""

    __slots__ = ("_outer",)

    def __init__(self) -> None:
        pass

    @staticmethod
    def innermost() -> DisabledSpan | None:
        """The innermost one of this context."""
        return _disabled.get()

    def detached(self) -> Self:
        """This one: it has no children anyway."""
        return self

    @property
    def is_open(self) -> bool:
        """Never: nothing is recorded of it."""
        return False

    @property
    def id(self) -> str:
        """A PFID that nobody knows."""
        try:
            return self._id
        except AttributeError:
            self._id = generate(0)
            return self._id

    def start_nowait(
        self,
        payload: Mapping[str, object] | Fields | None = None,
        *,
        started_at: datetime | None = None,
    ) -> None: ...
    def set_result(self, data: Mapping[str, object]) -> None: ...
    def complete_nowait(
        self, result: Mapping[str, object] | None = None, *, timestamp: datetime | None = None
    ) -> None: ...
    def fail_nowait(
        self, result: Mapping[str, object] | None = None, *, timestamp: datetime | None = None
    ) -> None: ...
    def cancel_nowait(self, *, timestamp: datetime | None = None) -> None: ...

    def __enter__(self, frame: FrameType | None = None) -> Self:
        self._outer = _disabled.get()
        _disabled.set(self)
        return self

    def __exit__(self, *error: object) -> None:
        # Tasks that were started inside refer to this one still, but to none around it.
        _disabled.set(self._outer)
        self._outer = None

    async def __aenter__(self) -> Self:
        # As above, and without its call: tenths of a microsecond count here.
        self._outer = _disabled.get()
        _disabled.set(self)
        return self

    async def __aexit__(self, *error: object) -> None:
        _disabled.set(self._outer)
        self._outer = None

    def __repr__(self) -> str:
        return "<SpanContext, switched off>"
