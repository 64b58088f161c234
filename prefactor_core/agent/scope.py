"""AgentInstanceScope: the scope of one run."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator, Sequence
from types import TracebackType
from typing import Any

import anyio
import anyio.lowlevel

from prefactor_core.agent.cancellation import leave_scope
from prefactor_core.agent.instance import (
    AgentInstanceHandle,
    Client,
    context_runs,
    forget_ended_runs,
    open_runs,
)
from prefactor_core.exceptions import (
    ClientScopeError,
    PrefactorCoreError,
    PrefactorTerminatedError,
)
from prefactor_core.exceptions.outcome import outcome_of
from prefactor_core.exceptions.uncopyable import Uncopyable
from prefactor_core.recording.run_end import finish_run_in_slices


class AgentInstanceScope(Uncopyable):
    """The scope of one run: ``async with client.agent_instance(...) as instance:``.

    Registers and starts the run on entering, and ends it on leaving: ``complete``, ``failed``
    if the block raised, ``cancelled`` if it was cancelled. What the block raises goes on as
    it is. It can be entered once, and is left by the task that entered it.

    When the API terminates the run, the block is cancelled, as by a time-out, and a
    :class:`~prefactor_core.PrefactorTerminatedError` leaves it. An error that the block raises
    while it unwinds is that one's context. A cancellation from outside goes first, and so does
    Ctrl-C.
    """

    _kind = "the scope of a run in this process"

    def __init__(
        self,
        client: Client,
        register: Callable[[], Coroutine[Any, Any, AgentInstanceHandle]],
    ) -> None:
        self._client = client
        self.register = register  # public for the synchronous scope
        self._handle: AgentInstanceHandle | None = None
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
        self._handle = handle = await self.register()
        self._run = OpenRun(self._client, handle)
        self._host_task_id = anyio.get_current_task().id
        self._scope = anyio.CancelScope()
        self._scope.__enter__()
        handle.scope = self
        # Drop the ended runs that this task has inherited: a chain of tasks, each started in the
        # run of the one before, would keep them all.
        context_runs.set((*open_runs(), handle))
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
        # Mostly at once; with many open spans, other tasks have their turns in between.
        await self._run.finish_in_turns(error)  # noqa: ASYNC102 - nothing cancels it
        self._leave(self._run, error)
        # As for a span: no checkpoint on the way out of an error.
        if error is None and not self._run.is_forked:
            await anyio.lowlevel.checkpoint()  # noqa: ASYNC102

    def _leave(self, run: OpenRun, error: BaseException | None) -> None:
        # As steps 2 and 1 of the order of exit (client/scope.py), for one run: it finishes, then
        # its cancel scope closes, unless the client has closed it. Only its own task can do that.
        if run.is_forked:
            return  # in a fork nothing of it can be left
        run.finish(error)
        if self._scope is not None and anyio.get_current_task().id != self._host_task_id:
            raise ClientScopeError(
                "the run was entered in another task: its scope must be left by the task that "
                "entered it. Use create_agent_instance(), start() and finish() where one task "
                "begins a run and another ends it"
            )
        scopes = self._open_scopes()
        if self in scopes:
            self._go_on_without(scopes[scopes.index(self) + 1 :])
        left = self._close_scope(error)
        # One error says that the run was terminated, whatever the body raised.
        run.raise_if_terminated(left, caught=left is not error)

    @classmethod
    def client_closes(cls, client: Client) -> None:
        """The scope of ``client`` is left now, before those of its runs if there are any."""
        cls._go_on_without([scope for scope in cls._open_scopes() if scope._client is client])

    @staticmethod
    def _open_scopes() -> Sequence[AgentInstanceScope]:
        """The open scopes that were entered in this context, innermost last."""
        scopes = [run.scope for run in context_runs.get()]
        return [scope for scope in scopes if isinstance(scope, AgentInstanceScope)]

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
        scope, self._scope = self._scope, None
        if self._handle is not None:
            self._handle.scope = None
        forget_ended_runs()
        return error if scope is None else leave_scope(scope, error)


class OpenRun:
    """A run that ends with a block, and how that is left."""

    def __init__(self, client: Client, handle: AgentInstanceHandle) -> None:
        self._instances = instances = client.instance_manager
        self._recorder = handle.recorder
        self._event_loop = instances.event_loop
        self._instance = instances.get(handle.id)
        self._identity = instances.identity(handle.id)
        self._termination = self._identity.termination
        self._terminated: str | None = None
        self._finishing = False

    @property
    def is_forked(self) -> bool:
        """Whether this process is a fork of the one that has the run."""
        return self._event_loop.is_forked

    def cancel_on_terminate(self, scope: anyio.CancelScope) -> None:
        """Cancel ``scope`` when the API terminates the run."""
        self._termination.has_scope = True
        self._termination.watch(lambda reason: scope.cancel())

    def has_no_scope(self) -> None:
        """That scope is gone: the next span raises instead."""
        self._termination.has_scope = False

    def finish(self, error: BaseException | None) -> None:
        """The block ended with ``error``, or without one; a second call does nothing."""
        for _ in self._finish(error):
            pass

    async def finish_in_turns(self, error: BaseException | None) -> None:
        """As :meth:`finish`, with turns of other tasks if there is much to do."""
        await self._event_loop.in_turns(self._finish(error))

    def _finish(self, error: BaseException | None) -> Iterator[None]:
        if self._finishing or self._event_loop.is_forked:
            return  # in a fork the run is not its own
        self._finishing = True
        # Once, and first: a termination that comes later than this is too late.
        self._terminated = self._termination.reason
        outcome = outcome_of(error) if self._terminated is None else "cancelled"
        yield from finish_run_in_slices(
            self._instances, self._recorder, self._instance, outcome, error
        )
        forget_ended_runs()

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
