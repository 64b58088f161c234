"""Workers: tasks that outlive the body of their scope, to finish what the body left."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextvars import Context
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self, cast

import anyio
import anyio.lowlevel

from prefactor_core.exceptions.log import log
from prefactor_core.exceptions.outcome import outcome_of
from prefactor_core.queue.event_loop import EventLoop
from prefactor_core.queue.retry_policy import Backoff

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

logger = logging.getLogger("prefactor_core.queue.workers")

_RESTART_AFTER: Final = 0.5
"""Seconds until a worker that was cancelled from outside is replaced, in the body."""

_RESTART_AFTER_IN_DRAIN: Final = 0.01


class Workers:
    """A task for each of ``jobs``, inside ``async with Workers(jobs, close, ...):``.

    When the block is left, in whichever way, ``close`` is called, which has to make every job
    return. The jobs have ``drain_timeout`` seconds for that, also under a cancellation from
    outside; then they are cancelled. An exception of the block leaves it as the same object.

    ``background``: jobs that the others need. They are not told to return: they are cancelled when
    all others have returned.

    No exception of a job ends its worker: the exception is logged, and the job is called again
    after a while. The job is also called again after asyncio's ``Task.cancel()`` has ended the
    worker, and for the drain. So a job must not keep its state in local variables.
    """

    def __init__(
        self,
        jobs: Sequence[Callable[[], Awaitable[None]]],
        close: Callable[[], Awaitable[None]],
        *,
        drain_timeout: float,
        background: Sequence[Callable[[], Awaitable[None]]] = (),
    ) -> None:
        self._jobs = [*jobs, *background]
        self._first_in_background = len(jobs)
        self._close = close
        self._drain_timeout = drain_timeout
        self._group: TaskGroup | None = None
        self._coroutines: list[Coroutine[None, None, None]] = []
        # The scope of each worker by the number of its job; None until the task has begun.
        self._running: dict[int, anyio.CancelScope | None] = {}
        # Jobs whose worker was cancelled and is to be replaced. Meanwhile they have no task:
        # a program that cancels all tasks until none is left comes to an end.
        self._paused: set[int] = set()
        self._ended = anyio.Event()
        self._is_draining = False
        self._is_drained = False
        self._interrupt: BaseException | None = None
        self._drain: anyio.CancelScope | None = None

    async def __aenter__(self) -> Self:
        if self._group is not None:
            raise RuntimeError("workers can be entered once only")
        self._event_loop = EventLoop.here()
        self._group = await anyio.create_task_group().__aenter__()
        for number in range(len(self._jobs)):
            self._start_in_group(number)
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
        # Step 3 of the order of exit, which client/scope.py numbers. The body's exception is
        # kept out of the group, which would wrap it.
        assert self._group is not None
        stops = (anyio.get_cancelled_exc_class(), KeyboardInterrupt)
        stopped: BaseException | None = None
        try:
            with anyio.move_on_after(self._drain_timeout, shield=True) as self._drain:
                self._is_draining = True
                try:
                    await self._close()
                except Exception as error:
                    message = "a queue could not be closed; its workers end with the drain"
                    log(logger, logging.ERROR, message, error=error)
                # Every job runs once more, also if its worker has ended or waits for a restart.
                self._paused.clear()
                for number in range(len(self._jobs)):
                    if number not in self._running:
                        self._start(number)
                await self._wait_for_workers()
        except stops as stop:
            # asyncio's own Task.cancel(), or Ctrl-C on trio, which no shield stops: the drain
            # is broken off.
            stopped = stop
        # Cancel the workers that still run: none if the drain was complete. This wait has no
        # time-out, or tasks would run on, and nothing more from outside breaks it off: a group
        # that is not left corrupts the scopes of its task.
        self._is_drained = True
        self._cancel_running()
        while True:
            try:
                with anyio.CancelScope(shield=True):
                    await self._wait_for_workers()
                break
            except stops as stop:
                stopped = stop
        # The group, now empty, closes without the body's exception: Python raises that again as
        # it was, unless something from outside goes before it.
        try:
            await self._group.__aexit__(None, None, None)
        except BaseExceptionGroup as group:
            # Ctrl-C may hit a worker's task when that has nothing of ours left to run.
            self._interrupt = _interrupt_in(group)
            if self._interrupt is None:
                raise
        for work in self._coroutines:
            work.close()  # Python complains of a coroutine that was cancelled before it began
        if self._interrupt is not None:
            raise self._interrupt
        if stopped is not None:
            raise stopped

    def _cancel_running(self) -> None:
        self._paused.clear()
        for scope in self._running.values():
            if scope is not None:
                scope.cancel()

    def _start(self, number: int, delay: float = 0.0) -> None:
        """Start a worker that replaces one."""
        self._running[number] = None
        if self._event_loop.is_trio:
            self._start_in_group(number, delay)
        else:
            # Not in the group: something may be cancelling tasks now, and a task that is
            # cancelled before its first step would cancel the group, and the body with it.
            on_cancelled = partial(self._end, number, restart=True)
            self._event_loop.spawn(partial(self._work, number), _name(number), on_cancelled)

    def _start_in_group(self, number: int, delay: float = 0.0) -> None:
        assert self._group is not None
        work = self._work(number, delay)
        self._coroutines.append(work)
        # An empty context: workers must not inherit the caller's open spans, nor keep alive
        # what else its context holds.
        self._group.create_task(work, name=_name(number), context=Context())

    async def _wait_for_workers(self) -> None:
        await _turns()
        while self._running or self._paused:
            if min([*self._running, *self._paused]) >= self._first_in_background:
                self._cancel_running()
            self._ended = anyio.Event()
            await self._ended.wait()
            await _turns()  # one that was started last has its scope now
        await _turns()

    async def _work(self, number: int, delay: float = 0.0) -> None:
        if self._running.get(number) is not None:
            return  # the drain was faster, and has started another worker
        try:
            # Shielded: a cancellation from outside reaches the body, and the workers outlive
            # its unwinding.
            with anyio.CancelScope(shield=True) as self._running[number]:
                if not self._is_drained:
                    await self._serve(number, delay)
        except BaseException as stop:
            self._stopped_by(stop)
            self._end(number, restart=True)
        else:
            self._end(number)

    def _end(self, number: int, *, restart: bool = False) -> None:
        self._running.pop(number, None)
        if restart and not self._is_drained and self._interrupt is None:
            delay = _RESTART_AFTER_IN_DRAIN if self._is_draining else _RESTART_AFTER
            if self._event_loop.is_trio:
                self._start(number, delay)
            else:
                self._paused.add(number)
                self._event_loop.call_later(delay, partial(self._end_pause, number))
        self._ended.set()

    def _end_pause(self, number: int) -> None:
        # The drain may have been faster.
        if number in self._paused:
            self._paused.remove(number)
            self._start(number)

    async def _serve(self, number: int, delay: float) -> None:
        if delay > 0:
            await anyio.sleep(delay)
        backoff, failures = Backoff(), 0
        while True:
            try:
                await self._jobs[number]()
                return
            except Exception as error:
                failures += 1
                message = "a worker met an unexpected error, and continues"
                log(logger, logging.ERROR, message, error=error)
                # A job that raises at once and for ever must not spin the loop.
                await anyio.sleep(backoff.delay(failures))

    def _stopped_by(self, stop: BaseException) -> None:
        """Keep an exception that ends the program, and have it end the body or the drain.

        asyncio's ``Task.cancel()`` ends nothing but the worker that it hits. Ctrl-C, which trio
        raises in whichever task is running, also as a group if a handler has a nursery, is for
        the body: the body is cancelled, and the exception leaves the scope as itself.
        """
        if isinstance(stop, GeneratorExit):
            raise stop  # the loop is gone
        log(logger, logging.INFO, "a worker was ended from outside (%r)", stop)
        self._interrupt = _interrupt_in(stop) or self._interrupt
        if self._interrupt is None and outcome_of(stop) != "cancelled":
            self._interrupt = stop
        if self._interrupt is not None:
            if self._drain is not None:
                self._drain.cancel()
            elif self._group is not None:
                self._group.cancel_scope.cancel()


def _name(number: int) -> str:
    return f"prefactor-core-worker-{number}"


def _interrupt_in(stop: BaseException) -> BaseException | None:
    """The exception that is to end the program, in ``stop``, which may be a group."""
    parts = [stop]
    for part in parts:
        if isinstance(part, BaseExceptionGroup):
            parts.extend(cast("BaseExceptionGroup[BaseException]", part).exceptions)
        elif isinstance(part, KeyboardInterrupt | SystemExit):
            return part
    return None


async def _turns() -> None:
    """Wait until tasks that were just started have begun, and ended ones are known to have ended.

    Two turns of the loop: trio runs the tasks of one turn in any order. They pass no
    cancellation on: a group with nothing left in it can be left safely after them.
    """
    await anyio.lowlevel.cancel_shielded_checkpoint()
    await anyio.lowlevel.cancel_shielded_checkpoint()
