"""Delivery: the parts that bring operations from the outbox to the API, put together."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from prefactor_core.backoff import Backoff
from prefactor_core.config import QueueConfig
from prefactor_core.delivery.courier import Courier
from prefactor_core.delivery.identity import Identities
from prefactor_core.delivery.ledger import Ledger
from prefactor_core.delivery.outage import Outage
from prefactor_core.delivery.outbox import Outbox
from prefactor_core.delivery.sender import Sender
from prefactor_core.delivery.status_poll import StatusPoll
from prefactor_core.home import Home
from prefactor_core.operations import Operation
from prefactor_core.queue.base import Queue
from prefactor_core.queue.workers import Workers

if TYPE_CHECKING:
    from prefactor_core.api.client import ApiClient


class Delivery:
    """One worker for each queue, while ``async with Delivery(...):`` is open.

    When it is left, the queues close and what is pending is still delivered, for
    ``drain_timeout`` seconds at most; the rest is dropped, and counted.
    """

    def __init__(
        self,
        api: ApiClient,
        queues: Sequence[Queue[Operation]],
        config: QueueConfig,
        backoff: Backoff,
        drain_timeout: float,
        poll_interval: float,
    ) -> None:
        self.home = Home.here()
        self.ledger = Ledger()
        self.identities = Identities()
        self.outbox = Outbox(queues, self.ledger, config, self.home)
        self._outage = Outage(backoff)
        self.sender = Sender(
            api, self.ledger, self.identities, self._outage, config.max_batch_bytes
        )
        self._couriers = [
            Courier(lane, self.outbox, self.sender, self._outage, self.ledger, config)
            for lane in self.outbox.lanes
        ]
        self._poll = StatusPoll(
            api, self.identities, self._outage, self.ledger, self.home, poll_interval
        )
        self._workers = Workers(
            [*(courier.serve for courier in self._couriers), self._poll.serve],
            self._close_queues,
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
        try:
            await self._workers.__aexit__(exc_type, error, traceback)  # noqa: ASYNC102
        finally:
            self.ledger.drop_rest("drain_timeout")
            self.outbox.close()

    def is_away(self) -> bool:
        """Whether there is an outage."""
        return self._outage.told

    async def _close_queues(self) -> None:
        self._poll.close()
        self.outbox.take_over()
        # No wait of ours is worth more than the little time that is left.
        self._outage.hurry()
        for lane in self.outbox.lanes:
            try:
                await lane.queue.close(1)
            finally:
                lane.hurry()
