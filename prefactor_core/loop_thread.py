"""LoopThread: an event loop for programs that have none, in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from contextlib import AbstractAsyncContextManager, suppress
from contextvars import Context
from typing import Any, Final, TypeVar, cast

import anyio

from prefactor_core.exceptions import ClientNotInitializedError, ClientScopeError

T = TypeVar("T")

_CLOSED_MEANWHILE: Final = "the client was closed by another thread in the meantime"


class LoopThread:
    """An event loop in a thread of its own, in which ``scope`` is open."""

    def __init__(self, scope: AbstractAsyncContextManager[object]) -> None:
        self._scope = scope
        # A daemon: a scope that is never left must not keep the program from ending.
        self._thread = threading.Thread(target=self._run, name="prefactor-core", daemon=True)
        self._opened: Future[asyncio.AbstractEventLoop] = Future()
        # Not Thread.join(), which after a Ctrl-C takes the thread for ended (CPython < 3.13).
        self._ended = threading.Event()
        self._body_error: BaseException | None = None
        self._failure: BaseException | None = None

    def open(self) -> None:
        """Return when the client is open. Raises what its entering raises."""
        self._thread.start()
        try:
            self._loop = self._opened.result()
        except BaseException:
            self._opened.cancel()  # Ctrl-C: nobody will close it
            raise

    def close(self, error: BaseException | None) -> None:
        """Return when the client is closed, whose body ended with ``error``, and the thread is
        gone. Raises what its leaving raises. Ctrl-C breaks the drain off, as in ``async with``.
        """
        if not self._thread.is_alive():
            return  # in a fork there is nothing to close
        self._body_error = error
        try:
            self._loop.call_soon_threadsafe(self._leaving.set)
            try:
                self._ended.wait()
            except BaseException:
                with suppress(RuntimeError):  # it has just ended
                    self._loop.call_soon_threadsafe(self._break_off)
                self._ended.wait()
                raise
            self._thread.join()
        finally:
            self._body_error = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def call(self, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What ``function`` gives, called in this thread by another one."""
        if threading.current_thread() is self._thread:
            raise ClientScopeError(
                "this waits for the client's own thread, and cannot be called in it (by what is "
                "given to on_terminate(), say)"
            )
        coroutine = function()
        try:
            # Not in the caller's context: that may be of another event loop.
            future = Context().run(asyncio.run_coroutine_threadsafe, coroutine, self._loop)
        except RuntimeError:
            coroutine.close()
            raise ClientNotInitializedError(_CLOSED_MEANWHILE) from None
        try:
            return future.result()
        except CancelledError:
            raise ClientNotInitializedError(_CLOSED_MEANWHILE) from None
        finally:
            future.cancel()  # Ctrl-C: nobody waits for it any more
            del future  # it would keep its error alive, which has this frame

    def _run(self) -> None:
        try:
            anyio.run(self._host)
        except BaseException as error:
            self._failure = error
        if not self._opened.done():
            assert self._failure is not None
            self._opened.set_exception(self._failure)
        self._ended.set()

    def _break_off(self) -> None:
        # Natively: the drain is shielded from all else. Not before it has begun, though: then
        # the client would not be left.
        if self._exiting:
            self._task.cancel()
        else:
            self._loop.call_soon(self._break_off)

    async def _host(self) -> None:
        self._leaving, self._exiting = anyio.Event(), False
        self._task = cast("asyncio.Task[None]", asyncio.current_task())
        await self._scope.__aenter__()
        if self._opened.set_running_or_notify_cancel():
            self._opened.set_result(asyncio.get_running_loop())
            await self._leaving.wait()
        self._exiting = True
        error = self._body_error
        # What other threads still wait for is of a client that is closed: the loop cancels it
        # as it ends.
        await self._scope.__aexit__(type(error) if error else None, error, None)
