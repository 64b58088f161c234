"""TaskExecutor: workers that call a handler with the items of a queue."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from types import TracebackType
from typing import Generic, Self, TypeVar

import anyio

from prefactor_core.exceptions import PrefactorValueError, in_message
from prefactor_core.exceptions.log import log
from prefactor_core.queue.base import Queue, QueueClosedError
from prefactor_core.queue.retry_policy import Backoff
from prefactor_core.queue.workers import Workers

logger = logging.getLogger("prefactor_core.queue.executor")

T = TypeVar("T")

Handler = Callable[[T], Awaitable[None]]
"""Handles one item; raises to have it tried again."""


class TaskExecutor(Generic[T]):
    """``num_workers`` tasks take items from a queue and call ``handler`` with them.

    ``async with TaskExecutor(queue, handler):`` runs the workers while the block runs. When
    it is left, in whichever way, the queue is closed and its items are still handled, for at
    most ``drain_timeout`` seconds, also under a cancellation from outside; then the workers are
    cancelled. An exception of the block leaves it as the same object.

    Several workers handle the items in parallel; one keeps their order. An item that fails is
    tried again ``max_retries`` times, after exponentially growing waits from one second on,
    then given up with an ERROR in the log. No exception of a handler or a queue ends a worker.
    """

    def __init__(
        self,
        queue: Queue[T],
        handler: Handler[T],
        num_workers: int = 3,
        max_retries: int = 3,
        *,
        drain_timeout: float = 10.0,
    ) -> None:
        if num_workers < 1:
            raise PrefactorValueError(
                f"num_workers must be at least 1, got {in_message(num_workers)}"
            )
        self._queue = queue
        self._handler = handler
        self._num_workers = num_workers
        self._max_retries = max_retries
        self._backoff = Backoff()
        # The item of each worker; if the worker is cancelled, its replacement handles the item.
        self._in_hand: dict[int, T] = {}
        self._workers = Workers(
            [partial(self._serve, number) for number in range(num_workers)],
            self._close_queue,
            drain_timeout=drain_timeout,
        )

    async def __aenter__(self) -> Self:
        await self._workers.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._workers.__aexit__(exc_type, error, traceback)  # noqa: ASYNC102

    async def _close_queue(self) -> None:
        await self._queue.close(self._num_workers)

    async def _serve(self, number: int) -> None:
        while True:
            if number not in self._in_hand:
                try:
                    self._in_hand[number] = await self._queue.get()
                except QueueClosedError:
                    return
            await self._handle(self._in_hand[number])
            del self._in_hand[number]

    async def _handle(self, item: T) -> None:
        attempt = 0
        while True:
            try:
                await self._handler(item)
                return
            except Exception as error:
                attempt += 1
                if attempt > self._max_retries:
                    message = "given up after %d attempts: %s: %s"
                    log(logger, logging.ERROR, message, attempt, type(error).__name__, error)
                    return
            await anyio.sleep(self._backoff.delay(attempt))
