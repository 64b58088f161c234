"""LoopThread: an event loop for programs that have none, in a thread of its own."""

from __future__ import annotations

import asyncio
import atexit
import logging
import sys
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from contextlib import AbstractAsyncContextManager, suppress
from contextvars import Context
from typing import Any, Final, TypeVar, cast

import anyio

from prefactor_core.exceptions import ClientNotInitializedError, ClientScopeError
from prefactor_core.exceptions.log import log

logger = logging.getLogger("prefactor_core.client")

T = TypeVar("T")

_CLOSED_MEANWHILE: Final = "the client was closed by another thread in the meantime"

_GRACE: Final = 2.0
"""Seconds for the thread to end in, after the times that its scope has."""


class LoopThread:
    """An event loop in a thread of its own, in which ``scope`` is open.

    ``seconds``: how long leaving the scope takes at most, by its own times. A thread that has not
    ended then is stuck in a call that blocks it, and is left to itself.

    A scope that nobody leaves is left as the interpreter ends, as by a cancellation.
    """

    def __init__(self, scope: AbstractAsyncContextManager[object], seconds: float) -> None:
        self._scope = scope
        self._seconds = seconds
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
        # Daemon threads run on while the interpreter calls these handlers, the last one that was
        # registered first: logging still works, and the loss has not been said yet.
        atexit.register(self._close_at_exit)

    def close(self, error: BaseException | None) -> None:
        """Return when the client is closed, whose body ended with ``error``, and the thread is
        gone, or was abandoned. Raises what its leaving raises. Ctrl-C breaks the drain off, as
        in ``async with``.
        """
        atexit.unregister(self._close_at_exit)
        if not self._thread.is_alive():
            return  # in a fork there is nothing to close
        self._body_error = error
        with suppress(RuntimeError):  # it has just ended
            self._loop.call_soon_threadsafe(self._leaving.set)
        try:
            self._wait(self._seconds + _GRACE)
        except BaseException:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._break_off)
            self._wait(_GRACE)
            raise
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _close_at_exit(self) -> None:
        # Who presses Ctrl-C now wants what happens anyway: the end.
        with suppress(KeyboardInterrupt):
            try:
                self.close(asyncio.CancelledError("the program ended"))
            except Exception as error:
                log(logger, logging.ERROR, "the client could not be closed", error=error)

    def _wait(self, seconds: float) -> None:
        """Return when the thread has ended, or has not in time."""
        # With drain_timeout=math.inf, as long as the platform can wait.
        if self._ended.wait(min(seconds, threading.TIMEOUT_MAX)):
            self._thread.join()
            self._body_error = None
            return
        message = "the client's thread has not ended within %g s and is left to itself: %s"
        log(logger, logging.WARNING, message, seconds, self._place())

    def _place(self) -> str:
        """Where the thread is, so that whoever wrote what blocks it finds that."""
        frames = sys._current_frames()  # pyright: ignore[reportPrivateUsage]  # documented
        frame = frames.get(self._thread.ident or 0)
        if frame is None:
            return "it has just ended"
        code = frame.f_code
        return f"it is in {code.co_qualname}, {code.co_filename}:{frame.f_lineno}"

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
