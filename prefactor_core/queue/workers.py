"""Workers: tasks that outlive the body of their scope, to finish what it left."""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from types import TracebackType
from typing import TYPE_CHECKING, Self, cast

import anyio
import anyio.lowlevel

from prefactor_core.backoff import Backoff
from prefactor_core.log import log
from prefactor_core.outcome import outcome_of

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

logger = logging.getLogger("prefactor_core.queue.workers")

_PAUSE = 1.0
"""Seconds between two successors of a worker that is ended from outside, in the body."""


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
        self._scopes: list[anyio.CancelScope] = []
        self._running: set[int] = set()
        # When one got its last successor while the body goes on, by number.
        self._succeeded: dict[int, float] = {}
        self._host_id = 0
        self._draining = anyio.Event()
        self._ended = anyio.Event()
        self._cut_short = False
        self._interrupt: BaseException | None = None
        self._drain: anyio.CancelScope | None = None

    async def __aenter__(self) -> Self:
        if self._group is not None:
            raise RuntimeError("workers can be entered once only")
        self._host_id = anyio.get_current_task().id
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
                # 2. What they serve closes, which tells the workers to drain.
                self._draining.set()
                try:
                    await self._close()
                except Exception as error:
                    message = "a queue could not be closed; its workers end with the drain"
                    log(logger, logging.ERROR, message, error=error)
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
        try:
            await self._group.__aexit__(None, None, None)
        except BaseExceptionGroup as group:
            # Ctrl-C may hit a worker's task when that has nothing of ours left to run.
            self._interrupt = _interrupt_in(group)
            if self._interrupt is None:
                raise
        if self._interrupt is not None:
            raise self._interrupt
        if stopped is not None:
            raise stopped

    def _start_workers(self) -> None:
        for number in range(len(self._jobs)):
            if number not in self._running:
                self._start_worker(number)

    def _start_worker(self, number: int, delay: float = 0.0) -> None:
        assert self._group is not None
        scope = anyio.CancelScope(shield=True)
        self._scopes.append(scope)
        # An empty context: workers must not inherit the caller's open spans, nor keep alive
        # what else its context holds.
        self._group.create_task(
            self._work(number, scope, delay),
            name=f"prefactor-core-worker-{number}",
            context=Context(),
        )

    async def _wait_for_workers(self) -> None:
        while self._running:
            self._ended = anyio.Event()
            await self._ended.wait()
        await _turns()

    async def _work(self, number: int, scope: anyio.CancelScope, delay: float) -> None:
        if number in self._running:
            return  # a successor that the drain has overtaken
        self._running.add(number)
        stopped = False
        try:
            # Shielded: a cancellation from outside reaches the body, and the workers outlive
            # its unwinding.
            with scope:
                if delay > 0:
                    with anyio.move_on_after(delay):
                        await self._draining.wait()
                await self._serve_on(number)
        except BaseException as stop:
            self._stopped_by(stop)
            stopped = True
        finally:
            self._running.discard(number)
            self._scopes.remove(scope)
            self._ended.set()
        if stopped and self._body_goes_on():
            await self._succeed(number)

    def _body_goes_on(self) -> bool:
        # Where all tasks end together there is nobody left who could end a successor.
        return (
            self._interrupt is None
            and not self._draining.is_set()
            and any(task.id == self._host_id for task in anyio.get_running_tasks())
        )

    async def _succeed(self, number: int) -> None:
        """Start a successor: at once, but what is ended again and again must not spin the loop."""
        try:
            await _turns()
        except BaseException as stop:
            # Who cancels every task until there is none means it: the drain goes on from here.
            self._stopped_by(stop)
            return
        if self._body_goes_on():
            now = anyio.current_time()
            at = max(now, self._succeeded.get(number, -math.inf) + _PAUSE)
            self._succeeded[number] = at
            self._start_worker(number, at - now)

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
        self._cut_short = True
        message = "a worker was ended from outside (%r); another takes on what it left"
        log(logger, logging.INFO, message, stop)
        if (interrupt := _interrupt_in(stop)) is not None:
            self._interrupt = interrupt
            if self._drain is not None:
                self._drain.cancel()
            elif self._group is not None:
                self._group.cancel_scope.cancel()
        if isinstance(stop, GeneratorExit) or (
            self._interrupt is None and outcome_of(stop) != "cancelled"
        ):
            raise stop


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
