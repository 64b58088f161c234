"""WorkerQueue: the queue of one worker, with the operations that the worker has taken out of it."""

from __future__ import annotations

import anyio

from prefactor_core.export.batch import Backlog
from prefactor_core.operations import Operation
from prefactor_core.queue.base import Queue, QueueClosedError
from prefactor_core.queue.memory import InMemoryQueue


class WorkerQueue:
    """One queue, and what its worker has taken out of it and not settled."""

    def __init__(self, queue: Queue[Operation]) -> None:
        self.queue = queue
        # Anything else that a queue of ours raises comes from outside of it.
        self.refusal: type[Exception] = (
            QueueClosedError if type(queue) is InMemoryQueue else Exception
        )
        self.backlog = Backlog()
        self.recorded = 0
        # A queue of the user's own may bring what an earlier process put there.
        self.found = queue.size()
        # What its worker waits on when it waits for time to pass.
        self._alarm = anyio.Event()
        # Whether it has nothing to send before that time but what is recorded now.
        self.waits_for_more = False

    @property
    def has_more_than_recorded(self) -> bool:
        """Whether something is in the queue, or was, that is not counted as recorded yet."""
        return self.queue.size() + self.backlog.taken > self.found + self.recorded

    async def pause(self, seconds: float) -> None:
        """Wait, until :meth:`hurry` at the longest."""
        self._alarm = anyio.Event()
        with anyio.move_on_after(seconds):
            await self._alarm.wait()

    async def pause_for_more(self, seconds: float) -> None:
        """Wait, until something is recorded or :meth:`hurry` at the longest."""
        self.waits_for_more = self.queue.size() == 0
        try:
            await self.pause(seconds if self.waits_for_more else 0)
        finally:
            self.waits_for_more = False

    def hurry(self) -> None:
        """What the worker waits for may have changed."""
        self._alarm.set()
