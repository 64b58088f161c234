"""Worker: brings what is in one worker_queue to the API, in order; run by one worker."""

from __future__ import annotations

import math

import anyio

from prefactor_core.config import QueueConfig
from prefactor_core.exceptions import PrefactorApiError
from prefactor_core.export.batch import BatchItem, half
from prefactor_core.export.buffer import Buffer
from prefactor_core.export.circuit_breaker import CircuitBreaker
from prefactor_core.export.counters import Counters
from prefactor_core.export.failures import (
    FailureKind,
    is_firm,
    is_of_the_api,
    is_out_of_service,
    judge_request,
    lacks_call,
    was_not_sent,
)
from prefactor_core.export.sender import Sender
from prefactor_core.export.worker_queue import WorkerQueue
from prefactor_core.operations import ENVELOPE_SIZE, Operation
from prefactor_core.queue.base import QueueClosedError

_AHEAD = 4
"""Requests' worth of operations that are taken out of the queue at a time: a run that is
registered does not wait behind all of another run's."""

_PATIENCE = 3
"""Times as many failures blame an operation if they speak of the state of the API."""

_FEW = 2
"""A bulk request of so few operations fails for one of them, or because there is no bulk."""

_TOO_LARGE = 413


class Worker:
    """Takes operations out of ``worker_queue``, and sends them until they are settled.

    What it is at is kept in the worker_queue's backlog and in itself, never in local variables: a
    worker that is ended from outside loses nothing, and another can go on.
    """

    def __init__(
        self,
        worker_queue: WorkerQueue,
        buffer: Buffer,
        sender: Sender,
        outage: CircuitBreaker,
        counters: Counters,
        config: QueueConfig,
    ) -> None:
        self._worker_queue = worker_queue
        self._buffer = buffer
        self._sender = sender
        self._breaker = outage
        self._counters = counters
        self._window = config.batch_window
        self._max_operations = config.max_batch_operations
        self._max_retries = config.max_retries
        # How many operations a request may have, while one that does not go through is looked
        # for; and whether to send a single one next, to see if the API takes anything.
        self._limit: int | None = None
        self._single_next = False
        # What CircuitBreaker.delivered was when a batch failed.
        self._delivered_before: int | None = None
        # How many bulk requests in a row the API has stopped at an item.
        self._stopped = 0
        self._outages_ended = 0
        self._has_just_asked = False
        self._draining = False

    async def serve(self) -> None:
        """Deliver until the queue is closed and all of it is settled.

        Nothing in a fork of the process: what is here is the parent's to deliver.
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
        """Have something to send; False if there will never be more."""
        queue, backlog = self._worker_queue.queue, self._worker_queue.backlog
        if not backlog:
            try:
                self._take(await queue.get())
            except QueueClosedError:
                return False
            await self._wait_for_more()
        if queue.closed and not self._draining:
            self._draining = True
            backlog.drain()
        most = self._max_operations
        await queue.drain(self._take, max(most, _AHEAD * most - backlog.operations))
        return True

    async def _wait_for_more(self) -> None:
        worker_queue = self._worker_queue
        until = anyio.current_time() + self._window
        while not (worker_queue.queue.closed or self._buffer.hurried):
            left = until - anyio.current_time()
            if (
                left <= 0
                or worker_queue.backlog.operations + worker_queue.queue.size()
                >= self._max_operations
            ):
                break
            await worker_queue.pause(left)

    def _take(self, operation: Operation) -> None:
        backlog = self._worker_queue.backlog
        if backlog.taken < self._worker_queue.found:
            self._buffer.found(operation)
        if backlog.add(operation):
            self._counters.merge(ENVELOPE_SIZE)

    async def _send(self) -> None:
        """Make one request, or wait until one may be made."""
        now, limits = anyio.current_time(), self._sender.limits
        backlog, given_ids = self._worker_queue.backlog, self._sender.identities.given_ids
        if self._outages_ended != self._breaker.ended:
            # Most of what failed alone did so in the outage, and waits for nothing now.
            self._outages_ended = self._breaker.ended
            backlog.hurry()
        single = self._single_next or self._breaker.is_limited
        request = backlog.next_request(
            1 if single else self._limit or self._max_operations,
            limits.max_bytes(now),
            now=now,
            alone=limits.alone(now),
            given_ids=given_ids,
            asking=self._breaker.is_limited,
            overtaking=self._breaker.taken if self._draining else None,
        )
        if lost := [item for item in request if self._sender.completion.drop_if_lost(item)]:
            for item in lost:
                backlog.remove(item)
            self._buffer.settled()
        elif (wait := self._breaker.wait(now)) > 0:
            # The worker that has just asked lets the others, with other operations, go first.
            await self._worker_queue.pause(1.05 * wait if self._has_just_asked else wait)
            self._has_just_asked = False
        elif request:
            one_given_id = not given_ids and limits.gives_ids(now)
            backlog.sent(request, given_ids=given_ids, one_given_id=one_given_id)
            await self._send_request(request)
        else:
            await self._worker_queue.pause_for_more(backlog.next_due(now) - now)

    async def _send_request(self, request: list[BatchItem]) -> None:
        limited = self._breaker.is_limited
        single = limited or self._single_next
        try:
            await self._sender.send(request, self._settle)
        except Exception as error:
            self._failed(request, error)
        else:
            self._single_next = False
            settled = sum(item.settled for item in request)
            self._stopped = self._stopped + 1 if settled < len(request) else 0
            if self._stopped > 1:
                # The rest is sent again each time: it shall be no more than what is done.
                self._limit = max(1, 2 * settled)
            elif not single:
                self._delivered_before = None
                # Twice as much as what went through, until all goes through again.
                if self._limit is not None:
                    self._limit *= 2
                    if self._limit >= self._max_operations:
                        self._limit = None
        finally:
            if limited:
                self._has_just_asked = True
            if limited or self._outages_ended != self._breaker.ended:
                # The other workers wait for how this ended. It may also have been sent before
                # the failures, and show that they are over while another one is not answered.
                self._buffer.wake()
        self._buffer.settled()

    def _settle(self, item: BatchItem) -> None:
        self._worker_queue.backlog.remove(item)

    def _failed(self, request: list[BatchItem], error: Exception) -> None:
        kind = judge_request(error)
        if len(request) == 1:
            self._failed_alone(request[0], error, kind)
        elif was_not_sent(error):
            self._limit = half(request)
        elif kind is FailureKind.TOO_LARGE and is_of_the_api(error):
            pass  # the next one is smaller
        elif lacks_call(error) and is_of_the_api(error):
            pass  # the next ones are single calls
        elif kind is not FailureKind.BUSY:
            self._failed_together(request, error, kind)

    def _failed_together(
        self, request: list[BatchItem], error: Exception, kind: FailureKind
    ) -> None:
        # To look for the one at fault costs nothing but requests: here it may have been known.
        before, self._delivered_before = self._delivered_before, self._breaker.delivered
        to_blame = before is not None and self._breaker.delivered > before
        if to_blame or self._limit is not None:
            # By halves it comes down to one.
            self._limit = half(request)
            self._single_next = True
            if len(request) <= _FEW:
                self._sender.bulk_failed()
        elif kind in (FailureKind.REFUSED, FailureKind.DENIED) or lacks_call(error):
            # It is not sent again as it was: the same would be said.
            self._single_next = True
        else:
            self._worker_queue.backlog.hold(request, anyio.current_time() + self._breaker.soon())

    def _failed_alone(self, item: BatchItem, error: Exception, kind: FailureKind) -> None:
        if item.in_bulk and lacks_call(error) and is_of_the_api(error):
            # That is about bulk, and not about what was asked of it.
            item.in_bulk = False
            return
        breaker, now = self._breaker, anyio.current_time()
        refused = kind in (FailureKind.REFUSED, FailureKind.TOO_LARGE)
        has_bulk = item.operation.type not in self._sender.limits.alone(now)
        if was_not_sent(error) or (
            refused and not has_bulk and is_firm(error) and breaker.failures == 1
        ):
            self._give_up(item, error, "refused")
            return
        if refused and has_bulk and not item.in_bulk:
            # Bulk tells an operation that is refused from an API that refuses everything.
            self._sender.ask_bulk(item, error)
            return
        item.in_bulk = False
        if kind is not FailureKind.BUSY:
            before, item.taken_before = item.taken_before, breaker.taken
            if before is not None and breaker.taken > before:
                # It is this one that the API fails at: from now on it goes alone.
                item.alone = True
                item.faults += 1
                if _is_too_large(error) and self._sender.shrink(item):
                    return
                if self._is_to_blame(item, error, refused=refused):
                    given_up = refused or kind is FailureKind.DENIED
                    self._give_up(item, error, "refused" if given_up else "retries_exhausted")
                    return
        item.overtaken = self._draining and item.attempts > self._retries(error)
        wait = breaker.wait(now)
        pause = max(breaker.soon(), wait if wait < math.inf else 0.0)
        if breaker.is_limited:
            pause *= 2  # another operation is to show whether the API is back, if there is one
        elif item.faults and not self._draining:
            pause = max(pause, breaker.backoff.delay(item.faults))
        self._worker_queue.backlog.put_aside(item, now + pause)

    def _is_to_blame(self, item: BatchItem, error: Exception, *, refused: bool) -> bool:
        retries = 0 if refused else self._retries(error)
        if self._draining and item.attempts > retries:
            return True  # there may be nothing else that could be taken in between
        return item.faults >= max(1, retries)

    def _retries(self, error: Exception) -> int:
        return self._max_retries * (_PATIENCE if is_out_of_service(error) else 1)

    def _give_up(self, item: BatchItem, error: Exception, reason: str) -> None:
        self._sender.completion.give_up(item, error, reason)
        self._settle(item)


def _is_too_large(error: Exception) -> bool:
    return isinstance(error, PrefactorApiError) and error.status_code == _TOO_LARGE
