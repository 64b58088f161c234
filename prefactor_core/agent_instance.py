"""AgentInstanceHandle and AgentInstanceScope: one run of an agent, in the agent's hands."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import anyio
import anyio.lowlevel

from prefactor_core.cancellation import leave_scope
from prefactor_core.capture import describe_error
from prefactor_core.context_stack import SpanContextStack
from prefactor_core.exceptions import (
    ClientScopeError,
    PrefactorCoreError,
    PrefactorTerminatedError,
)
from prefactor_core.lifecycle import InstanceStatus, Outcome
from prefactor_core.models import AgentInstance
from prefactor_core.open_span import OpenSpan
from prefactor_core.outcome import outcome_of
from prefactor_core.span_context import DisabledSpan, SpanContext
from prefactor_core.tracing import F, traced_by

if TYPE_CHECKING:
    from prefactor_core.client import PrefactorCoreClient
    from prefactor_core.managers.agent_instance import AgentInstanceManager
    from prefactor_core.managers.span import SpanManager

# The runs of this context, innermost last; those that have ended are passed over.
_runs: ContextVar[tuple[AgentInstanceHandle, ...]] = ContextVar("prefactor_core_runs", default=())
# The scopes of runs that were entered in this context, innermost last.
_run_scopes: ContextVar[tuple[AgentInstanceScope, ...]] = ContextVar(
    "prefactor_core_run_scopes", default=()
)


def current_instance() -> AgentInstanceHandle | None:
    """The innermost run that was started in this context and has not ended; None if there is
    none."""
    for instance in reversed(_runs.get()):
        if not instance.ended:
            return instance
    return None


def current_span() -> SpanContext | None:
    """The innermost open span of this context, whichever its run; None if there is none.

    Where everything is switched off, it is a span that records nothing; one that a client beside
    it records goes before it.
    """
    for span in SpanContextStack.open_spans():
        if isinstance(span, OpenSpan) and span.context is not None:
            return span.context
    if (disabled := DisabledSpan.innermost()) is not None:
        return disabled
    instance = current_instance()
    return DisabledSpan() if instance is not None and not instance.records else None


def traced(
    schema_name: str,
    *,
    exclude: Collection[str] = (),
    capture_result: bool = True,
    reduce: Callable[[list[Any]], object] | None = None,
) -> Callable[[F], F]:
    """Record every call of a function as a span of the current run.

    ``@traced("agent:tool")`` above a function, asynchronous or not, or a generator. The span has
    the arguments by name as payload, without ``self`` and ``cls`` and the names in ``exclude``,
    and what the function returns as result: a mapping as it is, anything else as ``result``;
    ``capture_result=False`` keeps none. It ends as that of ``with instance.span(...)`` does. The
    run is the :func:`current_instance` of the call; without one the function runs unrecorded.

    The span of a generator lasts from the first item that is asked for to the end: one that is
    left early is ``cancelled``. It is innermost only while the generator's own code runs. Its
    result is ``items``, at most the first 10,000 (``items_left_out``: how many more there were),
    or what ``reduce`` makes of that list. The generator begins with its first item, so that
    arguments that do not fit raise there and not at the call.

    What counts is what :mod:`inspect` says of the function: the call of one that only hands out
    a coroutine or generator of another function ends as soon as it has done so. Raises
    :class:`~prefactor_core.PrefactorValueError` for what cannot be decorated so.
    """
    return traced_by(current_instance, schema_name, exclude, capture_result, reduce)


def _forget_ended_runs() -> None:
    _runs.set(tuple(run for run in _runs.get() if not run.ended))


class AgentInstanceHandle:
    """One run of an agent, registered by ``client``.

    :meth:`start` and :meth:`finish` say when it begins and ends; in between, :meth:`span`
    opens its steps. In synchronous code these are :meth:`start_nowait` and
    :meth:`finish_nowait`. Raises :class:`~prefactor_core.InstanceNotFoundError` for an id that
    the client has not registered.
    """

    def __init__(self, instance_id: str, client: PrefactorCoreClient) -> None:
        self._client = client
        self._instance = client.instance_manager.get(instance_id)
        self._identity = client.instance_manager.identity(instance_id)
        self._termination = self._identity.termination
        self._records = client.span_manager.records

    @property
    def id(self) -> str:
        """The id of the run, as the API gave it; provisional while it could not be asked."""
        return self._identity.id

    @property
    def ended(self) -> bool:
        """Whether the run has been finished."""
        return self._instance.ended

    @property
    def records(self) -> bool:
        """Whether anything of the run is recorded: not where everything is switched off."""
        return self._records

    @property
    def terminated(self) -> str | None:
        """Why the API has stopped the run; None if it has not."""
        return self._termination.reason

    def on_terminate(self, callback: Callable[[str], object]) -> None:
        """Call ``callback`` with the reason when the API stops the run; at once if it has.

        It is called in the task that hears of it, so it must not take its time. What it raises
        is logged. A run that has ended is stopped no more.
        """
        self._termination.watch(callback)

    def check(self) -> None:
        """Raises :class:`~prefactor_core.PrefactorTerminatedError` if the API has stopped the run.

        For code that goes on for long without a span or an ``await``.
        """
        if self._termination.reason is not None:
            raise PrefactorTerminatedError(self._termination.reason, self.id)

    async def start(self) -> None:
        """The run begins now, and is the current one of this context. A second call does
        nothing."""
        self.start_nowait()
        await anyio.lowlevel.checkpoint()

    def start_nowait(self) -> None:
        """As :meth:`start`, in synchronous code."""
        if self._instance.status is InstanceStatus.PENDING:
            self._client.instance_manager.start(self.id)
        if self not in (runs := _runs.get()):
            _runs.set((*(run for run in runs if not run.ended), self))

    async def finish(self, status: Outcome = "complete") -> None:
        """The run ends now: ``complete``, ``failed`` or ``cancelled``.

        Spans of it that are still open end first, as ``cancelled``. A second call does
        nothing.
        """
        self.finish_nowait(status)
        await anyio.lowlevel.checkpoint()

    def finish_nowait(self, status: Outcome = "complete") -> None:
        """As :meth:`finish`, in synchronous code."""
        finish_run(self._client, self._instance, status)
        _forget_ended_runs()

    def span(
        self,
        schema_name: str,
        parent_span_id: str | None = None,
        payload: Mapping[str, object] | None = None,
    ) -> SpanContext:
        """A step of this run; see :meth:`prefactor_core.PrefactorCoreClient.span`."""
        spans = self._client.span_manager
        return spans.context(self._identity, schema_name, parent_span_id, None, payload)

    def traced(
        self,
        schema_name: str,
        *,
        exclude: Collection[str] = (),
        capture_result: bool = True,
        reduce: Callable[[list[Any]], object] | None = None,
    ) -> Callable[[F], F]:
        """Record every call of a function as a span of this run; see
        :func:`prefactor_core.traced`."""
        return traced_by(lambda: self, schema_name, exclude, capture_result, reduce)

    async def create_span(
        self,
        schema_name: str,
        parent_span_id: str | None = None,
        payload: Mapping[str, object] | None = None,
    ) -> str:
        """Start a span and give its id, to be ended by :meth:`finish_span`."""
        return await self._client.create_span(self.id, schema_name, parent_span_id, payload)

    def create_span_nowait(
        self,
        schema_name: str,
        parent_span_id: str | None = None,
        payload: Mapping[str, object] | None = None,
    ) -> str:
        """As :meth:`create_span`, in synchronous code."""
        return self._client.create_span_nowait(self.id, schema_name, parent_span_id, payload)

    async def finish_span(
        self, span_id: str, result_payload: Mapping[str, object] | None = None
    ) -> None:
        """End a span of :meth:`create_span` as ``complete``."""
        await self._client.finish_span(span_id, result_payload)

    def finish_span_nowait(
        self, span_id: str, result_payload: Mapping[str, object] | None = None
    ) -> None:
        """As :meth:`finish_span`, in synchronous code."""
        self._client.finish_span_nowait(span_id, result_payload)

    def __repr__(self) -> str:
        return f"<AgentInstanceHandle {self.id} {self._instance.status}>"


class AgentInstanceScope:
    """The scope of one run: ``async with client.agent_instance(...) as instance:``.

    Registers and starts the run on entering, and ends it on leaving: ``complete``, ``failed``
    if the block raised, ``cancelled`` if it was cancelled. What the block raises goes on as
    it is. It can be entered once, and is left by the task that entered it.

    When the API terminates the run, the block is cancelled, as by a time-out, and a
    :class:`~prefactor_core.PrefactorTerminatedError` leaves it. An error that the block raises
    while it unwinds is that one's context. A cancellation from outside goes first, and so does
    Ctrl-C.
    """

    def __init__(
        self,
        client: PrefactorCoreClient,
        agent_id: str,
        agent_version: Mapping[str, object],
        agent_schema_version: Mapping[str, object] | None,
        instance_id: str | None,
        external_schema_version_id: str | None,
    ) -> None:
        self._client = client
        self._arguments = (
            agent_id,
            agent_version,
            agent_schema_version,
            instance_id,
            external_schema_version_id,
        )
        self._run: OpenRun | None = None
        self._host_task_id = 0
        # Only a termination cancels it. None before the run, after it, and where it had to go
        # on without.
        self._scope: anyio.CancelScope | None = None

    async def __aenter__(self) -> AgentInstanceHandle:
        if self._run is not None:
            raise PrefactorCoreError(
                "a run can be entered once only: call agent_instance() again for another"
            )
        handle = await self._client.create_agent_instance(*self._arguments)
        self._run = OpenRun(self._client, handle)
        self._host_task_id = anyio.get_current_task().id
        self._scope = anyio.CancelScope()
        self._scope.__enter__()
        _run_scopes.set((*_run_scopes.get(), self))
        self._run.cancel_on_terminate(self._scope)
        try:
            await handle.start()
        except BaseException as error:
            # Cancelled in the turn that start() gives to others: __aexit__ will not be called.
            self._leave(self._run, error)
            raise
        return handle

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._run is not None
        self._leave(self._run, error)
        # As for a span: no checkpoint on the way out of an error.
        if error is None and not self._run.is_left:
            await anyio.lowlevel.checkpoint()  # noqa: ASYNC102

    def _leave(self, run: OpenRun, error: BaseException | None) -> None:
        # The order of exit:
        if run.is_left:
            return  # in a fork nothing of it can be left
        # 1. The run ends by how its body ended, its open spans first.
        run.finish(error)
        # 2. The cancel scope closes, if the client has not closed it. Only its own task can.
        if self._scope is not None and anyio.get_current_task().id != self._host_task_id:
            raise ClientScopeError(
                "the run was entered in another task: its scope must be left by the task that "
                "entered it. Use create_agent_instance(), start() and finish() where one task "
                "begins a run and another ends it"
            )
        scopes = _run_scopes.get()
        if self in scopes:
            self._go_on_without(scopes[scopes.index(self) + 1 :])
        left = self._close_scope(error)
        # 3. One error says that the run was stopped, whatever the body made of that.
        run.raise_if_terminated(left, caught=left is not error)

    @classmethod
    def client_closes(cls, client: PrefactorCoreClient) -> None:
        """The scope of ``client`` is left now, before those of its runs if there are any."""
        cls._go_on_without([scope for scope in _run_scopes.get() if scope._client is client])

    @staticmethod
    def _go_on_without(scopes: Sequence[AgentInstanceScope]) -> None:
        """Close the cancel scopes of runs that go on: what is older than they are is left, and
        cancel scopes nest. A termination is from now on what it is without a scope."""
        for scope in reversed(scopes):
            if scope._run is not None and scope._host_task_id == anyio.get_current_task().id:
                scope._run.has_no_scope()
                scope._close_scope(None)

    def _close_scope(self, error: BaseException | None) -> BaseException | None:
        """Close the cancel scope; what is left of ``error`` without a cancellation by it."""
        _run_scopes.set(tuple(scope for scope in _run_scopes.get() if scope is not self))
        scope, self._scope = self._scope, None
        return error if scope is None else leave_scope(scope, error)


class OpenRun:
    """A run that ends with a block, and how that is left."""

    def __init__(self, client: PrefactorCoreClient, handle: AgentInstanceHandle) -> None:
        self._client = client
        instances = client.instance_manager
        self._home = instances.home
        self._instance = instances.get(handle.id)
        self._identity = instances.identity(handle.id)
        self._termination = self._identity.termination
        self._terminated: str | None = None

    @property
    def is_left(self) -> bool:
        """Whether this process is a fork of the one that has the run."""
        return self._home.is_left

    def cancel_on_terminate(self, scope: anyio.CancelScope) -> None:
        """Cancel ``scope`` when the API terminates the run."""
        self._termination.has_scope = True
        self._termination.watch(lambda reason: scope.cancel())

    def has_no_scope(self) -> None:
        """That scope is gone: the next span raises instead."""
        self._termination.has_scope = False

    def finish(self, error: BaseException | None) -> None:
        """The block ended with ``error``, or without one."""
        if self._home.is_left:
            return  # in a fork, which the run does not belong to
        # Once, and first: a termination that comes later than this is too late.
        self._terminated = self._termination.reason
        outcome = outcome_of(error) if self._terminated is None else "cancelled"
        finish_run(self._client, self._instance, outcome, error)
        _forget_ended_runs()

    def raise_if_terminated(self, error: BaseException | None, *, caught: bool = False) -> None:
        """Raises :class:`PrefactorTerminatedError` in place of ``error`` if the run was stopped.

        ``caught``: there was the cancellation that stopped it, which is not worth telling. Only
        what comes from outside goes first: another cancellation, or Ctrl-C.
        """
        if self._terminated is None:
            return
        # Now: its id may have been provisional until a moment ago.
        id = self._identity.id
        if caught and error is None:
            raise PrefactorTerminatedError(self._terminated, id) from None
        if isinstance(error, PrefactorTerminatedError) and error.instance_id == id:
            return
        if error is None or isinstance(error, Exception):
            raise PrefactorTerminatedError(self._terminated, id)


class Managers(Protocol):
    """What knows the open runs and spans: a client, or its scope."""

    @property
    def instance_manager(self) -> AgentInstanceManager: ...
    @property
    def span_manager(self) -> SpanManager: ...


def finish_run(
    managers: Managers,
    instance: AgentInstance,
    outcome: Outcome,
    error: BaseException | None = None,
) -> None:
    """Finish what is still open of a run, then the run; nothing if it has ended."""
    if instance.ended:
        return
    instances = managers.instance_manager
    # No other thread may open a span of it in between.
    with instances.home.lock:
        if not instance.ended:
            finish_spans(managers, instance, outcome, error)
            instances.finish(instance.id, outcome)


def finish_spans(
    managers: Managers,
    instance: AgentInstance,
    outcome: Outcome,
    error: BaseException | None,
) -> None:
    """Finish the open spans of a run that ends with ``outcome``.

    They end as ``failed``, with ``error`` as result, if that failed the run, else as
    ``cancelled``: they did not come to their own end.
    """
    if error is not None and outcome == "failed":
        result = {"error": describe_error(error)}
        managers.span_manager.finish_open(instance.id, result, "failed")
    else:
        managers.span_manager.finish_open(instance.id, None, "cancelled")


def finish_open_runs(managers: Managers, error: BaseException | None) -> None:
    """Finish the open runs of a client whose body ended with ``error``, or without one."""
    outcome = outcome_of(error)
    instances = managers.instance_manager
    with instances.home.lock:
        for instance in instances.open_instances():
            finish_spans(managers, instance, outcome, error)
            # A run that was neither started nor had a span did nothing, however this ends.
            began = instance.started_at is not None
            instances.finish(instance.id, outcome if began else "cancelled")
        # Spans of runs that other clients registered.
        managers.span_manager.finish_open(None, None, "cancelled")
