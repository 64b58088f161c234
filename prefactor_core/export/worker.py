"""Worker: takes the operations out of one worker queue and sends them, in order."""

from __future__ import annotations

import math

import anyio

from prefactor_core.config import QueueConfig
from prefactor_core.export.batch import half
from prefactor_core.export.batch_item import BatchItem
from prefactor_core.export.buffer import Buffer
from prefactor_core.export.circuit_breaker import CircuitBreaker
from prefactor_core.export.counters import Counters
from prefactor_core.export.failures import (
    FailureKind,
    classify_request,
    is_firm,
    is_of_the_api,
    is_out_of_service,
    is_too_large,
    lacks_call,
    was_not_sent,
)
from prefactor_core.export.sender import Sender
from prefactor_core.export.worker_queue import WorkerQueue
from prefactor_core.journal.base import NO_JOURNAL, Journal
from prefactor_core.operations import ENVELOPE_SIZE, Operation
from prefactor_core.queue.base import QueueClosedError

_READ_AHEAD = 4
"""Requests' worth of operations that are taken out of the queue at a time: a registered run does
not wait behind all operations of another one."""

_OUTAGE_RETRIES = 3
"""Times as many failures blame an operation if they come from the state of the API."""

_FEW = 2
"""A bulk request of so few operations fails for one of them, or because there is no bulk."""


class Worker:
    """Takes operations out of ``worker_queue``, and sends them until they are completed.

    Its state is in the worker queue and in itself, never in local variables: if the task is
    cancelled from outside, nothing is lost, and another task can go on.
    """

    def __init__(
        self,
        worker_queue: WorkerQueue,
        buffer: Buffer,
        sender: Sender,
        breaker: CircuitBreaker,
        counters: Counters,
        config: QueueConfig,
        journal: Journal = NO_JOURNAL,
    ) -> None:
        self._journal = journal
        self._worker_queue = worker_queue
        self._queue = worker_queue.queue
        self._batcher = worker_queue.batcher
        self._buffer = buffer
        self._sender = sender
        self._breaker = breaker
        self._counters = counters
        self._window = config.batch_window
        self._max_operations = config.max_batch_operations
        self._max_retries = config.max_retries
        # How many operations a request may have, while the one at fault is searched for by halves;
        # and whether to send a single one next, to see whether the API accepts anything.
        self._limit: int | None = None
        self._single_next = False
        # What Counters.delivered was when a batch failed.
        self._delivered_before: int | None = None
        # How many bulk requests in a row the API has stopped at an item.
        self._stopped = 0
        self._recoveries = 0
        self._has_just_probed = False
        self._draining = self._is_last_chance = False

    async def serve(self) -> None:
        """Deliver until the queue is closed and all of it is completed.

        In a fork of the process, deliver nothing: all operations here are the parent's.
        """
        event_loop = self._buffer.event_loop
        try:
            while not event_loop.is_forked and await self._gather() and not event_loop.is_forked:
                await self._send()
        except Exception:
            if not event_loop.is_forked:
                raise
        if event_loop.is_forked:
            await event_loop.wait_for_end()

    async def _gather(self) -> bool:
        """Wait until there is something to send; return False if there will never be more."""
        queue, batcher = self._queue, self._batcher
        if not batcher:
            try:
                self._add(await queue.get())
            except QueueClosedError:
                return False
            await self._wait_for_more()
        if queue.closed and not self._draining:
            self._draining = True
            # What the journal has need not be given up, nor sent out of order, to save the rest.
            self._is_last_chance = not self._journal.is_on
            batcher.drain()
        most = self._max_operations
        await queue.drain(self._add, max(most, _READ_AHEAD * most - batcher.operations))
        return True

    async def _wait_for_more(self) -> None:
        """Wait until the batch window is over, or a request is full, or a caller waits."""
        until = anyio.current_time() + self._window
        while not (self._queue.closed or self._buffer.waiters):
            left = until - anyio.current_time()
            if left <= 0 or self._batcher.operations + self._queue.size() >= self._max_operations:
                break
            await self._worker_queue.pause(left)

    def _add(self, operation: Operation) -> None:
        if self._batcher.added < self._worker_queue.initial:
            self._buffer.accept_initial(operation)
        if self._batcher.add(operation):
            self._counters.merge(ENVELOPE_SIZE)

    async def _send(self) -> None:
        """Make one request, or wait until one may be made."""
        now, limits = anyio.current_time(), self._sender.limits
        breaker, batcher = self._breaker, self._batcher
        given_ids = self._sender.identities.given_ids
        if self._recoveries != breaker.recoveries:
            # Most items that failed alone did so in the outage: they wait for nothing now.
            self._recoveries = breaker.recoveries
            batcher.retry_now()
        single = self._single_next or breaker.is_open
        batch = batcher.next_batch(
            1 if single else self._limit or self._max_operations,
            limits.max_bytes(now),
            now=now,
            alone=limits.alone(now),
            given_ids=given_ids,
            probing=breaker.is_open,
            overtaking=breaker.accepted if self._is_last_chance else None,
        )
        if [item for item in batch if self._sender.completion.drop_if_lost(item)]:
            self._remove_completed(batch)
            self._buffer.completed()
        elif (wait := breaker.wait(now)) > 0:
            # The worker that has just probed lets the others, with other operations, go first.
            await self._worker_queue.pause(1.05 * wait if self._has_just_probed else wait)
            self._has_just_probed = False
        elif batch:
            one_given_id = not given_ids and limits.gives_ids(now)
            batcher.mark_sent(batch, given_ids=given_ids, one_given_id=one_given_id)
            self._journal.sending(batch)
            await self._send_batch(batch)
        else:
            await self._worker_queue.pause_for_more(batcher.next_due(now) - now)

    async def _send_batch(self, batch: list[BatchItem]) -> None:
        is_probe = self._breaker.is_open
        single = is_probe or self._single_next
        try:
            await self._sender.send(batch)
        except Exception as error:
            self._failed(batch, error)
        else:
            self._succeeded(batch, single)
        finally:
            self._remove_completed(batch)
            if is_probe:
                self._has_just_probed = True
            if is_probe or self._recoveries != self._breaker.recoveries:
                # The other workers wait for the probe. This request may also be older than the
                # failures, and show that they are over while the probe is not answered yet.
                self._buffer.wake()
        self._buffer.completed()

    def _remove_completed(self, batch: list[BatchItem]) -> None:
        self._journal.settled(item for item in batch if item.completed)
        self._batcher.remove_completed(batch)

    def _succeeded(self, batch: list[BatchItem], single: bool) -> None:
        self._single_next = False
        completed = sum(item.completed for item in batch)
        self._stopped = self._stopped + 1 if completed < len(batch) else 0
        if self._stopped > 1:
            # The rest is sent again each time: let it be no more than what was completed.
            self._limit = max(1, 2 * completed)
        elif not single:
            self._delivered_before = None
            # Twice as much as has just succeeded, until a full request succeeds.
            if self._limit is not None:
                self._limit *= 2
                if self._limit >= self._max_operations:
                    self._limit = None

    def _failed(self, batch: list[BatchItem], error: Exception) -> None:
        kind = classify_request(error)
        if len(batch) == 1:
            self._failed_alone(batch[0], error, kind)
        elif was_not_sent(error):
            self._limit = half(batch)
        elif is_of_the_api(error) and (kind is FailureKind.TOO_LARGE or lacks_call(error)):
            pass  # the Sender has noted it: the next request is smaller, or a single call
        elif kind is not FailureKind.BUSY:
            self._failed_together(batch, error, kind)

    def _failed_together(self, batch: list[BatchItem], error: Exception, kind: FailureKind) -> None:
        # The API may have known these operations, but to search for the one at fault costs
        # nothing but requests.
        delivered = self._counters.delivered
        before, self._delivered_before = self._delivered_before, delivered
        if (before is not None and delivered > before) or self._limit is not None:
            # The batch is to blame. By halves it comes down to one item.
            self._limit = half(batch)
            self._single_next = True
            if len(batch) <= _FEW:
                self._sender.bulk_failed()
        elif kind in (FailureKind.REFUSED, FailureKind.DENIED) or lacks_call(error):
            # The same batch would get the same answer.
            self._single_next = True
        else:
            self._batcher.hold(batch, anyio.current_time() + self._breaker.first_wait())

    def _failed_alone(self, item: BatchItem, error: Exception, kind: FailureKind) -> None:
        if item.in_bulk and lacks_call(error) and is_of_the_api(error):
            # The error is about bulk, and not about the item.
            item.in_bulk = False
            return
        breaker, now = self._breaker, anyio.current_time()
        refused = kind in (FailureKind.REFUSED, FailureKind.TOO_LARGE)
        has_bulk = item.operation.type not in self._sender.limits.alone(now)
        if was_not_sent(error) or (
            refused and not has_bulk and is_firm(error) and breaker.failures == 1
        ):
            self._sender.completion.give_up(item, error, "refused")
            return
        if refused and has_bulk and not item.in_bulk:
            # Bulk tells an operation that is refused from an API that refuses everything.
            self._sender.confirm_in_bulk(item, error)
            return
        item.in_bulk = False
        if kind is not FailureKind.BUSY:
            before, item.accepted_before = item.accepted_before, breaker.accepted
            if before is not None and breaker.accepted > before:
                # The API fails at this item: from now on it goes alone.
                item.alone = True
                item.faults += 1
                if is_too_large(error) and item.shrink():
                    return
                if self._is_to_blame(item, error, refused=refused):
                    given_up = refused or kind is FailureKind.DENIED
                    reason = "refused" if given_up else "retries_exhausted"
                    self._sender.completion.give_up(item, error, reason)
                    return
        item.overtaken = self._is_last_chance and item.attempts > self._retries(error)
        wait = breaker.wait(now)
        pause = max(breaker.first_wait(), wait if wait < math.inf else 0.0)
        if breaker.is_open:
            pause *= 2  # the next probe is another operation, if there is one
        elif item.faults and not self._draining:
            pause = max(pause, breaker.backoff.delay(item.faults))
        self._batcher.defer(item, now + pause)

    def _is_to_blame(self, item: BatchItem, error: Exception, *, refused: bool) -> bool:
        retries = 0 if refused else self._retries(error)
        if self._is_last_chance and item.attempts > retries:
            return True  # there may be no other item that the API could accept in between
        return item.faults >= max(1, retries)

    def _retries(self, error: Exception) -> int:
        return self._max_retries * (_OUTAGE_RETRIES if is_out_of_service(error) else 1)
