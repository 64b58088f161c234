"""AwaitedPuts: a queue whose put() may wait, behind one whose put_nowait() never does."""

from __future__ import annotations

import logging
from collections import deque
from typing import TypeVar

import anyio
import anyio.lowlevel

from prefactor_core.exceptions.log import log
from prefactor_core.queue.base import Queue, QueueClosedError

logger = logging.getLogger("prefactor_core.queue.awaited")

T = TypeVar("T")


def without_waiting(queue: Queue[T]) -> Queue[T]:
    """``queue`` if it has ``put_nowait()``; else a queue in front of it that has."""
    return AwaitedPuts(queue) if type(queue).put_nowait is Queue[T].put_nowait else queue


class AwaitedPuts(Queue[T]):
    """Keeps items in memory, until the one task that gets from it, or :meth:`close`, has put them
    into ``queue``.

    Items that ``queue`` refuses come from memory in their turn, so that none is lost.
    """

    def __init__(self, queue: Queue[T]) -> None:
        self._queue = queue
        self._kept: deque[T] = deque()
        self._is_refused = False  # the first of them
        self._has_reported = False
        self._closed = False
        self._putting = anyio.Lock()
        self._changed = anyio.Event()

    def put_nowait(self, item: T) -> None:
        if self._closed:
            raise QueueClosedError("Cannot put to closed queue")
        self._kept.append(item)
        self._changed.set()

    async def get(self) -> T:
        while True:
            # The items in the queue are older. A bounded queue may accept no more until they are
            # taken out, and nobody else takes them: put one item at a time.
            if self._queue.size() > 0:
                try:
                    return await self._queue.get()
                except QueueClosedError:
                    # It has an item of its own for the end, and size() counts it.
                    if not self._kept:
                        raise
            if self._kept:
                async with self._putting:
                    # close() may have put some in the meantime.
                    if self._queue.size() == 0 and not self._is_refused:
                        await self._put_first()
                    if self._queue.size() == 0 and self._is_refused:
                        await anyio.lowlevel.checkpoint()
                        self._is_refused = False
                        return self._kept.popleft()
            elif self._closed:
                raise QueueClosedError("Queue is closed and empty")
            else:
                self._changed = anyio.Event()
                await self._changed.wait()

    def size(self) -> int:
        return len(self._kept) + self._queue.size()

    async def close(self, num_waiters: int = 1) -> None:
        self._closed = True
        self._changed.set()
        try:
            while self._kept and not self._is_refused:
                async with self._putting:
                    await self._put_first()
        finally:
            await self._queue.close(num_waiters)  # noqa: ASYNC102 - the caller bounds it

    @property
    def closed(self) -> bool:
        return self._closed or self._queue.closed

    async def _put_first(self) -> None:
        if not self._kept:
            return
        before = self._queue.size()
        try:
            await self._queue.put(self._kept[0])
        except Exception as error:
            self._is_refused = True
            self._report(error)
        except BaseException:
            # Cancelled: before it was put, or after that.
            if self._queue.size() > before:
                self._kept.popleft()
            raise
        else:
            self._has_reported = False
            self._kept.popleft()

    def _report(self, error: Exception) -> None:
        if not self._has_reported:
            self._has_reported = True
            message = "the client's queue does not take operations; they are sent from memory"
            log(logger, logging.WARNING, message, error=error)
