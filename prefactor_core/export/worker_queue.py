"""WorkerQueue: the queue of one worker, and the operations that the worker has taken out of it."""

from __future__ import annotations

import anyio

from prefactor_core.export.batch import Batcher
from prefactor_core.operations import Operation
from prefactor_core.queue.base import Queue, QueueClosedError
from prefactor_core.queue.memory import InMemoryQueue


class WorkerQueue:
    """One queue, and a ``batcher`` with the operations that its worker has not completed.

    ``recorded``: how many operations this process has put into the queue. ``initial``: how many
    were there before: a queue of the user's own may bring those of an earlier process.
    ``waits_for_more``: whether its worker has nothing to send before its wait is over but what is
    recorded now.
    """

    def __init__(self, queue: Queue[Operation]) -> None:
        self.queue = queue
        # Any other exception from a queue of ours comes from outside of it.
        self.refusal: type[Exception] = (
            QueueClosedError if type(queue) is InMemoryQueue else Exception
        )
        self.batcher = Batcher()
        self.recorded = 0
        self.initial = queue.size()
        self.waits_for_more = False
        self._woken = anyio.Event()

    @property
    def has_more_than_recorded(self) -> bool:
        """Whether something is in the queue, or was, that is not counted as recorded yet."""
        return self.queue.size() + self.batcher.added > self.initial + self.recorded

    async def pause(self, seconds: float) -> None:
        """Wait for ``seconds``, or until :meth:`wake`."""
        self._woken = anyio.Event()
        with anyio.move_on_after(seconds):
            await self._woken.wait()

    async def pause_for_more(self, seconds: float) -> None:
        """Wait for ``seconds``, or until something is recorded, or until :meth:`wake`."""
        self.waits_for_more = self.queue.size() == 0
        try:
            await self.pause(seconds if self.waits_for_more else 0)
        finally:
            self.waits_for_more = False

    def wake(self) -> None:
        """End the worker's wait: its reason may have changed."""
        try:  # noqa: SIM105 - suppress() would cost each span calls
            self._woken.set()
        except RuntimeError:
            pass  # the loop has closed, and no task waits
