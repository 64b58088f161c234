"""AgentInstanceHandle: one run of an agent; and the current run and span of a context."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextvars import ContextVar
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast, overload

import anyio
import anyio.lowlevel

from prefactor_core.agent.disabled_span import DisabledSpan
from prefactor_core.agent.span import SpanContext, new_span, start_by_id, start_by_id_nowait
from prefactor_core.agent.traced import F, traced_by
from prefactor_core.compat.adapters import RunAliases
from prefactor_core.context_stack import SpanContextStack
from prefactor_core.context_stack.finders import finders, found_spans
from prefactor_core.exceptions import (
    PrefactorTerminatedError,
)
from prefactor_core.exceptions.checks import to_time
from prefactor_core.exceptions.uncopyable import Uncopyable
from prefactor_core.models.lifecycle import InstanceStatus, Outcome
from prefactor_core.recording.run_end import finish_run, finish_run_in_slices
from prefactor_core.schema_registry.type_schema import Fields, SpanParams
from prefactor_core.schema_registry.typed_span import TypedStep

if TYPE_CHECKING:
    from prefactor_core.recording.instance_manager import AgentInstanceManager
    from prefactor_core.recording.quality import QualityManager
    from prefactor_core.recording.span_manager import SpanManager


Result = TypeVar("Result")


class Client(Protocol):
    """The client of a run: its managers."""

    @property
    def instance_manager(self) -> AgentInstanceManager:
        """Registers, starts and finishes runs."""
        ...

    @property
    def span_manager(self) -> SpanManager:
        """Opens, starts and ends spans by their ids."""
        ...

    @property
    def quality_manager(self) -> QualityManager:
        """Records quality payloads."""
        ...


context_runs: ContextVar[tuple[AgentInstanceHandle, ...]] = ContextVar(
    "prefactor_core_runs", default=()
)
"""The runs of this context, innermost last: those that were started in it, and those whose scopes
were entered in it."""


def current_instance() -> AgentInstanceHandle | None:
    """The innermost run that was started in this context and has not ended.

    Without one, in a thread of your own say, the run of the innermost open span. Without that, the
    run of the current span of OpenTelemetry, if
    :class:`~prefactor_core.otel.PrefactorSpanProcessor` records it; else None.
    """
    instance = own_instance()
    if instance is None and finders:
        for found in found_spans():
            if isinstance(found.instance, AgentInstanceHandle):
                return found.instance
    return instance


def own_instance() -> AgentInstanceHandle | None:
    """As :func:`current_instance`, without the current spans of other libraries."""
    for instance in reversed(context_runs.get()):
        if not instance.ended:
            return instance
    span = _innermost_span()
    if span is not None and isinstance(span.instance, AgentInstanceHandle):
        return span.instance
    return None


def current_span() -> SpanContext[Mapping[str, object] | Fields] | None:
    """The innermost open span of this context, of any run; None without one.

    With a disabled client it is a span that records nothing, unless another client records one.
    """
    span = _innermost_span()
    if span is None:
        instance = current_instance()
        if instance is None or instance.records:
            return None
        return DisabledSpan(instance.recorder, instance)
    return span


def _innermost_span() -> SpanContext[Any] | None:
    for span in SpanContextStack.open_spans():
        if isinstance(span, SpanContext):
            return span  # pyright: ignore[reportUnknownVariableType]
    return DisabledSpan.innermost()


def open_runs() -> tuple[AgentInstanceHandle, ...]:
    """The runs of this context that have not ended, or whose scopes are still open."""
    return tuple(run for run in context_runs.get() if not run.ended or run.scope is not None)


def forget_ended_runs() -> None:
    """Let this context refer to the :func:`open_runs` only."""
    context_runs.set(open_runs())


class AgentInstanceHandle(RunAliases, Uncopyable):
    """One run of an agent, registered by ``client``.

    :meth:`start` and :meth:`finish` begin and end it; in between, :meth:`span` makes its steps. In
    synchronous code use :meth:`start_nowait` and :meth:`finish_nowait`. ``timestamp=`` gives
    another time than now, a datetime with a time zone; one without, or an end before
    the start, raises :class:`~prefactor_core.PrefactorValueError`.

    The constructor raises :class:`~prefactor_core.InstanceNotFoundError` for an id that the client
    has not registered.
    """

    _kind = "a run of an agent in this process"

    def __init__(self, instance_id: str, client: Client) -> None:
        self._owner = client
        self._instances = client.instance_manager
        self._spans = client.span_manager
        self._quality = client.quality_manager
        self.recorder = self._spans.recorder
        self._instance = self._instances.get(instance_id)
        self._identity = self._instances.identity(instance_id)
        self._termination = self._identity.termination
        # The AgentInstanceScope of the run, while it is open.
        self.scope: object = None

    @property
    def id(self) -> str:
        """The id of the run, a PFID; provisional until the API has registered the run."""
        return self._identity.id

    @property
    def client(self) -> Client:
        """The client that registered the run."""
        return self._owner

    @property
    def ended(self) -> bool:
        """Whether the run has ended."""
        return self._instance.ended

    @property
    def records(self) -> bool:
        """Whether the client records: False if it is disabled."""
        return self.recorder.records

    @property
    def recorded(self) -> bool:
        """Whether the run is recorded: False if the client is disabled, if the API has refused the
        run, if the buffer was full at its registration, or if a relay has ended the run. The
        operations of such a run count as dropped."""
        return self.recorder.records and self._identity.lost is None

    @property
    def terminated(self) -> str | None:
        """The reason why the API has terminated the run; None if it has not."""
        return self._termination.reason

    def on_terminate(self, callback: Callable[[str], object]) -> None:
        """Call ``callback`` with the reason when the API terminates the run; at once if it has.

        It runs in the task that receives the termination, so it must return soon. An exception of
        it is logged. A run that has ended is not terminated any more.
        """
        self._termination.watch(callback)

    def check(self) -> None:
        """Raise :class:`~prefactor_core.PrefactorTerminatedError` if the run was terminated.

        For code that runs for long without a span or an ``await``.
        """
        if self._termination.reason is not None:
            raise PrefactorTerminatedError(self._termination.reason, self.id)

    async def start(self, timestamp: datetime | None = None) -> None:
        """Start the run, now or at ``timestamp``, and make it the current one of this context. A
        second call does nothing."""
        self.start_nowait(timestamp=timestamp)
        if self.recorder.event_loop.is_turn_due():
            await anyio.lowlevel.checkpoint()

    def start_nowait(self, timestamp: datetime | None = None) -> None:
        """As :meth:`start`, in synchronous code."""
        at = None if timestamp is None else to_time("timestamp", timestamp)
        if self._instance.status is InstanceStatus.PENDING:
            self.recorder.check_open()
            self._instances.start(self.id, at=at)
        if self not in context_runs.get():
            context_runs.set((*open_runs(), self))

    async def finish(self, status: Outcome = "complete", timestamp: datetime | None = None) -> None:
        """End the run, now or at ``timestamp``, as ``complete``, ``failed`` or ``cancelled``.

        Its open spans end first, at the same time, as ``cancelled``. A second call does nothing.
        """
        if not self.ended:
            self.recorder.check_open()
        slices = finish_run_in_slices(
            self._instances, self.recorder, self._instance, status, timestamp=timestamp
        )
        # With many open spans, other tasks have turns in between.
        await self.recorder.event_loop.in_turns(slices)
        forget_ended_runs()
        if self.recorder.event_loop.is_turn_due():
            await anyio.lowlevel.checkpoint()

    def finish_nowait(
        self, status: Outcome = "complete", timestamp: datetime | None = None
    ) -> None:
        """As :meth:`finish`, in synchronous code."""
        if not self.ended:
            self.recorder.check_open()
        finish_run(self._instances, self.recorder, self._instance, status, timestamp=timestamp)
        forget_ended_runs()

    @overload
    def span(
        self,
        schema_name: str,
        parent_span_id: str | None = None,
        payload: Mapping[str, object] | Fields | None = None,
    ) -> SpanContext: ...

    @overload
    def span(
        self, params: SpanParams[Result], /, parent_span_id: str | None = None
    ) -> SpanContext[Result]: ...

    @overload
    def span(
        self, params: Fields, /, parent_span_id: str | None = None
    ) -> SpanContext[Mapping[str, object] | Fields]: ...

    def span(
        self,
        schema_name: str | TypedStep,
        parent_span_id: str | None = None,
        payload: Any = None,
    ) -> SpanContext[Any]:
        """Return a new span of this run; see :meth:`prefactor_core.PrefactorCoreClient.span`."""
        recorder = self.recorder
        if recorder.closed or recorder.event_loop.is_forked:
            recorder.check_open()
        if not recorder.records:
            return DisabledSpan(recorder, self)
        return new_span(recorder, self._identity, schema_name, parent_span_id, None, payload, self)

    @overload
    def traced(
        self,
        /,
        schema_name: str,
        *,
        exclude: Collection[str] = (),
        capture_result: bool = True,
        reduce: Callable[[list[Any]], object] | None = None,
    ) -> Callable[[F], F]: ...

    @overload
    def traced(
        self,
        params: type[SpanParams[Any]] | None = None,
        /,
        *,
        exclude: Collection[str] = (),
        capture_result: bool = True,
        reduce: Callable[[list[Any]], object] | None = None,
        **fields: object,
    ) -> Callable[[F], F]: ...

    @overload
    def traced(self, function: F, /) -> F: ...

    def traced(
        self,
        /,
        schema_name: object = None,
        *,
        exclude: Collection[str] = (),
        capture_result: bool = True,
        reduce: Callable[[list[Any]], object] | None = None,
        **fields: object,
    ) -> Any:
        """Record every call of a function as a span of this run; see
        :func:`prefactor_core.traced`."""
        return traced_by(lambda: self, schema_name, exclude, capture_result, reduce, fields)

    async def create_span(
        self,
        schema_name: str | TypedStep,
        parent_span_id: str | None = None,
        payload: Mapping[str, object] | Fields | None = None,
        started_at: datetime | None = None,
    ) -> str:
        """Start a span, and return its id for :meth:`finish_span`."""
        return await start_by_id(
            self.span(cast("str", schema_name), parent_span_id, payload), started_at
        )

    def create_span_nowait(
        self,
        schema_name: str | TypedStep,
        parent_span_id: str | None = None,
        payload: Mapping[str, object] | Fields | None = None,
        started_at: datetime | None = None,
    ) -> str:
        """As :meth:`create_span`, in synchronous code."""
        return start_by_id_nowait(
            self.span(cast("str", schema_name), parent_span_id, payload), started_at
        )

    async def finish_span(
        self,
        span_id: str,
        result_payload: Mapping[str, object] | Fields | None = None,
        timestamp: datetime | None = None,
        *,
        status: Outcome = "complete",
    ) -> None:
        """End a span of :meth:`create_span`; see
        :meth:`prefactor_core.PrefactorCoreClient.finish_span`."""
        self.finish_span_nowait(span_id, result_payload, status=status, timestamp=timestamp)
        if self.recorder.event_loop.is_turn_due():
            await anyio.lowlevel.checkpoint()

    def finish_span_nowait(
        self,
        span_id: str,
        result_payload: Mapping[str, object] | Fields | None = None,
        timestamp: datetime | None = None,
        *,
        status: Outcome = "complete",
    ) -> None:
        """As :meth:`finish_span`, in synchronous code."""
        self.recorder.check_open()
        self._spans.finish(span_id, result_payload, status, timestamp=timestamp)

    async def record_quality(
        self, name: str, payload: Mapping[str, object] | Fields | None = None
    ) -> None:
        """Record a quality payload of the run, also after its end; see
        :meth:`prefactor_core.PrefactorCoreClient.record_quality`."""
        await self._quality.record_in_turn(self._identity, name, payload)
        await anyio.lowlevel.checkpoint()

    def record_quality_nowait(
        self, name: str, payload: Mapping[str, object] | Fields | None = None
    ) -> None:
        """As :meth:`record_quality`, in synchronous code."""
        self._quality.record(self._identity, name, payload)

    def _repr_html_(self) -> str:
        # Imported here: only notebooks show it.
        from prefactor_core.agent.run_html import open_run_html

        self._instance.id = self.id  # the API may have given it since
        spans = self._spans.open_spans(self.id)
        return open_run_html(self._instance, spans, recorded=self.recorded, reason=self.terminated)

    def __repr__(self) -> str:
        return f"<AgentInstanceHandle {self.id} {self._instance.status}>"
