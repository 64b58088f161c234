"""HostTask: a scope that is opened and closed by calls, in whichever tasks these are made."""

from __future__ import annotations

import signal
from contextlib import AbstractAsyncContextManager

import anyio
import anyio.lowlevel

from prefactor_core.exceptions import ClientScopeError
from prefactor_core.queue.event_loop import EventLoop


class HostTask:
    """Holds ``scope`` open in a task of its own, between :meth:`open` and :meth:`close`.

    A scope must be left by the task that entered it, and frameworks open in one task what they
    close in another. So neither of them enters it: a third one does, that no task group owns.

    What that keeps: the order of exit, the drain and its time, errors of opening and closing,
    which leave :meth:`open` and :meth:`close`. If :meth:`close` is never called, the task is
    cancelled as the event loop ends (asyncio.run and trio.run do that), and drains then.

    What it cannot keep: nothing of the callers is inside of the scope. Their exceptions and
    cancellations do not reach it, so it cannot tell how their work ended. A loop that is
    stopped without cancelling its tasks drains nothing; that is said, as the program ends.
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
        """Return when the scope is open. Raises what its entering raises.

        Raises :class:`ClientScopeError` if something has cancelled the task in the meantime.
        """
        self._task = self._event_loop.spawn(self._host, "prefactor-core-host", self._cancelled)
        try:
            await self._opened.wait()
        except BaseException:
            # Cancelled: nobody else will close it, or needs what its opening waits for.
            self._opening.cancel()
            await self._close()  # noqa: ASYNC102 - shields and bounds
            raise
        self._raise_error()

    @property
    def ended(self) -> bool:
        """Whether the scope is closed, or could not be opened; or is the parent's, in a fork."""
        return self._closed.is_set() or self._event_loop.is_forked

    async def close(self) -> None:
        """Return when the scope is closed, also under a cancellation: it has its own time limit.
        (asyncio's own ``Task.cancel()`` ends this call at once; the closing goes on without it.)
        Raises what its leaving raises, once.

        Raises :class:`ClientScopeError` in another event loop, where that cannot be awaited.
        """
        if anyio.lowlevel.current_token() != self._loop:
            raise ClientScopeError(
                "the client was opened in another event loop: close it there (any task of that "
                "loop may do it)"
            )
        await self._close()
        self._raise_error()

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
            # For who waits. From here it would end the loop on trio, and be nobody's on asyncio.
            self._error = error
        except KeyboardInterrupt:
            # It has hit a worker on trio, where a task like this must not end by it: trio
            # raises it in the main task.
            signal.raise_signal(signal.SIGINT)
        except BaseException:
            self._cancelled()
            raise
        self._opened.set()
        self._closed.set()
