"""LoopThread: an event loop in a thread of its own, for programs without a loop."""

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
"""Seconds for the thread to end in, beyond the time limits of its scope."""


class LoopThread:
    """Runs an event loop in a thread of its own and holds ``scope`` open in it.

    ``seconds``: the most that leaving the scope may take by its own time limits. A thread that
    still runs then is stuck in a blocking call, and is abandoned.

    If :meth:`close` is never called, the scope is left as the interpreter ends, as if cancelled.
    """

    def __init__(self, scope: AbstractAsyncContextManager[object], seconds: float) -> None:
        self._scope = scope
        self._seconds = seconds
        # A daemon: a scope that is never left must not keep the program from ending.
        self._thread = threading.Thread(target=self._run, name="prefactor-core", daemon=True)
        self._opened: Future[asyncio.AbstractEventLoop] = Future()
        # Not Thread.join(): after a Ctrl-C it reports the thread as ended (CPython < 3.13).
        self._ended = threading.Event()
        self._body_error: BaseException | None = None
        self._failure: BaseException | None = None

    def open(self) -> None:
        """Return when the scope is open. Raises the error of entering it."""
        try:
            self._thread.start()
            self._loop = self._opened.result()
            # Exit handlers run in the reverse order of registration, while daemon threads still
            # run: this one runs before logging shuts down and before the loss is logged.
            atexit.register(self._close_at_exit)
        except BaseException:
            # Ctrl-C, before any of these lines or after: nobody will close the scope.
            if not self._opened.cancel() and self._opened.exception() is None:
                self._soon(self._break_off, self._opened.result())
            raise

    def close(self, error: BaseException | None) -> None:
        """Leave the scope, whose body ended with ``error``; return when the thread has ended or is
        abandoned. Raises the error of leaving. Ctrl-C breaks the drain off, as in ``async with``.

        Raises :class:`ClientScopeError` in this thread, which would wait for its own end.
        """
        self._check_thread()
        if not self._thread.is_alive():
            atexit.unregister(self._close_at_exit)
            return  # a fork has nothing to close
        try:
            atexit.unregister(self._close_at_exit)
            self._body_error = error
            self._soon(self._leaving.set, self._loop)
            self._wait(self._seconds + _GRACE)
        except BaseException:
            # Ctrl-C, before any of these lines or after: the thread may not know yet that it is to
            # leave the scope.
            self._soon(self._break_off, self._loop)
            self._wait(_GRACE)
            raise
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _close_at_exit(self) -> None:
        # A Ctrl-C now asks for the end of the program, which is under way.
        with suppress(KeyboardInterrupt):
            try:
                self.close(asyncio.CancelledError("the program ended"))
            except Exception as error:
                log(logger, logging.ERROR, "the client could not be closed", error=error)

    def _soon(self, call: Callable[[], object], loop: asyncio.AbstractEventLoop) -> None:
        with suppress(RuntimeError):  # it has just ended
            loop.call_soon_threadsafe(call)

    def _wait(self, seconds: float) -> None:
        """Wait until the thread has ended, for at most so many seconds."""
        # drain_timeout=math.inf: wait as long as the platform can.
        if self._ended.wait(min(seconds, threading.TIMEOUT_MAX)):
            self._thread.join()
            self._body_error = None
            return
        message = "the client's thread has not ended within %g s and is abandoned: %s"
        log(logger, logging.WARNING, message, seconds, self._location())

    def _location(self) -> str:
        """The place where the thread is, so that the blocking call can be found."""
        frames = sys._current_frames()  # pyright: ignore[reportPrivateUsage]  # documented
        frame = frames.get(self._thread.ident or 0)
        if frame is None:
            return "it has just ended"
        code = frame.f_code
        return f"it is in {code.co_qualname}, {code.co_filename}:{frame.f_lineno}"

    def call(self, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run ``function`` in this thread, for another one; gives its result."""
        self._check_thread()
        coroutine = function()
        try:
            # Not in the caller's context, which may belong to another event loop.
            future = Context().run(asyncio.run_coroutine_threadsafe, coroutine, self._loop)
        except RuntimeError:
            coroutine.close()
            raise ClientNotInitializedError(_CLOSED_MEANWHILE) from None
        try:
            return future.result()
        except CancelledError:
            raise ClientNotInitializedError(_CLOSED_MEANWHILE) from None
        finally:
            future.cancel()  # after a Ctrl-C nobody waits for it
            del future  # its error refers to this frame, and would keep itself alive

    def _check_thread(self) -> None:
        if threading.current_thread() is self._thread:
            raise ClientScopeError(
                "this waits for the client's own thread, so it cannot be called in that thread "
                "(in a callback of on_terminate(), for example)"
            )

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
        self._leaving.set()
        # By Task.cancel(): no other cancellation passes the shield of the drain. But only once the
        # scope is being left; an earlier one would keep it from being left at all.
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
        # From here, the order of exit of the scope (client/scope.py).
        self._exiting = True
        error = self._body_error
        # Calls that other threads still wait for are cancelled as the loop ends.
        await self._scope.__aexit__(type(error) if error else None, error, None)
