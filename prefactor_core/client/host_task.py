"""HostTask: a scope that calls open and close, from any tasks of one event loop."""

from __future__ import annotations

import atexit
import signal
from contextlib import AbstractAsyncContextManager, suppress
from typing import TYPE_CHECKING, cast

import anyio
import anyio.lowlevel

from prefactor_core.exceptions import ClientScopeError
from prefactor_core.queue.event_loop import EventLoop

if TYPE_CHECKING:
    import asyncio


class HostTask:
    """Holds ``scope`` open in a task of its own, between :meth:`open` and :meth:`close`.

    A scope must be left by the task that entered it, but frameworks open in one task and close in
    another. So a third task enters the scope, one that no task group owns.

    It keeps the order of exit, the drain and its time limit. Errors of opening and closing leave
    :meth:`open` and :meth:`close`. If :meth:`close` is never called, the task is cancelled as the
    event loop ends (asyncio.run and trio.run do that), and drains then.

    The callers are not inside the scope: their exceptions and cancellations do not reach it, so
    it cannot know how their work ended. A loop that is stopped without cancelling its tasks
    drains nothing; a warning says so as the program ends. :meth:`close_at_exit` drains then, too.
    """

    def __init__(self, scope: AbstractAsyncContextManager[object]) -> None:
        self._scope = scope
        self._event_loop = EventLoop.here()
        self._loop = anyio.lowlevel.current_token()
        self._opened = anyio.Event()
        self._opening = anyio.CancelScope()
        self._closing = anyio.Event()
        self._closed = anyio.Event()
        self._error: Exception | None = None
        self._task: object = None

    async def open(self) -> None:
        """Return when the scope is open. Raises the error of entering it.

        Raises :class:`ClientScopeError` if the task was cancelled from outside in the meantime.
        """
        self._task = self._event_loop.spawn(self._host, "prefactor-core-host", self._cancelled)
        try:
            await self._opened.wait()
        except BaseException:
            # Cancelled: nobody else will close the scope, and nobody waits for its opening.
            self._opening.cancel()
            await self._close()  # noqa: ASYNC102 - shields and bounds
            raise
        self._raise_error()

    @property
    def ended(self) -> bool:
        """Whether the scope is closed, or could not be opened, or belongs to a parent process."""
        return self._closed.is_set() or self._event_loop.is_forked

    async def close(self) -> None:
        """Return when the scope is closed, also under a cancellation: closing has a time limit.
        (asyncio's own ``Task.cancel()`` ends this call at once; the closing goes on without it.)
        Raises the error of leaving the scope, once.

        Raises :class:`ClientScopeError` in another event loop, where it cannot be awaited.
        """
        if anyio.lowlevel.current_token() != self._loop:
            raise ClientScopeError(
                "the client was opened in another event loop: close it there (any task of that "
                "loop may do it)"
            )
        await self._close()
        self._raise_error()

    def close_at_exit(self) -> None:
        """Close as the interpreter ends, if the loop has only been stopped by then, as the kernel
        of Jupyter and the shell of IPython do with theirs."""
        if self._event_loop.is_trio:
            return  # it ends no program with tasks that remain
        import asyncio  # it runs already

        task = cast("asyncio.Task[None]", self._task)
        loop = task.get_loop()

        def cancel() -> None:
            if self.ended or loop.is_running() or loop.is_closed():
                return
            # As asyncio.run() does with the tasks that remain. The drain has its time limit.
            task.cancel()
            with suppress(KeyboardInterrupt):  # asks for the end of the program: it is under way
                loop.run_until_complete(asyncio.wait([task]))

        # Exit handlers run in the reverse order of registration: this one runs before those of the
        # kernel and of logging, and before the loss is logged.
        atexit.register(cancel)
        task.add_done_callback(lambda _: atexit.unregister(cancel))

    async def _close(self) -> None:
        self._closing.set()
        with anyio.CancelScope(shield=True):
            await self._closed.wait()

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _cancelled(self) -> None:
        if not self._opened.is_set():
            self._error = ClientScopeError(
                "the task that opens the client was cancelled: call initialize() again"
            )
        self._opened.set()
        self._closed.set()

    async def _host(self) -> None:
        try:
            with self._opening:
                async with self._scope:
                    self._opened.set()
                    await self._closing.wait()
        except Exception as error:
            # open() or close() raises it. If this task did, trio would end the loop and asyncio
            # would only log it.
            self._error = error
        except KeyboardInterrupt:
            # On trio it has hit a worker. A system task must not end by it; the main task can.
            signal.raise_signal(signal.SIGINT)
        except BaseException:
            self._cancelled()
            raise
        self._opened.set()
        self._closed.set()
