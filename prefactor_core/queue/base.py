"""Queue: what a client needs of the thing that holds operations until they are sent."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Generic, TypeVar

import anyio.lowlevel

from prefactor_core.exceptions import PrefactorCoreError

T = TypeVar("T")


class QueueClosedError(PrefactorCoreError):
    """Something is put into a closed queue, or taken from a closed and empty one."""


class Queue(ABC, Generic[T]):
    """First in, first out; used by the tasks of one event loop.

    A subclass may keep its items where it likes; putting never waits.
    """

    @abstractmethod
    def put_nowait(self, item: T) -> None:
        """Add an item, without waiting. Raises :class:`QueueClosedError` after close()."""

    @abstractmethod
    async def get(self) -> T:
        """Take the oldest item; wait for one if there is none.

        Raises :class:`QueueClosedError` once the queue is closed and empty.
        """

    @abstractmethod
    def size(self) -> int:
        """How many items wait."""

    @abstractmethod
    async def close(self, num_waiters: int = 1) -> None:
        """Take no more items. What is in the queue can still be taken out.

        Everybody who waits in :meth:`get` for more wakes up; ``num_waiters`` tells an
        implementation that needs to know how many these may be.
        """

    @property
    @abstractmethod
    def closed(self) -> bool:
        """Whether close() was called."""

    async def drain(self, take: Callable[[T], object], most: int) -> None:
        """Give what waits to ``take``, oldest first, at most ``most`` items; wait for none."""
        while most > 0 and self.size() > 0:
            take(await self.get())
            most -= 1

    async def put(self, item: T) -> None:
        """Add an item, then give other tasks a turn."""
        self.put_nowait(item)
        await anyio.lowlevel.checkpoint()
