"""Workers: tasks that outlive the body of their scope, to finish what it left."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextvars import Context
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self, cast

import anyio
import anyio.lowlevel

from prefactor_core.exceptions.log import log
from prefactor_core.exceptions.outcome import outcome_of
from prefactor_core.queue.event_loop import UnownedTasks
from prefactor_core.queue.retry_policy import Backoff

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

logger = logging.getLogger("prefactor_core.queue.workers")

_PAUSE: Final = 1.0
"""Seconds between two successors of a worker that is ended from outside, in the body."""

_MOST_IN_A_ROW: Final = 5
"""A worker that is ended more often than this, with hardly any time in between, gets no further
successor: whoever cancels every task until there is none means it."""


class _Endings:
    """How often a worker was ended from outside, and when.

    ``in_a_row``: with hardly any time in between. ``successor_at``: when the last successor began,
    or will.
    """

    def __init__(self) -> None:
        self.in_a_row = 0
        self._last = -math.inf
        self._successor_at = -math.inf

    def add(self, now: float) -> float:
        """One more; after how many seconds its successor shall begin."""
        self.in_a_row = self.in_a_row + 1 if now - self._last < _PAUSE / 2 else 1
        self._last = now
        self._successor_at = min(max(now, self._successor_at + _PAUSE), now + _PAUSE)
        return self._successor_at - now


class _Worker:
    """A task that does the job of this number. ``scope``: its own; None until it has begun."""

    def __init__(self, number: int, delay: float) -> None:
        self.number = number
        self.delay = delay
        self.scope: anyio.CancelScope | None = None
        self.name = f"prefactor-core-worker-{number}"


class Workers:
    """A task for each of ``jobs``, inside ``async with Workers(jobs, close, ...):``.

    When the block is left, by whatever way, ``close`` is called, which has to make every job
    come to its end; for that they have ``drain_timeout`` seconds, also under a
    cancellation from outside. Then they are cancelled. An exception of the block leaves it as
    the same object.

    Nothing that a job raises ends its worker: it is logged, and the job is called again after a
    while. It is also called again, at once, if something from outside ended the worker; so what
    it is at must not be kept in its local variables.
    """

    def __init__(
        self,
        jobs: Sequence[Callable[[], Awaitable[None]]],
        close: Callable[[], Awaitable[None]],
        *,
        drain_timeout: float,
    ) -> None:
        self._jobs = jobs
        self._close = close
        self._drain_timeout = drain_timeout
        self._group: TaskGroup | None = None
        self._first: list[Coroutine[None, None, None]] = []
        # Successors, on asyncio. They begin while something cancels tasks: not in the group,
        # which a task that is cancelled before its first step would cancel, and the body with it.
        self._successors: UnownedTasks | None = None
        # Who does which job, until that is done.
        self._running: dict[int, _Worker] = {}
        self._endings: defaultdict[int, _Endings] = defaultdict(_Endings)
        self._host_id = 0
        self._draining = anyio.Event()
        self._ended = anyio.Event()
        self._drained = False
        self._interrupt: BaseException | None = None
        self._drain: anyio.CancelScope | None = None

    async def __aenter__(self) -> Self:
        if self._group is not None:
            raise RuntimeError("workers can be entered once only")
        self._host_id = anyio.get_current_task().id
        self._successors = UnownedTasks.here()
        self._group = await anyio.create_task_group().__aenter__()
        for worker in (_Worker(number, 0.0) for number in range(len(self._jobs))):
            self._first.append(self._work(worker))
            self._start_in_group(worker.name, self._first[-1])
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
                # 2. What they serve closes, which tells the workers to drain.
                self._draining.set()
                try:
                    await self._close()
                except Exception as error:
                    message = "a queue could not be closed; its workers end with the drain"
                    log(logger, logging.ERROR, message, error=error)
                # 3. The workers end by themselves within the time. Those that something from
                #    outside has ended, or ends now, get successors.
                self._endings.clear()
                for number in range(len(self._jobs)):
                    if number not in self._running:
                        self._start(_Worker(number, 0.0))
                await self._wait_for_workers()
        except stops as stop:
            # asyncio's own Task.cancel(), or Ctrl-C on trio, which no shield stops: the drain
            # is broken off.
            stopped = stop
        # 4. What still runs is cancelled; nothing at all if the drain was complete. This has
        #    no time-out, or tasks would run on, and nothing more from outside breaks it off:
        #    a group that is not left corrupts the scopes of its task.
        self._drained = True
        for worker in self._running.values():
            if worker.scope is not None:
                worker.scope.cancel()
        while True:
            try:
                with anyio.CancelScope(shield=True):
                    await self._wait_for_workers()
                break
            except stops as stop:
                stopped = stop
        # 5. The group, now empty, closes without the body's exception: Python raises that
        #    again as it was, unless something from outside goes before it.
        try:
            await self._group.__aexit__(None, None, None)
        except BaseExceptionGroup as group:
            # Ctrl-C may hit a worker's task when that has nothing of ours left to run.
            self._interrupt = _interrupt_in(group)
            if self._interrupt is None:
                raise
        for work in self._first:
            work.close()  # Python complains of what was cancelled before it began
        if self._interrupt is not None:
            raise self._interrupt
        if stopped is not None:
            raise stopped

    def _start(self, worker: _Worker) -> None:
        self._running[worker.number] = worker
        if self._successors is None:
            self._start_in_group(worker.name, self._work(worker))
            return
        on_end = partial(self._successor_has_ended, worker)
        self._successors.start(self._work(worker), worker.name, on_end)

    def _start_in_group(self, name: str, work: Coroutine[None, None, None]) -> None:
        assert self._group is not None
        # An empty context: workers must not inherit the caller's open spans, nor keep alive
        # what else its context holds.
        self._group.create_task(work, name=name, context=Context())

    def _successor_has_ended(self, worker: _Worker) -> None:
        if worker.scope is None and self._running.get(worker.number) is worker:
            # It was cancelled before its first step.
            self._endings[worker.number].in_a_row += 1
            self._succeed(worker.number, 0.0)

    async def _wait_for_workers(self) -> None:
        await _turns()
        while self._running:
            self._ended = anyio.Event()
            await self._ended.wait()
        await _turns()

    async def _work(self, worker: _Worker) -> None:
        number = worker.number
        if self._running.setdefault(number, worker) is not worker:
            return  # the drain was faster, and has started another
        try:
            # Shielded: a cancellation from outside reaches the body, and the workers outlive
            # its unwinding.
            with anyio.CancelScope(shield=True) as worker.scope:
                if worker.delay > 0:
                    with anyio.move_on_after(worker.delay):
                        await self._draining.wait()
                if not self._drained:
                    await self._serve_on(number)
        except BaseException as stop:
            self._stopped_by(stop)
            self._succeed(number, self._endings[number].add(anyio.current_time()))
        else:
            self._forget(number)

    def _succeed(self, number: int, delay: float) -> None:
        """Start a successor of a worker that was ended from outside, if there is to be one."""
        if self._goes_on(number):
            self._start(_Worker(number, 0.0 if self._draining.is_set() else delay))
        else:
            self._forget(number)

    def _forget(self, number: int) -> None:
        del self._running[number]
        self._ended.set()

    def _goes_on(self, number: int) -> bool:
        """Whether a worker that was ended from outside gets a successor."""
        if self._drained or self._interrupt is not None:
            return False
        if self._endings[number].in_a_row > _MOST_IN_A_ROW:
            return False
        # Where all tasks end together there is nobody left who could end a successor.
        if self._successors is not None:
            return not self._successors.host_has_ended
        return any(task.id == self._host_id for task in anyio.get_running_tasks())

    async def _serve_on(self, number: int) -> None:
        backoff = Backoff()
        failures = 0
        while True:
            try:
                await self._jobs[number]()
                return
            except Exception as error:
                failures += 1
                message = "a worker met an error that it did not expect, and goes on"
                log(logger, logging.ERROR, message, error=error)
                # What raises at once and for ever must not spin the loop.
                await anyio.sleep(backoff.delay(failures))

    def _stopped_by(self, stop: BaseException) -> None:
        """A worker ends by something that was not meant for it, and that ends nothing else.

        asyncio's ``Task.cancel()`` is one such thing: the worker gets a successor, unless every
        task of the loop is cancelled at its end. Another is the Ctrl-C that trio
        raises in whichever task is running, also as a group if a handler has a nursery: it
        is for the body, which is cancelled, and leaves the scope as itself.
        """
        if isinstance(stop, GeneratorExit):
            raise stop  # the loop is gone
        message = "a worker was ended from outside (%r); another takes on what it left"
        log(logger, logging.INFO, message, stop)
        self._interrupt = _interrupt_in(stop) or self._interrupt
        if self._interrupt is None and outcome_of(stop) != "cancelled":
            self._interrupt = stop
        if self._interrupt is not None:
            if self._drain is not None:
                self._drain.cancel()
            elif self._group is not None:
                self._group.cancel_scope.cancel()


def _interrupt_in(stop: BaseException) -> BaseException | None:
    """What is to end the program in ``stop``, which may be a group."""
    parts = [stop]
    for part in parts:
        if isinstance(part, BaseExceptionGroup):
            parts.extend(cast("BaseExceptionGroup[BaseException]", part).exceptions)
        elif isinstance(part, KeyboardInterrupt | SystemExit):
            return part
    return None


async def _turns() -> None:
    """Wait until what was just started has begun, and what has just ended is known to have.

    Two turns of the loop: trio runs the tasks of one turn in any order. They pass no
    cancellation on: a group with nothing left in it can be left safely after them.
    """
    await anyio.lowlevel.cancel_shielded_checkpoint()
    await anyio.lowlevel.cancel_shielded_checkpoint()
