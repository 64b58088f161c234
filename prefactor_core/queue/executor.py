"""TaskExecutor: workers that empty queues, inside one scope."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from contextvars import Context
from types import TracebackType
from typing import Generic, Self, TypeVar

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from prefactor_core.backoff import Backoff
from prefactor_core.exceptions import PrefactorValueError
from prefactor_core.log import log
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
        self._queues = [queue] if isinstance(queue, Queue) else list(queue)
        least = max(1, len(self._queues))
        if num_workers < least:
            why = ", one for each queue" if least > 1 else ""
            raise PrefactorValueError(
                f"num_workers must be at least {least}{why}, got {num_workers!r}"
            )
        self._handler = handler
        self._max_retries = max_retries
        self._retry_delay = retry_delay or self._default_retry_delay
        self._drain_timeout = drain_timeout
        self._backoff = Backoff()
        # Each worker has a shielded scope: a cancellation from outside reaches the body, and
        # the workers outlive its unwinding.
        self._scopes = [anyio.CancelScope(shield=True) for _ in range(num_workers)]
        self._workers: list[anyio.TaskHandle[None]] = []
        self._group: TaskGroup | None = None
        self._interrupt: KeyboardInterrupt | None = None
        self._asyncio_host: asyncio.Task[object] | None = None

    async def __aenter__(self) -> Self:
        if self._group is not None:
            raise RuntimeError("a TaskExecutor can be entered once only")
        self._group = await anyio.create_task_group().__aenter__()
        with suppress(RuntimeError):  # on trio, where no task is cancelled by itself
            self._asyncio_host = asyncio.current_task()
        for number, scope in enumerate(self._scopes):
            # An empty context: workers must not inherit the caller's open spans, nor keep
            # alive what else its context holds.
            worker = self._group.create_task(
                self._work(self._queues[number % len(self._queues)], scope),
                name=f"prefactor-core-worker-{number}",
                context=Context(),
            )
            self._workers.append(worker)
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
        cancelled: BaseException | None = None
        try:
            with anyio.move_on_after(self._drain_timeout, shield=True):
                # 2. The queues close: end of stream tells the workers to drain.
                await self._close_queues()
                # 3. The workers end by themselves within the time.
                await self._wait_for_workers()
        except anyio.get_cancelled_exc_class() as native:
            # asyncio's own Task.cancel(), which no shield stops: the drain is broken off.
            cancelled = native
        # 4. What still runs is cancelled; nothing at all if the drain was complete. This has
        #    no time-out, or tasks would run on, and no further cancellation breaks it off: a
        #    group that is not left corrupts the scopes of its task.
        for scope in self._scopes:
            scope.cancel()
        while True:
            try:
                with anyio.CancelScope(shield=True):
                    await self._wait_for_workers()
                break
            except anyio.get_cancelled_exc_class() as native:
                cancelled = native
        # 5. The group, now empty, closes without the body's exception: Python raises that
        #    again as it was, unless something from outside goes before it.
        await self._group.__aexit__(None, None, None)
        if self._interrupt is not None:
            raise self._interrupt
        if cancelled is not None:
            raise cancelled

    async def _close_queues(self) -> None:
        for queue in self._queues:
            try:
                await queue.close(len(self._workers))
            except Exception as error:
                message = "a queue could not be closed; its workers end with the drain"
                log(logger, logging.ERROR, message, error=error)

    async def _wait_for_workers(self) -> None:
        for worker in self._workers:
            await worker.wait()
        # asyncio: one more turn until the group has noticed that its tasks are done, so that
        # leaving it waits for nothing and no cancellation can hit it there.
        await anyio.lowlevel.checkpoint()

    async def _work(self, queue: Queue[T], scope: anyio.CancelScope) -> None:
        failures = 0
        with scope:
            while True:
                try:
                    if failures:
                        # A queue that raises at once and for ever must not spin the loop.
                        await anyio.sleep(self._backoff.delay(failures))
                    item = await queue.get()
                    failures = 0
                    await self._handle(item, scope)
                except QueueClosedError:
                    return
                except Exception as error:
                    failures += 1
                    message = "a worker met an error that it did not expect, and goes on"
                    log(logger, logging.ERROR, message, error=error)
                except BaseException as stop:
                    self._survive(stop, scope)

    async def _handle(self, item: T, scope: anyio.CancelScope) -> None:
        attempt = 0
        delay: float | None = 0.0
        while delay is not None:
            try:
                if delay:
                    await anyio.sleep(delay)
                await self._handler(item)
                return
            except Exception as error:
                attempt += 1
                failure = error
            except BaseException as stop:
                self._survive(stop, scope)
                continue
            try:
                delay = await self._retry_delay(item, failure, attempt)
            except Exception as error:
                log(logger, logging.ERROR, "a retry rule failed; the item is kept", error=error)
                delay = self._backoff.delay(attempt)
            except BaseException as stop:
                self._survive(stop, scope)
                delay = self._backoff.delay(attempt)

    def _survive(self, stop: BaseException, scope: anyio.CancelScope) -> None:
        """Go on after ``stop``, with the same item, if it is not ours; else raise it.

        Workers end with the scope of the executor and not with a signal that hits them by
        chance: asyncio's ``Task.cancel()`` of every task of the loop, or the Ctrl-C that trio
        raises in whichever task is running. The latter is for the body.
        """
        if isinstance(stop, KeyboardInterrupt) and self._group is not None:
            self._interrupt = stop
            self._group.cancel_scope.cancel()
        elif (
            scope.cancel_called
            or not isinstance(stop, anyio.get_cancelled_exc_class())
            # Nobody is left to end the workers: the scope was never closed.
            or (self._asyncio_host is not None and self._asyncio_host.done())
        ):
            raise stop

    async def _default_retry_delay(self, item: T, error: Exception, attempt: int) -> float | None:
        if attempt <= self._max_retries:
            return self._backoff.delay(attempt)
        message = "given up after %d attempts: %s: %s"
        log(logger, logging.ERROR, message, attempt, type(error).__name__, error)
        return None
