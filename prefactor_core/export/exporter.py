"""Exporter: the parts that bring operations from the buffer to the API, put together."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Protocol, Self

import anyio

from prefactor_core.config import QueueConfig
from prefactor_core.export.api_limits import ApiLimits
from prefactor_core.export.buffer import Buffer
from prefactor_core.export.carrier import Carrier
from prefactor_core.export.circuit_breaker import CircuitBreaker
from prefactor_core.export.completion import Completion
from prefactor_core.export.counters import Counters
from prefactor_core.export.identity import Identities
from prefactor_core.export.loss_report import LossReport
from prefactor_core.export.sender import Sender
from prefactor_core.export.worker import Worker
from prefactor_core.journal.base import NO_JOURNAL, Journal
from prefactor_core.operations import Operation
from prefactor_core.queue.base import Queue
from prefactor_core.queue.event_loop import EventLoop
from prefactor_core.queue.retry_policy import Backoff
from prefactor_core.queue.workers import Workers


class Job(Protocol):
    """Something that a task of the exporter does until it is closed."""

    async def serve(self) -> None:
        """Do it, until :meth:`close`; called again after an error."""

    def close(self) -> None:
        """End :meth:`serve`."""


class Exporter:
    """One worker for each queue, while ``async with Exporter(...):`` is open.

    When it is left, the queues close and pending operations are still delivered, for
    ``drain_timeout`` seconds at most; the rest is dropped, and counted.
    """

    def __init__(
        self,
        carrier: Carrier,
        queues: Sequence[Queue[Operation]],
        config: QueueConfig,
        backoff: Backoff,
        drain_timeout: float,
        event_loop: EventLoop | None = None,
        journal: Journal = NO_JOURNAL,
    ) -> None:
        self._drain_timeout = drain_timeout
        self._journal = journal
        self.event_loop = EventLoop.here() if event_loop is None else event_loop
        self.breaker = CircuitBreaker(backoff)
        self.counters = Counters(self.breaker, journal)
        self.identities = Identities()
        self._losses = LossReport(self.counters, self.event_loop)
        self.buffer = Buffer(queues, self.counters, self._losses, config, self.event_loop, journal)
        limits = ApiLimits(self.counters, config.max_batch_bytes)
        completion = Completion(
            self.counters, self.identities, self.breaker, limits, self._losses, journal
        )
        self.sender = Sender(carrier, self.counters, self.breaker, completion)
        workers = [
            Worker(
                worker_queue,
                self.buffer,
                self.sender,
                self.breaker,
                self.counters,
                config,
                journal,
            )
            for worker_queue in self.buffer.worker_queues
        ]
        self._jobs: list[Job] = [self._losses]
        self._serving = [*(worker.serve for worker in workers), self._losses.serve]
        self._background: list[Callable[[], Awaitable[None]]] = []

    def run_also(self, job: Job) -> None:
        """Run another job beside the workers; before the exporter is entered."""
        self._jobs.append(job)
        self._serving.append(job.serve)

    def run_in_background(self, serve: Callable[[], Awaitable[None]]) -> None:
        """Run what the workers need; it is cancelled after them. Before the exporter is entered."""
        self._background.append(serve)

    async def __aenter__(self) -> Self:
        # Between its queue and the batcher, an operation is in a local variable for an instant:
        # Ctrl-C would lose it there.
        uninterrupted = self.event_loop.without_ctrl_c
        self._workers = Workers(
            [uninterrupted(serve) for serve in self._serving],
            self._close_queues,
            drain_timeout=self._drain_timeout,
            background=[uninterrupted(serve) for serve in self._background],
        )
        await self._workers.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self._workers.__aexit__(exc_type, error, traceback)  # noqa: ASYNC102
        finally:
            self.sender.close()
            # What the journal has stays pending, for the next process.
            self.counters.drop_rest("drain_timeout", self._journal.pending)
            self.buffer.close()
            self.identities.close()

    @property
    def is_away(self) -> bool:
        """Whether there is an outage."""
        return self.breaker.is_outage

    @property
    def answers(self) -> int:
        """How many requests have succeeded."""
        return self.breaker.answers

    @property
    def takes_environment(self) -> bool:
        """Whether the API accepts a runtime environment that is added, as far as it has shown.

        True in a thread without a clock of a loop: after a refusal it is left out.
        """
        try:
            now = anyio.current_time()
        except anyio.NoEventLoopError:
            return True
        return self.sender.limits.takes_environment(now)

    def skip_batch_window(self) -> AbstractContextManager[None]:
        """See :meth:`Buffer.skip_batch_window`."""
        return self.buffer.skip_batch_window()

    def gave_up_waiting(self, seconds: float) -> None:
        """See :meth:`Sender.gave_up_waiting`."""
        self.sender.gave_up_waiting(seconds)

    async def _close_queues(self) -> None:
        for job in self._jobs:
            job.close()
        self.buffer.take_over()
        now = anyio.current_time()
        self.breaker.drain(now, now + self._drain_timeout)
        for worker_queue in self.buffer.worker_queues:
            try:
                await worker_queue.queue.close(1)
            finally:
                worker_queue.wake()
