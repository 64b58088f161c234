"""InMemoryQueue: a queue in a memory object stream."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

import anyio
import anyio.lowlevel

from prefactor_core.queue.base import Queue, QueueClosedError

if TYPE_CHECKING:
    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

T = TypeVar("T")


class InMemoryQueue(Queue[T]):
    """First in, first out, unbounded, in the memory of the process."""

    def __init__(self) -> None:
        self._closed = False
        # One event for all waiting tasks; None if no task waits.
        self._changed: anyio.Event | None = None
        self._send, self._receive = anyio.create_memory_object_stream[T](math.inf)
        # anyio warns of a stream that is collected open. These hold no resource, and no task can
        # wait on a queue without a reference. Not __del__: in a cycle of garbage it may run after
        # those of the streams.
        weakref.finalize(self, _close, self._send, self._receive)

    def put_nowait(self, item: T) -> None:
        if self._closed:
            raise QueueClosedError("Cannot put to closed queue")
        self._send.send_nowait(item)
        if self._changed is not None:
            self._wake()

    async def get(self) -> T:
        # Not receive(): it hands the item to the waiting task before that task runs, and asyncio's
        # Task.cancel() in between would destroy the item. receive_nowait() does not.
        await anyio.lowlevel.checkpoint()
        while True:
            try:
                return self._receive.receive_nowait()
            except anyio.WouldBlock:
                if self._changed is None:
                    self._changed = anyio.Event()
                await self._changed.wait()
            except anyio.EndOfStream:
                raise QueueClosedError("Queue is closed and empty") from None

    async def drain(self, take: Callable[[T], object], most: int) -> None:
        await anyio.lowlevel.checkpoint()
        with suppress(anyio.WouldBlock, anyio.EndOfStream):
            for _ in range(most):
                take(self._receive.receive_nowait())

    def size(self) -> int:
        return self._receive.statistics().current_buffer_used

    async def close(self, num_waiters: int = 1) -> None:
        # Closing the send stream signals the end: it ends all waits, now and later, and the
        # remaining items can still be received.
        self._closed = True
        self._send.close()
        self._wake()

    @property
    def closed(self) -> bool:
        return self._closed

    def _wake(self) -> None:
        changed, self._changed = self._changed, None
        if changed is not None:
            try:  # noqa: SIM105 - suppress() would cost each span calls
                changed.set()
            except RuntimeError:
                pass  # the loop has closed, and no task waits


def _close(send: MemoryObjectSendStream[T], receive: MemoryObjectReceiveStream[T]) -> None:
    send.close()
    receive.close()
