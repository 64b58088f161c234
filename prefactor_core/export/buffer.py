"""Buffer: accepts operations, and puts each into the worker queue of its agent instance."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from threading import get_ident
from typing import Any, Protocol

import anyio

from prefactor_core.config import QueueConfig
from prefactor_core.export.batch_item import without_payload
from prefactor_core.export.counters import Counters
from prefactor_core.export.loss_report import LossReport
from prefactor_core.export.worker_queue import WorkerQueue
from prefactor_core.journal.base import NO_JOURNAL, Journal
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
"""The operations that a full buffer drops. The others belong to runs and spans that it accepted."""


class Recorded(Protocol):
    """The run or the span that an operation is about."""

    status: Any
    started_at: Any
    finished_at: Any


class Waiting(Protocol):
    """A span that waits for a slot in a full buffer, or has one."""

    status: SpanStatus
    has_slot: bool


class Buffer:
    """Puts operations into worker queues; it never waits, and never raises into the agent.

    All operations of one agent instance go into the same worker queue, so that one worker sends
    them in the order of recording. A caller that records holds the lock of ``event_loop``.
    """

    def __init__(
        self,
        queues: Sequence[Queue[Operation]],
        counters: Counters,
        losses: LossReport,
        config: QueueConfig,
        event_loop: EventLoop,
        journal: Journal = NO_JOURNAL,
    ) -> None:
        self.event_loop = event_loop
        self.journal = journal
        self._has_journal = journal.is_on
        self._thread_id = event_loop.thread_id
        self.worker_queues = [WorkerQueue(queue) for queue in queues]
        # How many tasks wait for a completion: while above zero, workers skip the batch window.
        self.waiters = 0
        self.closed = False
        self.counters = self._counters = counters
        self._max_operations = config.max_pending_operations
        self.max_bytes = config.max_pending_bytes
        self.waits_when_full = config.when_full == "wait"
        # The slots of spans that have waited for one and are not recorded yet.
        self._reserved_slots = 0
        self._count = len(self.worker_queues)
        self._losses = losses
        # Set at the next completion; None if no task waits for one.
        self._completion: anyio.Event | None = None
        # Operations that other threads have recorded, until the loop takes them over.
        self._handed_over: deque[Operation] = deque()
        self._called_loop = False
        # An exception from outside (of a signal handler, or an exhausted stack) may interrupt
        # record() anywhere. These two keep the interrupted operation, and the next call continues
        # with it: one that is accepted, but neither in a queue nor handed over,
        self._entering: Operation | None = None
        # and one that the loop's thread is putting into its queue.
        self._putting: Operation | None = None

    @property
    def full(self) -> bool:
        """Whether the buffer drops new spans."""
        return self.journal.is_full or self._counters.reaches(
            self._max_operations - self._reserved_slots, self.max_bytes
        )

    def record(
        self,
        operation: Operation,
        size: int,
        subject: Recorded | None = None,
        status: object = None,
        started_at: object = None,
        finished_at: object = None,
        held: int = 0,
        has_slot: bool = False,
    ) -> bool:
        """Accept an operation of ``size`` bytes and queue it; False if it is dropped instead.

        ``subject``: the run or span that gets ``status`` and the times, only if the operation is
        accepted. ``held``: the bytes of the operation that count as those of an open span.
        ``has_slot``: the span has waited for a slot.

        A full buffer drops new runs, new quality payloads, and new spans without a slot. It accepts
        every operation of a run or span that it has accepted before.
        """
        if self._entering is not None:
            self._enter(self._entering)
        counters = self._counters
        # full, without the calls, and with the payloads of open spans: it runs for every operation.
        if not has_slot and (
            counters.queued - counters.completed >= self._max_operations - self._reserved_slots
            or counters.queued_bytes - counters.completed_bytes + counters.open_bytes - held
            >= self.max_bytes
            or (self._has_journal and self.journal.is_full)
        ):
            if self.full and isinstance(operation, _NEW):
                self.drop_new("full")
                return False
            if isinstance(operation, CreateSpan | FinishSpan) and (
                self.journal.is_full or counters.held_bytes - held >= self.max_bytes
            ):
                # Accept it, with a marker in place of a large payload.
                operation = without_payload(operation) or operation
                size = operation.size
        if self._has_journal:
            # Before it is accepted: if an exception from outside comes in between, the operation
            # is recorded again, under the same key, or it is delivered after a restart.
            self.journal.append(operation)
        # Accepted here: one statement without a call, so that nothing can interrupt it.
        if subject is None:
            counters.queued, counters.queued_bytes, self._reserved_slots, self._entering = (
                counters.queued + 1,
                counters.queued_bytes + size,
                self._reserved_slots - has_slot,
                operation,
            )
        else:
            (
                counters.queued,
                counters.queued_bytes,
                self._reserved_slots,
                self._entering,
                subject.status,
                subject.started_at,
                subject.finished_at,
            ) = (
                counters.queued + 1,
                counters.queued_bytes + size,
                self._reserved_slots - has_slot,
                operation,
                status,
                started_at,
                finished_at,
            )
        if get_ident() == self._thread_id and not self._handed_over and self._putting is None:
            # _enter() and _put(), without the calls.
            self._putting, self._entering = operation, None
            worker_queue = self.worker_queues[hash(operation.instance_id) % self._count]
            try:
                worker_queue.queue.put_nowait(operation)
            except worker_queue.refusal as error:
                accepted = self._refused(operation, error)
            else:
                accepted = True
                worker_queue.recorded, self._putting = worker_queue.recorded + 1, None
                if worker_queue.waits_for_more:
                    worker_queue.wake()
        else:
            accepted = self._enter(operation)
        if has_slot:
            self._slot_is_free()
        return accepted

    def drop_new(self, reason: str) -> None:
        """Count a new operation that is dropped."""
        self._counters.drop_new(reason)
        self._losses.dropped_in_any_thread(reason)

    def _enter(self, operation: Operation) -> bool:
        """Queue an accepted operation, or hand it over to the loop; False if the queue refuses."""
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
        """Queue the operations that other threads have recorded; in the thread of the loop."""
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
            # Interrupted in the statements above, or in its put: is it in the queue already?
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

    async def wait_for_slot(self, span: Waiting | None = None) -> None:
        """Return when the buffer has a slot for a new span, which is reserved until its create.
        Nothing for a span that another task or thread has started meanwhile."""
        with self.skip_batch_window():
            while not self._take_slot(span):
                await self._wait_for_completion()

    def _take_slot(self, span: Waiting | None) -> bool:
        with self.event_loop.lock:
            if span is not None and span.status is not SpanStatus.PENDING:
                return True
            # If open spans alone fill the journal, no completion makes room in it.
            stays_full = self.journal.is_full and not self._counters.pending
            if self.full and not stays_full and not self.closed:
                return False
            # No call from here on: an exception from outside comes before both or after.
            self._reserved_slots += 1
            if span is not None:
                span.has_slot = True
            return True

    def release_slot(self, span: Waiting) -> None:
        """Release the slot of a span that needs it no longer, if it has one."""
        with self.event_loop.lock:
            if not span.has_slot:
                return
            self._reserved_slots -= 1
            span.has_slot = False
        self._slot_is_free()

    def _slot_is_free(self) -> None:
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
        """Wake all workers: the reasons of their waits may have changed."""
        for worker_queue in self.worker_queues:
            worker_queue.wake()

    def completed(self) -> None:
        """Wake the tasks that wait for a completion: operations were delivered, or dropped."""
        if self._completion is not None:
            self._completion.set()
            self._completion = None

    def close(self) -> None:
        """End every wait for a completion: no other will come."""
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
        """Drop an operation that its queue refused: full, or broken. Only a user's own queue
        refuses any."""
        if isinstance(error, RecursionError | MemoryError):
            raise error
        self._putting = None
        self._counters.fail(error)
        self._counters.drop("queue", 1, operation.size)
        self.journal.withdrawn([operation.idempotency_key], operation, "queue")
        detail = f"the client's queue refuses them ({type(error).__name__}: {error})"
        self._losses.dropped_in_any_thread("queue", detail)
        return False
