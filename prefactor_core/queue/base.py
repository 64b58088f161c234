"""Queue: the interface of a store of operations until they are sent."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, Self, TypeVar

import anyio.lowlevel

from prefactor_core.exceptions import PrefactorCoreError

T = TypeVar("T")


class QueueClosedError(PrefactorCoreError):
    """An item is put into a closed queue, or taken from a closed and empty one."""


class Queue(ABC, Generic[T]):
    """First in, first out; used by the tasks of one event loop.

    A subclass may keep its items anywhere. It has :meth:`put_nowait`, or :meth:`put` if that may
    wait: the operations of a client wait in memory then until its worker has put them.
    """

    if not TYPE_CHECKING:  # a type checker takes it for the signature of every queue

        def __new__(cls, *args: object, **kwargs: object) -> Self:
            if cls.put_nowait is Queue.put_nowait and cls.put is Queue.put:
                raise TypeError(
                    f"{cls.__qualname__} must have put_nowait(), or put() if that may wait"
                )
            return super().__new__(cls)

    def put_nowait(self, item: T) -> None:
        """Add an item, without waiting. Raises :class:`QueueClosedError` after close()."""
        raise PrefactorCoreError(f"{type(self).__qualname__} has no put_nowait(): await put()")

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
        """Accept no more items. The items in the queue can still be taken out.

        Every task that waits in :meth:`get` wakes up; ``num_waiters`` says how many there may be,
        for an implementation that needs to know.
        """

    @property
    @abstractmethod
    def closed(self) -> bool:
        """Whether close() was called."""

    async def drain(self, take: Callable[[T], object], most: int) -> None:
        """Call ``take`` with each item in the queue, oldest first, at most ``most``; wait for
        none."""
        while most > 0 and self.size() > 0:
            try:
                item = await self.get()
            except QueueClosedError:
                return  # the queue has an item of its own for the end, and size() counts it
            take(item)
            most -= 1

    async def put(self, item: T) -> None:
        """Add an item, then give other tasks a turn. Raises :class:`QueueClosedError` after
        close()."""
        self.put_nowait(item)
        await anyio.lowlevel.checkpoint()
