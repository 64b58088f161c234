"""open_prefactor_sync and SyncPrefactorClient: the same scope for programs without a loop."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Coroutine
from functools import partial, update_wrapper
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar, Unpack

import anyio

from prefactor_core.agent_instance import AgentInstanceHandle, OpenRun
from prefactor_core.client import PrefactorCoreClient, open_prefactor
from prefactor_core.config import PrefactorCoreConfig, PrefactorOptions
from prefactor_core.exceptions import PrefactorCoreError
from prefactor_core.operations import Operation
from prefactor_core.queue.base import Queue
from prefactor_core.schema_registry import SchemaRegistry

if TYPE_CHECKING:
    from concurrent.futures import Future

    from anyio.from_thread import BlockingPortal

    from prefactor_core.api.client import AsgiApp

P = ParamSpec("P")
T = TypeVar("T")


def open_prefactor_sync(
    config: PrefactorCoreConfig | None = None,
    *,
    api_url: str | None = None,
    api_token: str | None = None,
    schema_registry: SchemaRegistry | None = None,
    queue: Queue[Operation] | None = None,
    asgi_app: AsgiApp | None = None,
    **options: Unpack[PrefactorOptions],
) -> SyncPrefactorClient:
    """The scope of everything that is recorded: ``with open_prefactor_sync() as client:``.

    Takes what :func:`~prefactor_core.open_prefactor` takes, except ``cancel_on_signals``.
    """
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
        return SyncAgentInstanceScope(self.core, partial(method, self, *args, **kwargs))

    update_wrapper(call, method)
    return call


class SyncPrefactorClient:
    """A client for synchronous code: ``with`` all the way down, in any thread.

    It is a :class:`~prefactor_core.PrefactorCoreClient`, ``core``, on an event loop in a thread
    of its own, which ends with the block. Only registering a run, :meth:`flush` and leaving wait
    for that. Of spans and runs that are opened here, synchronous code uses ``with``,
    ``set_result()`` and the methods whose names end in ``_nowait``.

    A run that the API terminates cannot be broken off in synchronous code: its next ``span()`` and
    ``instance.check()`` raise.
    """

    def __init__(self, core: PrefactorCoreClient) -> None:
        self.core = core
        self._portal: BlockingPortal | None = None
        self._process = 0
        self._opened: Future[None]
        self._closed: Future[None]
        self._leaving: anyio.Event | None = None
        self._body_error: BaseException | None = None
        self._failure: Exception | None = None

    def __enter__(self) -> Self:
        from concurrent.futures import Future  # here: importing it takes its time

        self._process = os.getpid()
        self._opened, self._closed, self._failure = Future(), Future(), None
        # A daemon: a scope that is never left must not keep the program from ending.
        threading.Thread(target=self._run, name="prefactor-core", daemon=True).start()
        self._opened.result()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if os.getpid() != self._process or self._portal is None or self._leaving is None:
            return  # a fork has no such thread, and nothing to close
        self._body_error = error
        self._portal.start_task_soon(self._leaving.set)
        try:
            self._closed.result()
        finally:
            self._body_error = None

    create_agent_instance = _waiting(PrefactorCoreClient.create_agent_instance)
    agent_instance = _entering(create_agent_instance)
    create_span = _direct(PrefactorCoreClient.create_span_nowait)
    finish_span = _direct(PrefactorCoreClient.finish_span_nowait)
    span = _direct(PrefactorCoreClient.span)
    statistics = _direct(PrefactorCoreClient.statistics)

    def flush(self, timeout: float | None = None) -> bool:
        """Return when everything that was recorded before is delivered, or given up.

        ``timeout``: after so many seconds at the latest; without it, this waits as long as the
        API is away. Whether all of it was settled.
        """

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
        assert self._portal is not None
        future: Future[T] = self._portal.start_task_soon(function)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # Ctrl-C: nobody waits for it any more
            raise

    def _run(self) -> None:
        try:
            anyio.run(self._host)
            if self._failure is not None:
                raise self._failure
        except BaseException as error:
            (self._closed if self._opened.done() else self._opened).set_exception(error)
        else:
            self._closed.set_result(None)

    async def _host(self) -> None:
        from anyio.from_thread import BlockingPortal

        async with BlockingPortal() as portal:
            try:
                await self.core.__aenter__()
                self._portal, self._leaving = portal, anyio.Event()
                self._opened.set_result(None)
                await self._leaving.wait()
                error = self._body_error
                await self.core.__aexit__(type(error) if error else None, error, None)
            except Exception as failure:
                self._failure = failure  # not through the portal: that would wrap it
            finally:
                self._portal = None


class SyncAgentInstanceScope:
    """The scope of one run: ``with client.agent_instance(...) as instance:``.

    As :class:`~prefactor_core.AgentInstanceScope`, but that nothing is cancelled when the API
    terminates the run: the next ``span()`` raises, or else the end of the block.
    """

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
