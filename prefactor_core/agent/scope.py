"""AgentInstanceScope: the scope of one run."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

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
from prefactor_core.compat.adapters import Terminated
from prefactor_core.exceptions import (
    ClientScopeError,
    PrefactorCoreError,
    PrefactorTerminatedError,
)
from prefactor_core.exceptions.outcome import outcome_of
from prefactor_core.exceptions.uncopyable import Uncopyable
from prefactor_core.recording.run_end import finish_run_in_slices


class RunScope(Uncopyable):
    """The base of the scopes of a run."""

    _kind = "the scope of a run in this process"

    if not TYPE_CHECKING:  # a type checker reports what is missing, before the program runs

        def __getattr__(self, name: str) -> NoReturn:
            hint = ""
            if hasattr(AgentInstanceHandle, name):
                hint = (
                    ": enter it, by 'with client.agent_instance(...) as instance:' or by 'async "
                    f"with', and use instance.{name}; create_agent_instance() needs no block"
                )
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}{hint}")


class AgentInstanceScope(RunScope):
    """The scope of one run: ``async with client.agent_instance(...) as instance:``.

    In a thread without the client's event loop, ``with``: in a ``def`` endpoint of a web framework,
    a tool that a pool runs, a job of a scheduler.

    Registers and starts the run on entering, and ends it on leaving: ``complete``, ``failed`` if
    the block raised, ``cancelled`` if it was cancelled. An exception of the block is raised on,
    unchanged. The scope can be entered once. The task that entered it must leave it, and an
    asynchronous generator must not yield inside of it. Where one task begins a run and another ends
    it, call ``create_agent_instance()``, ``start()`` and ``finish()``.

    When the API terminates the run, the block is cancelled, as by a time-out, and the scope raises
    a :class:`~prefactor_core.PrefactorTerminatedError`. If the block raises another error while it
    unwinds, that error is its ``__context__``. A cancellation from outside and Ctrl-C have
    precedence.
    """

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
        # Only a termination cancels it. None before and after the run, and when an older scope was
        # left first.
        self._scope: anyio.CancelScope | None = None

    def __enter__(self) -> AgentInstanceHandle:
        self._check_first_entering()
        event_loop = self._client.instance_manager.event_loop
        if event_loop.is_here:
            raise ClientScopeError(
                "this waits for the client's event loop, which runs in this very thread: write "
                "'async with client.agent_instance(...)' here"
            )
        # Imported here: few programs need it.
        from prefactor_core.queue.portal import call_in_loop

        handle = call_in_loop(event_loop, self.register)
        self._run = OpenRun(self._client, handle)
        handle.start_nowait()
        return handle

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._run is not None
        self._run.finish(error)
        self._run.raise_if_terminated(error)

    async def __aenter__(self) -> AgentInstanceHandle:
        self._check_first_entering()
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
            # Cancelled in the checkpoint of start(): Python will not call __aexit__.
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
        # With many open spans, other tasks have their turns in between.
        await self._run.finish_in_turns(error)  # noqa: ASYNC102 - nothing cancels it
        self._leave(self._run, error)
        # No checkpoint if an error leaves: a pending cancellation would replace the error.
        if error is None and not self._run.is_forked:
            await anyio.lowlevel.checkpoint()  # noqa: ASYNC102

    def _check_first_entering(self) -> None:
        if self._run is not None:
            raise PrefactorCoreError(
                "a run can be entered once only: call agent_instance() again for another"
            )

    def _leave(self, run: OpenRun, error: BaseException | None) -> None:
        # Steps 2 and 1 of the order of exit (client/scope.py), for one run: it finishes, then its
        # cancel scope closes, unless the client has closed that. Only the task that entered the
        # scope can close it.
        if run.is_forked:
            return  # a fork has no loop, so it can leave no cancel scope
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
        # A termination is one error, even if the body raised several.
        run.raise_if_terminated(left, caught=left is not error)

    @classmethod
    def client_closes(cls, client: Client) -> None:
        """Close the cancel scopes of a client's runs: the client's scope is left before them."""
        cls._go_on_without([scope for scope in cls._open_scopes() if scope._client is client])

    @staticmethod
    def _open_scopes() -> Sequence[AgentInstanceScope]:
        """The open scopes that were entered in this context, innermost last."""
        scopes = [run.scope for run in context_runs.get()]
        return [scope for scope in scopes if isinstance(scope, AgentInstanceScope)]

    @staticmethod
    def _go_on_without(scopes: Sequence[AgentInstanceScope]) -> None:
        """Close the cancel scopes of runs that continue: an older scope is left, and cancel scopes
        nest. A termination of these runs then stops their spans, as it does without a scope."""
        for scope in reversed(scopes):
            if scope._run is not None and scope._host_task_id == anyio.get_current_task().id:
                scope._run.has_no_scope()
                scope._close_scope(None)

    def _close_scope(self, error: BaseException | None) -> BaseException | None:
        """Close the cancel scope, and return ``error`` without the cancellation by that scope."""
        scope, self._scope = self._scope, None
        if self._handle is not None:
            self._handle.scope = None
        forget_ended_runs()
        return error if scope is None else leave_scope(scope, error)


class OpenRun:
    """The end of a run whose block is left, for both kinds of scope."""

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
        """Note that the scope is closed: after a termination, the next span raises instead."""
        self._termination.has_scope = False

    def finish(self, error: BaseException | None) -> None:
        """Finish the run; its block ended with ``error`` or None. A second call does nothing."""
        for _ in self._finish(error):
            pass

    async def finish_in_turns(self, error: BaseException | None) -> None:
        """As :meth:`finish`; with many open spans, other tasks have turns in between."""
        await self._event_loop.in_turns(self._finish(error))

    def _finish(self, error: BaseException | None) -> Iterator[None]:
        if self._finishing or self._event_loop.is_forked:
            return  # the run belongs to the parent process
        self._finishing = True
        # Read once, and first: a later termination has no effect.
        self._terminated = self._termination.reason
        outcome = outcome_of(error) if self._terminated is None else "cancelled"
        yield from finish_run_in_slices(
            self._instances, self._recorder, self._instance, outcome, error
        )
        forget_ended_runs()

    def raise_if_terminated(self, error: BaseException | None, *, caught: bool = False) -> None:
        """Raise :class:`PrefactorTerminatedError` in place of ``error`` if the run was terminated.

        ``caught``: the cancel scope has caught its own cancellation, which then is no context of
        the error. Another cancellation and Ctrl-C have precedence over the error.
        """
        if self._terminated is None:
            return
        # Read now: the id may have been provisional until a moment ago.
        id = self._identity.id
        if caught and error is None:
            raise PrefactorTerminatedError(self._terminated, id) from None
        if isinstance(error, PrefactorTerminatedError) and error.instance_id == id:
            return
        if error is None or isinstance(error, Exception | Terminated):
            raise PrefactorTerminatedError(self._terminated, id)
