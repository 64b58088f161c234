"""Buffer: where operations enter the queue that their agent instance keeps to."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from threading import get_ident
from typing import Any, Protocol

import anyio

from prefactor_core.config import QueueConfig
from prefactor_core.export.batch import without_payload
from prefactor_core.export.counters import Counters
from prefactor_core.export.loss_report import LossReport
from prefactor_core.export.worker_queue import WorkerQueue
from prefactor_core.models.lifecycle import SpanStatus
from prefactor_core.operations import (
    CreateSpan,
    FinishSpan,
    Operation,
    RecordQuality,
    RegisterAgentInstance,
)
from prefactor_core.queue.base import Queue
from prefactor_core.queue.event_loop import EventLoop

_NEW = (CreateSpan, RecordQuality, RegisterAgentInstance)
"""What is not let in when the buffer is full; all else belongs to what was let in before."""


class Recorded(Protocol):
    """The run or the span that an operation is about."""

    status: Any
    started_at: Any
    finished_at: Any


class Waiting(Protocol):
    """A span that waits for its place in a full buffer, or has it."""

    status: SpanStatus
    has_place: bool


class Buffer:
    """Puts operations into worker_queues; recording never waits, and never raises into the agent.

    All operations of one agent instance go into the same worker_queue, so that one worker sends
    them in the order in which they were recorded. Whoever records holds the lock of ``event_loop``.
    """

    def __init__(
        self,
        queues: Sequence[Queue[Operation]],
        counters: Counters,
        losses: LossReport,
        config: QueueConfig,
        event_loop: EventLoop,
    ) -> None:
        self.event_loop = event_loop
        self._thread_id = event_loop.thread_id
        self.worker_queues = [WorkerQueue(queue) for queue in queues]
        # How many tasks wait for a completion: while above zero, workers skip the batch window.
        self.waiters = 0
        self.closed = False
        self.counters = self._counters = counters
        self._max_operations = config.max_pending_operations
        self.max_bytes = config.max_pending_bytes
        self.waits_when_full = config.when_full == "wait"
        # Spans that have waited for their place and are not recorded yet.
        self._places = 0
        self._count = len(self.worker_queues)
        self._losses = losses
        # Set at the next completion; None if no task waits for one.
        self._completion: anyio.Event | None = None
        # What other threads have recorded, until the loop takes it over.
        self._handed_over: deque[Operation] = deque()
        self._called_loop = False
        # An exception from outside (of a signal handler, or for want of stack) may interrupt
        # record() anywhere. What it was at is kept in these two, and the next call goes on there:
        # an operation that is accepted, and not yet in a queue or handed over;
        self._entering: Operation | None = None
        # and one that the loop's thread puts into its queue.
        self._putting: Operation | None = None

    @property
    def full(self) -> bool:
        """Whether no new span may come in."""
        return self._counters.reaches(self._max_operations - self._places, self.max_bytes)

    def record(
        self,
        operation: Operation,
        size: int,
        subject: Recorded | None = None,
        status: object = None,
        started_at: object = None,
        finished_at: object = None,
        held: int = 0,
        has_place: bool = False,
    ) -> bool:
        """Accept an operation of ``size`` bytes and queue it; whether it was accepted.

        ``subject``: the run or span that gets this status and these times, if the operation is
        accepted and only then. ``held``: the bytes of the operation that were counted as those of
        an open span. ``has_place``: the span has waited for its place.

        A full buffer turns away new runs and quality, and new spans without a place. It accepts
        every operation of a run or span that it has accepted before.
        """
        if self._entering is not None:
            self._enter(self._entering)
        counters = self._counters
        # Written out: this is asked for every operation. It counts open spans, too.
        if not has_place and (
            counters.taken - counters.completed >= self._max_operations - self._places
            or counters.taken_bytes - counters.completed_bytes + counters.open_bytes - held
            >= self.max_bytes
        ):
            if self.full and isinstance(operation, _NEW):
                self.turn_away("full")
                return False
            if isinstance(operation, CreateSpan | FinishSpan) and (
                counters.held_bytes - held >= self.max_bytes
            ):
                # It has to be accepted; of a large payload only a marker.
                operation = without_payload(operation) or operation
                size = operation.size
        # The recording itself: one statement that calls nothing, so that nothing interrupts it.
        if subject is None:
            counters.taken, counters.taken_bytes, self._places, self._entering = (
                counters.taken + 1,
                counters.taken_bytes + size,
                self._places - has_place,
                operation,
            )
        else:
            (
                counters.taken,
                counters.taken_bytes,
                self._places,
                self._entering,
                subject.status,
                subject.started_at,
                subject.finished_at,
            ) = (
                counters.taken + 1,
                counters.taken_bytes + size,
                self._places - has_place,
                operation,
                status,
                started_at,
                finished_at,
            )
        if get_ident() == self._thread_id and not self._handed_over and self._putting is None:
            # As _enter() and _put() do it, without their calls.
            self._putting, self._entering = operation, None
            worker_queue = self.worker_queues[hash(operation.instance_id) % self._count]
            try:
                worker_queue.queue.put_nowait(operation)
            except worker_queue.refusal as error:
                taken = self._refused(operation, error)
            else:
                taken = True
                worker_queue.recorded, self._putting = worker_queue.recorded + 1, None
                if worker_queue.waits_for_more:
                    worker_queue.wake()
        else:
            taken = self._enter(operation)
        if has_place:
            self._place_is_free()
        return taken

    def turn_away(self, reason: str) -> None:
        """Count an operation that is dropped before it was accepted."""
        self._counters.turn_away(reason)
        self._losses.dropped_in_any_thread(reason)

    def _enter(self, operation: Operation) -> bool:
        """Bring an operation that is accepted to the loop; whether its queue takes it."""
        if self.event_loop.is_here:
            if self._handed_over or self._putting is not None:
                self._take_over()
            self._putting, self._entering = operation, None
            return self._put(operation)
        handed_over = self._handed_over
        if not handed_over or handed_over[-1] is not operation:
            handed_over.append(operation)
        self._entering = None
        if not self._called_loop:
            self.event_loop.run_soon(self.take_over)
            self._called_loop = True
        return True

    def take_over(self) -> None:
        """Queue what other threads have recorded; in the thread of the loop."""
        self.event_loop.step(self._take_all_over)

    def _take_all_over(self) -> None:
        self._called_loop = False
        if self._entering is not None:
            self._enter(self._entering)
        self._take_over()

    def _take_over(self) -> None:
        handed_over = self._handed_over
        while True:
            if (operation := self._putting) is None:
                if not handed_over:
                    return
                operation = self._putting = handed_over[0]
                handed_over.popleft()
                self._put(operation)
                continue
            # Interrupted in the middle of the above, or of its put: is it in the queue?
            if handed_over and handed_over[0] is operation:
                handed_over.popleft()
            worker_queue = self._worker_queue_of(operation)
            if worker_queue.has_more_than_recorded:
                worker_queue.recorded, self._putting = worker_queue.recorded + 1, None
            else:
                self._put(operation)

    def accept_initial(self, operation: Operation) -> None:
        """Count an operation that was in its queue before this process recorded anything."""
        with self.event_loop.lock:
            self._counters.accept(operation)

    async def wait_for_place(self, span: Waiting | None = None) -> None:
        """Return when the span, or quality, may come in, and keep its place until it is recorded.
        Nothing for a span that another task or thread has started meanwhile."""
        with self.skip_batch_window():
            while not self._take_place(span):
                await self._wait_for_completion()

    def _take_place(self, span: Waiting | None) -> bool:
        with self.event_loop.lock:
            if span is not None and span.status is not SpanStatus.PENDING:
                return True
            if self.full and not self.closed:
                return False
            # No call from here on: an exception from outside comes before both or after.
            self._places += 1
            if span is not None:
                span.has_place = True
            return True

    def give_place_back(self, span: Waiting) -> None:
        """The span does not need its place, if it has one."""
        with self.event_loop.lock:
            if not span.has_place:
                return
            self._places -= 1
            span.has_place = False
        self._place_is_free()

    def _place_is_free(self) -> None:
        if self.event_loop.is_here:
            self.completed()
        else:
            self.event_loop.run_soon(self.completed)

    async def flush(self) -> None:
        """Return when everything that is recorded so far is delivered or dropped."""
        self.take_over()
        goals = [
            (worker_queue.batcher, worker_queue.initial + worker_queue.recorded)
            for worker_queue in self.worker_queues
        ]
        with self.skip_batch_window():
            for batcher, goal in goals:
                while batcher.completed_through < goal and not self.closed:
                    await self._wait_for_completion()

    def wake(self) -> None:
        """End the waits of all workers: their reasons may have changed."""
        for worker_queue in self.worker_queues:
            worker_queue.wake()

    def completed(self) -> None:
        """Wake the tasks that wait for a completion: operations were delivered, or dropped."""
        if self._completion is not None:
            self._completion.set()
            self._completion = None

    def close(self) -> None:
        """End every wait for a completion: there will be none."""
        self.closed = True
        self.completed()

    @contextmanager
    def skip_batch_window(self) -> Generator[None]:
        """While a task waits for a completion in this block, workers skip the batch window."""
        self.waiters += 1
        try:
            self.wake()
            yield
        finally:
            self.waiters -= 1

    async def _wait_for_completion(self) -> None:
        if self._completion is None:
            self._completion = anyio.Event()
        await self._completion.wait()

    def _worker_queue_of(self, operation: Operation) -> WorkerQueue:
        return self.worker_queues[hash(operation.instance_id) % self._count]

    def _put(self, operation: Operation) -> bool:
        worker_queue = self.worker_queues[hash(operation.instance_id) % self._count]
        try:
            worker_queue.queue.put_nowait(operation)
        except worker_queue.refusal as error:
            return self._refused(operation, error)
        worker_queue.recorded, self._putting = worker_queue.recorded + 1, None
        if worker_queue.waits_for_more:
            worker_queue.wake()
        return True

    def _refused(self, operation: Operation, error: Exception) -> bool:
        """Drop an operation that its queue did not take: full, or broken. Only a queue of the
        user's own does that."""
        if isinstance(error, RecursionError | MemoryError):
            raise error
        self._putting = None
        self._counters.fail(error)
        self._counters.drop("queue", 1, operation.size)
        detail = f"the client's queue does not take them ({type(error).__name__}: {error})"
        self._losses.dropped_in_any_thread("queue", detail)
        return False
