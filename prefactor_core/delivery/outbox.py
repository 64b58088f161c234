"""Outbox: where an operation enters the queue that its agent instance keeps to."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from prefactor_core.delivery.ledger import Ledger
from prefactor_core.log import log
from prefactor_core.operations import Operation
from prefactor_core.queue.base import Queue

logger = logging.getLogger("prefactor_core.delivery.outbox")


class Outbox:
    """Puts operations into queues; never waits, never raises into the agent.

    All operations of one agent instance go into the same queue, so that one worker sends
    them in the order in which they were recorded.
    """

    def __init__(self, queues: Sequence[Queue[Operation]], ledger: Ledger) -> None:
        self._queues = queues
        self._ledger = ledger
        self._warned = False

    def record(self, operation: Operation) -> None:
        """Accept an operation and queue it."""
        key = operation.instance_id or operation.idempotency_key
        queue = self._queues[hash(key) % len(self._queues)]
        self._ledger.accept()
        try:
            queue.put_nowait(operation)
        except Exception as error:
            # Only a queue of the user's own can do this (full, or broken). The agent goes
            # on, and the loss is counted.
            self._ledger.fail(error)
            self._ledger.drop("queue")
            if not self._warned:
                self._warned = True
                log(
                    logger,
                    logging.WARNING,
                    "the Prefactor client's queue takes no operations (%s: %s); they are dropped "
                    "and counted",
                    type(error).__name__,
                    error,
                )
