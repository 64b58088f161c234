"""Delivery: the API, its state and the counters, which all shards of a relay share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefactor_core.config import QueueConfig
from prefactor_core.export.api_limits import ApiLimits
from prefactor_core.export.circuit_breaker import CircuitBreaker
from prefactor_core.export.counters import Counters
from prefactor_core.export.loss_report import LossReport
from prefactor_core.export.worker_queue import WorkerQueue
from prefactor_core.queue.event_loop import EventLoop
from prefactor_core.queue.retry_policy import Backoff
from prefactor_core.relay.account import Account
from prefactor_core.relay.terminations import Terminations

if TYPE_CHECKING:
    from prefactor_core.api.client import ApiClient


class Delivery:
    """The API client, circuit breaker, limits and counters of all shards.

    ``terminated``, ``buried``: numbers of runs. ``worker_queues``: those of the shards that are
    read now.
    """

    def __init__(
        self,
        api: ApiClient,
        account: Account,
        config: QueueConfig,
        backoff: Backoff,
        terminations: Terminations,
    ) -> None:
        self.api = api
        self.account = account
        self.config = config
        self.event_loop = EventLoop.here()
        self.breaker = CircuitBreaker(backoff)
        self.counters = Counters(self.breaker)
        self.losses = LossReport(self.counters, self.event_loop, "kept aside for `relay refused`")
        self.limits = ApiLimits(self.counters, config.max_batch_bytes)
        self.terminations = terminations
        self.terminated = self.buried = 0
        self.worker_queues: set[WorkerQueue] = set()

    def wake(self) -> None:
        """Wake the workers of all shards: what they wait for may have happened."""
        for worker_queue in self.worker_queues:
            worker_queue.wake()
