"""``open_prefactor_sync`` and its client: the same scope for programs without an event loop."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial, update_wrapper
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar, Unpack, cast

import anyio

from prefactor_core.agent.instance import AgentInstanceHandle
from prefactor_core.agent.scope import AgentInstanceScope, OpenRun, RunScope
from prefactor_core.client.client import (
    OpenOptions,
    PrefactorCoreClient,
    follow_cells,
    open_prefactor,
)
from prefactor_core.config import PrefactorCoreConfig
from prefactor_core.exceptions import (
    ClientScopeError,
    PrefactorCoreError,
    PrefactorValueError,
)
from prefactor_core.exceptions.uncopyable import Uncopyable
from prefactor_core.payloads.secret_str import SecretStr

if TYPE_CHECKING:
    from prefactor_core.client.loop_thread import LoopThread

P = ParamSpec("P")
T = TypeVar("T")


def open_prefactor_sync(
    config: PrefactorCoreConfig | None = None, **options: Unpack[OpenOptions]
) -> SyncPrefactorClient:
    """The scope of everything that is recorded: ``with open_prefactor_sync() as client:``.

    Takes the arguments of :func:`~prefactor_core.open_prefactor`, except ``cancel_on_signals``.
    Where no block fits, in a notebook say, ``client.open()`` and ``client.close()`` take its place.
    A scope that is never left closes as the program ends: open runs end as ``cancelled``, and
    pending operations are delivered within ``drain_timeout`` seconds.
    """
    if isinstance(token := options.get("api_token"), str):
        options["api_token"] = token = SecretStr(token)  # no traceback with locals shows it
    return SyncPrefactorClient(open_prefactor(config, **options))


def _direct(
    method: Callable[Concatenate[PrefactorCoreClient, P], T],
) -> Callable[Concatenate[SyncPrefactorClient, P], T]:
    """A method that waits for nothing: it runs in the caller's thread."""

    def call(self: SyncPrefactorClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return method(self.core, *args, **kwargs)

    update_wrapper(call, method)
    return call


def _waiting(
    method: Callable[Concatenate[PrefactorCoreClient, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[SyncPrefactorClient, P], T]:
    """A method that waits: it runs in the client's thread, and the caller waits for it."""

    def call(self: SyncPrefactorClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.wait_for(partial(method, self.core, *args, **kwargs))

    update_wrapper(call, method)
    return call


def _entering(
    method: Callable[Concatenate[PrefactorCoreClient, P], AgentInstanceScope],
) -> Callable[Concatenate[SyncPrefactorClient, P], SyncAgentInstanceScope]:
    """A method that gives the scope of a run."""

    def call(
        self: SyncPrefactorClient, /, *args: P.args, **kwargs: P.kwargs
    ) -> SyncAgentInstanceScope:
        return SyncAgentInstanceScope(self, method(self.core, *args, **kwargs).register)

    update_wrapper(call, method)
    return call


class SyncPrefactorClient(Uncopyable):
    """A client for synchronous code, in any thread: ``with`` in place of ``async with``.

    It runs ``core``, a :class:`~prefactor_core.PrefactorCoreClient`, on an event loop in a thread
    of its own, which ends with the block. (A disabled client has no thread.)
    Only registering a run, :meth:`flush` and leaving wait for that thread. Spans and runs are the
    same objects as in asynchronous code: use ``with``, ``set_result()`` and the methods whose names
    end in ``_nowait``.

    A run that the API terminates is not cancelled in synchronous code: its next ``span()`` and
    ``instance.check()`` raise.
    """

    _kind = "a client in this process"

    def __init__(self, core: PrefactorCoreClient) -> None:
        if core.config.cancel_on_signals:
            raise PrefactorValueError(
                "cancel_on_signals cancels the block of 'async with', and nothing cancels "
                "synchronous code: leave it out"
            )
        self.core = core
        self._loop: LoopThread | None = None

    def open(self) -> Self:
        """Open the scope without a block, until :meth:`close`; return this client.

        ``client = open_prefactor_sync().open()`` in one cell of a notebook, ``client.close()`` in
        another.

        Raises :class:`ClientAlreadyInitializedError` if it is open.
        """
        follow_cells()
        if self.core.config.enabled:
            # Imported here: these imports are slow.
            from prefactor_core.client.loop_thread import LoopThread
            from prefactor_core.client.scope import CLOSE_TIMEOUT

            seconds = self.core.config.drain_timeout + CLOSE_TIMEOUT
            loop = LoopThread(self.core, seconds)
            loop.open()
            self._loop = loop
        else:
            _at_once(self.core.__aenter__())
        return self

    def close(self) -> None:
        """End open runs, deliver, and close, from any thread. Does nothing if it is not open.

        A run ends as ``complete``, or as ``cancelled`` if it was never started.
        """
        self._close(None)

    def _close(self, error: BaseException | None) -> None:
        if self._loop is not None:
            self._loop.close(error)
        else:
            _at_once(self.core.__aexit__(type(error) if error else None, error, None))

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close(error)

    if not TYPE_CHECKING:  # a type checker reports that they are missing, before the program runs

        async def __aenter__(self) -> None:
            raise ClientScopeError("this client is for 'with': in async code, use open_prefactor()")

        async def __aexit__(self, *error: object) -> None: ...

    @property
    def is_open(self) -> bool:
        """Whether runs can be recorded: from the opening of the scope until its end begins."""
        return self.core.is_open

    create_agent_instance = _waiting(PrefactorCoreClient.create_agent_instance)
    agent_instance = _entering(PrefactorCoreClient.agent_instance)
    create_span = _direct(PrefactorCoreClient.create_span_nowait)
    finish_span = _direct(PrefactorCoreClient.finish_span_nowait)
    record_quality = _direct(PrefactorCoreClient.record_quality_nowait)
    span = _direct(PrefactorCoreClient.span)
    inject = _direct(PrefactorCoreClient.inject)
    statistics = _direct(PrefactorCoreClient.statistics)

    def flush(self, timeout: float | None = None) -> bool:
        """Return when every operation that was recorded before is delivered or dropped.

        ``timeout``: the most seconds to wait; without it, this waits as long as an outage lasts.
        Gives False if the time ran out first.
        """

        if not self.core.config.enabled:
            self.wait_for(self.core.flush)  # without a loop there are no time-outs
            return True

        async def flush() -> bool:
            with anyio.move_on_after(timeout) as scope:
                await self.core.flush()
            return not scope.cancelled_caught

        return self.wait_for(flush)

    def wait_for(self, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run ``function`` in the client's thread and give its result.

        Raises :class:`ClientNotInitializedError` outside the scope.
        """
        _ = self.core.instance_manager  # raises
        return _at_once(function()) if self._loop is None else self._loop.call(function)


def _at_once(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that waits for nothing, as those of a disabled client."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return cast("T", done.value)
    coroutine.close()
    raise AssertionError("it waits")


class SyncAgentInstanceScope(RunScope):
    """The scope of one run: ``with client.agent_instance(...) as instance:``.

    As :class:`~prefactor_core.AgentInstanceScope`, except that nothing is cancelled when the API
    terminates the run: the next ``span()`` raises, or else the end of the block.
    """

    def __init__(
        self,
        client: SyncPrefactorClient,
        register: Callable[[], Coroutine[Any, Any, AgentInstanceHandle]],
    ) -> None:
        self._client = client
        self._register = register
        self._run: OpenRun | None = None

    def __enter__(self) -> AgentInstanceHandle:
        if self._run is not None:
            raise PrefactorCoreError(
                "a run can be entered once only: call agent_instance() again for another"
            )
        handle = self._client.wait_for(self._register)
        self._run = OpenRun(self._client.core, handle)
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
