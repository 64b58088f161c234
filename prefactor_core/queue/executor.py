"""TaskExecutor: workers that empty queues, inside one scope."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from types import TracebackType
from typing import Generic, Self, TypeVar, cast

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from prefactor_core.backoff import Backoff
from prefactor_core.exceptions import PrefactorValueError
from prefactor_core.log import log
from prefactor_core.outcome import outcome_of
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
        self._num_workers = num_workers
        self._handler = handler
        self._max_retries = max_retries
        self._retry_delay = retry_delay or self._default_retry_delay
        self._drain_timeout = drain_timeout
        self._backoff = Backoff()
        self._group: TaskGroup | None = None
        self._scopes: list[anyio.CancelScope] = []
        self._running: set[int] = set()
        self._ended = anyio.Event()
        # What each worker is at; a worker that is interrupted leaves it to its successor.
        self._in_hand: dict[int, T] = {}
        self._cut_short = False
        self._interrupt: BaseException | None = None
        self._drain: anyio.CancelScope | None = None

    async def __aenter__(self) -> Self:
        if self._group is not None:
            raise RuntimeError("a TaskExecutor can be entered once only")
        self._group = await anyio.create_task_group().__aenter__()
        self._start_workers()
        try:
            await _turns()
        except BaseException as error:
            # A native cancellation: __aexit__ will not be called, and the group is open.
            await self.__aexit__(type(error), error, error.__traceback__)  # noqa: ASYNC102
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._group is not None
        stops = (anyio.get_cancelled_exc_class(), KeyboardInterrupt)
        stopped: BaseException | None = None
        # The order of exit:
        # 1. The body has ended; its exception is kept out of the group, which would wrap it.
        try:
            with anyio.move_on_after(self._drain_timeout, shield=True) as self._drain:
                # 2. The queues close: end of stream tells the workers to drain.
                await self._close_queues()
                # 3. The workers end by themselves within the time. Those that something
                #    from outside has ended get successors, and these once more: what ended
                #    the body may be on its way to the workers still.
                for _ in range(2):
                    self._cut_short = False
                    self._start_workers()
                    await _turns()
                    await self._wait_for_workers()
                    if not self._cut_short:
                        break
        except stops as stop:
            # asyncio's own Task.cancel(), or Ctrl-C on trio, which no shield stops: the drain
            # is broken off.
            stopped = stop
        # 4. What still runs is cancelled; nothing at all if the drain was complete. This has
        #    no time-out, or tasks would run on, and nothing more from outside breaks it off:
        #    a group that is not left corrupts the scopes of its task.
        for scope in self._scopes:
            scope.cancel()
        while True:
            try:
                with anyio.CancelScope(shield=True):
                    await self._wait_for_workers()
                break
            except stops as stop:
                stopped = stop
        # 5. The group, now empty, closes without the body's exception: Python raises that
        #    again as it was, unless something from outside goes before it.
        await self._group.__aexit__(None, None, None)
        if self._interrupt is not None:
            raise self._interrupt
        if stopped is not None:
            raise stopped

    def _start_workers(self) -> None:
        assert self._group is not None
        for number in range(self._num_workers):
            if number not in self._running:
                scope = anyio.CancelScope(shield=True)
                self._scopes.append(scope)
                # An empty context: workers must not inherit the caller's open spans, nor
                # keep alive what else its context holds.
                self._group.create_task(
                    self._work(number, scope),
                    name=f"prefactor-core-worker-{number}",
                    context=Context(),
                )

    async def _close_queues(self) -> None:
        for queue in self._queues:
            try:
                await queue.close(self._num_workers)
            except Exception as error:
                message = "a queue could not be closed; its workers end with the drain"
                log(logger, logging.ERROR, message, error=error)

    async def _wait_for_workers(self) -> None:
        while self._running:
            self._ended = anyio.Event()
            await self._ended.wait()
        await _turns()

    async def _work(self, number: int, scope: anyio.CancelScope) -> None:
        self._running.add(number)
        try:
            # Shielded: a cancellation from outside reaches the body, and the workers outlive
            # its unwinding.
            with scope:
                await self._serve(number)
        except BaseException as stop:
            self._stopped_by(stop)
        finally:
            self._running.discard(number)
            self._ended.set()

    async def _serve(self, number: int) -> None:
        queue = self._queues[number % len(self._queues)]
        failures = 0
        while True:
            try:
                if number not in self._in_hand:
                    self._in_hand[number] = await queue.get()
                await self._handle(self._in_hand[number])
                del self._in_hand[number]
                failures = 0
            except QueueClosedError:
                return
            except Exception as error:
                failures += 1
                message = "a worker met an error that it did not expect, and goes on"
                log(logger, logging.ERROR, message, error=error)
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
                failure = error
            try:
                delay = await self._retry_delay(item, failure, attempt)
            except Exception as error:
                log(logger, logging.ERROR, "a retry rule failed; the item is kept", error=error)
                delay = self._backoff.delay(attempt)
            if delay is None:
                return
            await anyio.sleep(delay)

    def _stopped_by(self, stop: BaseException) -> None:
        """A worker ends by something that was not meant for it, and that ends nothing else.

        asyncio's ``Task.cancel()`` of every task of the loop is one such thing: the body gets
        it too, and its exit starts successors that drain. Another is the Ctrl-C that trio
        raises in whichever task is running, also as a group if a handler has a nursery: it
        is for the body, which is cancelled, and leaves the scope as itself.
        """
        self._cut_short = True
        message = "a worker was ended from outside (%r); what it left is handled at the end"
        log(logger, logging.INFO, message, stop)
        parts = [stop]
        for part in parts:
            if isinstance(part, BaseExceptionGroup):
                parts.extend(cast("BaseExceptionGroup[BaseException]", part).exceptions)
            elif isinstance(part, KeyboardInterrupt | SystemExit):
                self._interrupt = part
                if self._drain is not None:
                    self._drain.cancel()
                elif self._group is not None:
                    self._group.cancel_scope.cancel()
        if isinstance(stop, GeneratorExit) or (
            self._interrupt is None and outcome_of(stop) != "cancelled"
        ):
            raise stop

    async def _default_retry_delay(self, item: T, error: Exception, attempt: int) -> float | None:
        if attempt <= self._max_retries:
            return self._backoff.delay(attempt)
        message = "given up after %d attempts: %s: %s"
        log(logger, logging.ERROR, message, attempt, type(error).__name__, error)
        return None


async def _turns() -> None:
    """Wait until what was just started has begun, and what has just ended is known to have.

    Two turns of the loop: trio runs the tasks of one turn in any order. They pass no
    cancellation on: a group with nothing left in it can be left safely after them.
    """
    await anyio.lowlevel.cancel_shielded_checkpoint()
    await anyio.lowlevel.cancel_shielded_checkpoint()
