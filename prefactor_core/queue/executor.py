"""TaskExecutor: workers that empty queues, inside one scope."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from types import TracebackType
from typing import Generic, Self, TypeVar

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from prefactor_core.backoff import Backoff
from prefactor_core.exceptions import PrefactorValueError
from prefactor_core.queue.base import Queue, QueueClosedError

logger = logging.getLogger("prefactor_core.queue.executor")

T = TypeVar("T")

Handler = Callable[[T], Awaitable[None]]
"""Does one item; raises to have it tried again."""

RetryDelay = Callable[[T, Exception, int], Awaitable[float | None]]
"""The wait in seconds after failed attempt *n* (from 1) at an item; None to give it up."""


class TaskExecutor(Generic[T]):
    """``num_workers`` tasks take items from a queue and give them to ``handler``.

    ``async with TaskExecutor(queue, handler):`` runs the workers while the block runs. When
    it is left, by whatever way, the queue is closed and what is in it is still handled,
    for at most ``drain_timeout`` seconds, also under a cancellation from outside; then the
    workers are cancelled. An exception of the block leaves it as the same object.

    ``queue`` may also be several queues, which the workers share out in turn: with as many
    queues as workers each has its own, so that the items of one queue are handled one after
    another. Workers of one queue handle its items in parallel.

    An item that fails is tried again ``max_retries`` times, after exponentially growing
    waits from one second on, then given up with an ERROR in the log. ``retry_delay``
    replaces this rule. Nothing that a handler or a queue raises ends a worker.
    """

    def __init__(
        self,
        queue: Queue[T] | Sequence[Queue[T]],
        handler: Handler[T],
        num_workers: int = 3,
        max_retries: int = 3,
        *,
        retry_delay: RetryDelay[T] | None = None,
        drain_timeout: float = 10.0,
    ) -> None:
        if num_workers < 1:
            raise PrefactorValueError(f"num_workers must be at least 1, got {num_workers!r}")
        self._queues = [queue] if isinstance(queue, Queue) else list(queue)
        self._handler = handler
        self._num_workers = num_workers
        self._max_retries = max_retries
        self._retry_delay = retry_delay or self._default_retry_delay
        self._drain_timeout = drain_timeout
        self._backoff = Backoff()
        self._workers = anyio.CancelScope(shield=True)
        self._group: TaskGroup | None = None

    async def __aenter__(self) -> Self:
        if self._group is not None:
            raise RuntimeError("a TaskExecutor can be entered once only")
        self._group = await anyio.create_task_group().__aenter__()
        # An empty context: workers must not inherit the caller's open spans, nor keep
        # alive what else its context holds.
        self._supervisor = self._group.create_task(
            self._supervise(), name="prefactor-core-workers", context=Context()
        )
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._group is not None
        # The order of exit:
        # 1. The body has ended; its exception is kept out of the group, which would wrap it.
        try:
            with anyio.move_on_after(self._drain_timeout, shield=True):
                # 2. The queues close: end of stream tells the workers to drain.
                for queue in self._queues:
                    await queue.close(self._num_workers)
                # 3. The workers end by themselves within the time.
                await self._supervisor.wait()
        finally:
            # 4. What still runs is cancelled; nothing at all if the drain was complete. This
            #    also holds when a native asyncio cancellation broke off step 3: no shield
            #    stops that.
            self._workers.cancel()
            with anyio.CancelScope(shield=True):
                # No time-out: cancelled tasks are waited for, or they would run on.
                await self._supervisor.wait()  # noqa: ASYNC102
                # asyncio: one more turn until the group has noticed that its task is done,
                # so that step 5 has nothing to wait for and no cancellation can hit it.
                await anyio.lowlevel.checkpoint()  # noqa: ASYNC102
            # 5. The group, now empty, closes without the body's exception: Python raises
            #    that again as it was.
            await self._group.__aexit__(None, None, None)  # noqa: ASYNC102

    async def _supervise(self) -> None:
        # The workers' group lives in a task of its own, under one shielded scope: a
        # cancellation from outside reaches the body, and the workers outlive its unwinding.
        with self._workers:
            async with anyio.create_task_group() as group:
                for number in range(self._num_workers):
                    queue = self._queues[number % len(self._queues)]
                    group.start_soon(self._work, queue, name=f"prefactor-core-worker-{number}")

    async def _work(self, queue: Queue[T]) -> None:
        failures = 0
        while True:
            try:
                item = await queue.get()
                failures = 0
                await self._handle(item)
            except QueueClosedError:
                return
            except Exception:
                failures += 1
                logger.exception("a worker met an error that it did not expect, and goes on")
                # A queue that raises at once and for ever must not spin the loop.
                await anyio.sleep(self._backoff.delay(failures))

    async def _handle(self, item: T) -> None:
        attempt = 0
        while True:
            try:
                await self._handler(item)
                return
            except Exception as error:
                attempt += 1
                delay = await self._retry_delay(item, error, attempt)
            if delay is None:
                return
            await anyio.sleep(delay)

    async def _default_retry_delay(self, item: T, error: Exception, attempt: int) -> float | None:
        if attempt <= self._max_retries:
            return self._backoff.delay(attempt)
        logger.error("given up after %d attempts: %s: %s", attempt, type(error).__name__, error)
        return None
