"""open_prefactor_sync and SyncPrefactorClient: the same scope for programs without a loop."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial, update_wrapper
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar, Unpack, cast

import anyio

from prefactor_core.agent.instance import AgentInstanceHandle
from prefactor_core.agent.scope import OpenRun
from prefactor_core.client.client import PrefactorCoreClient, open_prefactor
from prefactor_core.config import PrefactorCoreConfig, PrefactorOptions
from prefactor_core.config.lazy_module import LazyModule
from prefactor_core.exceptions import (
    ClientScopeError,
    PrefactorCoreError,
    PrefactorValueError,
)
from prefactor_core.exceptions.live import Live
from prefactor_core.operations import Operation
from prefactor_core.payloads.secret_str import SecretStr
from prefactor_core.queue.base import Queue
from prefactor_core.schema_registry import SchemaRegistry

if TYPE_CHECKING:
    from prefactor_core.api import client as api_client
    from prefactor_core.client.loop_thread import LoopThread
else:
    api_client = LazyModule("prefactor_core.api.client")

P = ParamSpec("P")
T = TypeVar("T")


def open_prefactor_sync(
    config: PrefactorCoreConfig | None = None,
    *,
    api_url: str | None = None,
    api_token: str | None = None,
    schema_registry: SchemaRegistry | None = None,
    queue: Queue[Operation] | None = None,
    asgi_app: api_client.AsgiApp | None = None,
    **options: Unpack[PrefactorOptions],
) -> SyncPrefactorClient:
    """The scope of everything that is recorded: ``with open_prefactor_sync() as client:``.

    One that is never left is left as the program ends: open runs end as ``cancelled``, and what
    there is is delivered within ``drain_timeout`` seconds.

    Takes what :func:`~prefactor_core.open_prefactor` takes, except ``cancel_on_signals``.
    """
    if isinstance(api_token, str):
        api_token = SecretStr(api_token)  # no traceback with locals shows it
    return SyncPrefactorClient(
        open_prefactor(
            config,
            api_url=api_url,
            api_token=api_token,
            schema_registry=schema_registry,
            queue=queue,
            asgi_app=asgi_app,
            **options,
        )
    )


def _direct(
    method: Callable[Concatenate[PrefactorCoreClient, P], T],
) -> Callable[Concatenate[SyncPrefactorClient, P], T]:
    """What waits for nothing is done in the caller's thread."""

    def call(self: SyncPrefactorClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return method(self.core, *args, **kwargs)

    update_wrapper(call, method)
    return call


def _waiting(
    method: Callable[Concatenate[PrefactorCoreClient, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[SyncPrefactorClient, P], T]:
    """What waits is done in the client's thread, and waited for."""

    def call(self: SyncPrefactorClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.wait_for(partial(method, self.core, *args, **kwargs))

    update_wrapper(call, method)
    return call


def _entering(
    method: Callable[Concatenate[SyncPrefactorClient, P], AgentInstanceHandle],
) -> Callable[Concatenate[SyncPrefactorClient, P], SyncAgentInstanceScope]:
    """What makes a run makes its scope."""

    def call(
        self: SyncPrefactorClient, /, *args: P.args, **kwargs: P.kwargs
    ) -> SyncAgentInstanceScope:
        # As in the asynchronous scope: a refusal does not end the agent's work.
        options = {"on_refused": self.core.config.on_refused, **kwargs}
        register = cast("Callable[..., AgentInstanceHandle]", method)
        return SyncAgentInstanceScope(self.core, partial(register, self, *args, **options))

    update_wrapper(call, method)
    return call


class SyncPrefactorClient(Live):
    """A client for synchronous code: ``with`` all the way down, in any thread.

    It is a :class:`~prefactor_core.PrefactorCoreClient`, ``core``, on an event loop in a thread
    of its own, which ends with the block; where everything is switched off, there is none. Only
    registering a run, :meth:`flush` and leaving wait for that thread. Of spans and runs that are
    opened here, synchronous code uses ``with``, ``set_result()`` and the methods whose names end
    in ``_nowait``.

    A run that the API terminates cannot be broken off in synchronous code: its next ``span()`` and
    ``instance.check()`` raise.
    """

    _what = "a client in this process"

    def __init__(self, core: PrefactorCoreClient) -> None:
        if core.config.cancel_on_signals:
            raise PrefactorValueError(
                "cancel_on_signals cancels the block of 'async with', and nothing cancels "
                "synchronous code: leave it out"
            )
        self.core = core
        self._loop: LoopThread | None = None

    def __enter__(self) -> Self:
        if self.core.config.enabled:
            # Here: it takes its time.
            from prefactor_core.client.loop_thread import LoopThread
            from prefactor_core.client.scope import CLOSE_TIMEOUT

            seconds = self.core.config.drain_timeout + CLOSE_TIMEOUT
            loop = LoopThread(self.core, seconds)
            loop.open()
            self._loop = loop
        else:
            _at_once(self.core.__aenter__())
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._loop is not None:
            self._loop.close(error)
        else:
            _at_once(self.core.__aexit__(exc_type, error, traceback))

    if not TYPE_CHECKING:  # where they are not there, and so are told of earlier

        async def __aenter__(self) -> None:
            raise ClientScopeError("this client is for 'with': in async code, use open_prefactor()")

        async def __aexit__(self, *error: object) -> None: ...

    create_agent_instance = _waiting(PrefactorCoreClient.create_agent_instance)
    agent_instance = _entering(create_agent_instance)
    create_span = _direct(PrefactorCoreClient.create_span_nowait)
    finish_span = _direct(PrefactorCoreClient.finish_span_nowait)
    record_quality = _direct(PrefactorCoreClient.record_quality_nowait)
    span = _direct(PrefactorCoreClient.span)
    statistics = _direct(PrefactorCoreClient.statistics)

    def flush(self, timeout: float | None = None) -> bool:
        """Return when everything that was recorded before is delivered, or given up.

        ``timeout``: after so many seconds at the latest; without it, this waits as long as the
        API is away. Whether all of it was settled.
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
        """What ``function`` gives, called in the client's thread.

        Raises :class:`ClientNotInitializedError` outside of the scope.
        """
        _ = self.core.instance_manager  # raises
        return _at_once(function()) if self._loop is None else self._loop.call(function)


def _at_once(coroutine: Coroutine[Any, Any, T]) -> T:
    """What a coroutine gives that waits for nothing: where everything is switched off."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return cast("T", done.value)
    coroutine.close()
    raise AssertionError("it waits")


class SyncAgentInstanceScope(Live):
    """The scope of one run: ``with client.agent_instance(...) as instance:``.

    As :class:`~prefactor_core.AgentInstanceScope`, but that nothing is cancelled when the API
    terminates the run: the next ``span()`` raises, or else the end of the block.
    """

    _what = "the scope of a run in this process"

    def __init__(
        self, client: PrefactorCoreClient, register: Callable[[], AgentInstanceHandle]
    ) -> None:
        self._client = client
        self._register = register
        self._run: OpenRun | None = None

    def __enter__(self) -> AgentInstanceHandle:
        if self._run is not None:
            raise PrefactorCoreError(
                "a run can be entered once only: call agent_instance() again for another"
            )
        handle = self._register()
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
