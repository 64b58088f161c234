"""Courier: brings what is in one lane to the API, in order; run by one worker."""

from __future__ import annotations

import math

import anyio

from prefactor_core.config import QueueConfig
from prefactor_core.exceptions import PrefactorApiError
from prefactor_core.export.batch import Parcel, half
from prefactor_core.export.buffer import Lane, Outbox
from prefactor_core.export.circuit_breaker import Outage
from prefactor_core.export.counters import Ledger
from prefactor_core.export.failures import (
    Verdict,
    is_firm,
    is_of_the_api,
    is_out_of_service,
    judge_request,
    lacks_call,
    was_not_sent,
)
from prefactor_core.export.sender import Sender
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


class Courier:
    """Takes operations out of ``lane``, and sends them until they are settled.

    What it is at is kept in the lane's backlog and in itself, never in local variables: a
    worker that is ended from outside loses nothing, and another can go on.
    """

    def __init__(
        self,
        lane: Lane,
        outbox: Outbox,
        sender: Sender,
        outage: Outage,
        ledger: Ledger,
        config: QueueConfig,
    ) -> None:
        self._lane = lane
        self._outbox = outbox
        self._sender = sender
        self._outage = outage
        self._ledger = ledger
        self._window = config.batch_window
        self._max_operations = config.max_batch_operations
        self._max_retries = config.max_retries
        # How many operations a request may have, while one that does not go through is looked
        # for; and whether to send a single one next, to see if the API takes anything.
        self._limit: int | None = None
        self._single_next = False
        # What Outage.delivered was when a batch failed.
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
        home = self._outbox.home
        try:
            while not home.is_left and await self._gather() and not home.is_left:
                await self._send()
        except Exception:
            if not home.is_left:
                raise
        if home.is_left:
            await home.wait_for_end()

    async def _gather(self) -> bool:
        """Have something to send; False if there will never be more."""
        queue, backlog = self._lane.queue, self._lane.backlog
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
        lane = self._lane
        until = anyio.current_time() + self._window
        while not (lane.queue.closed or self._outbox.hurried):
            left = until - anyio.current_time()
            if left <= 0 or lane.backlog.operations + lane.queue.size() >= self._max_operations:
                break
            await lane.pause(left)

    def _take(self, operation: Operation) -> None:
        backlog = self._lane.backlog
        if backlog.taken < self._lane.found:
            self._outbox.found(operation)
        if backlog.add(operation):
            self._ledger.merge(ENVELOPE_SIZE)

    async def _send(self) -> None:
        """Make one request, or wait until one may be made."""
        now, limits = anyio.current_time(), self._sender.limits
        backlog, given_ids = self._lane.backlog, self._sender.identities.given_ids
        if self._outages_ended != self._outage.ended:
            # Most of what failed alone did so in the outage, and waits for nothing now.
            self._outages_ended = self._outage.ended
            backlog.hurry()
        single = self._single_next or self._outage.is_limited
        request = backlog.next_request(
            1 if single else self._limit or self._max_operations,
            limits.max_bytes(now),
            now=now,
            alone=limits.alone(now),
            given_ids=given_ids,
            asking=self._outage.is_limited,
            overtaking=self._outage.taken if self._draining else None,
        )
        if lost := [parcel for parcel in request if self._sender.settlement.drop_if_lost(parcel)]:
            for parcel in lost:
                backlog.remove(parcel)
            self._outbox.settled()
        elif (wait := self._outage.wait(now)) > 0:
            # The worker that has just asked lets the others, with other operations, go first.
            await self._lane.pause(1.05 * wait if self._has_just_asked else wait)
            self._has_just_asked = False
        elif request:
            one_given_id = not given_ids and limits.gives_ids(now)
            backlog.sent(request, given_ids=given_ids, one_given_id=one_given_id)
            await self._send_request(request)
        else:
            await self._lane.pause_for_more(backlog.next_due(now) - now)

    async def _send_request(self, request: list[Parcel]) -> None:
        limited = self._outage.is_limited
        single = limited or self._single_next
        try:
            await self._sender.send(request, self._settle)
        except Exception as error:
            self._failed(request, error)
        else:
            self._single_next = False
            settled = sum(parcel.settled for parcel in request)
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
            if limited or self._outages_ended != self._outage.ended:
                # The other workers wait for how this ended. It may also have been sent before
                # the failures, and show that they are over while another one is not answered.
                self._outbox.wake()
        self._outbox.settled()

    def _settle(self, parcel: Parcel) -> None:
        self._lane.backlog.remove(parcel)

    def _failed(self, request: list[Parcel], error: Exception) -> None:
        verdict = judge_request(error)
        if len(request) == 1:
            self._failed_alone(request[0], error, verdict)
        elif was_not_sent(error):
            self._limit = half(request)
        elif verdict is Verdict.TOO_LARGE and is_of_the_api(error):
            pass  # the next one is smaller
        elif lacks_call(error) and is_of_the_api(error):
            pass  # the next ones are single calls
        elif verdict is not Verdict.BUSY:
            self._failed_together(request, error, verdict)

    def _failed_together(self, request: list[Parcel], error: Exception, verdict: Verdict) -> None:
        # To look for the one at fault costs nothing but requests: here it may have been known.
        before, self._delivered_before = self._delivered_before, self._outage.delivered
        to_blame = before is not None and self._outage.delivered > before
        if to_blame or self._limit is not None:
            # By halves it comes down to one.
            self._limit = half(request)
            self._single_next = True
            if len(request) <= _FEW:
                self._sender.bulk_failed()
        elif verdict in (Verdict.REFUSED, Verdict.DENIED) or lacks_call(error):
            # It is not sent again as it was: the same would be said.
            self._single_next = True
        else:
            self._lane.backlog.hold(request, anyio.current_time() + self._outage.soon())

    def _failed_alone(self, parcel: Parcel, error: Exception, verdict: Verdict) -> None:
        if parcel.in_bulk and lacks_call(error) and is_of_the_api(error):
            # That is about bulk, and not about what was asked of it.
            parcel.in_bulk = False
            return
        outage, now = self._outage, anyio.current_time()
        refused = verdict in (Verdict.REFUSED, Verdict.TOO_LARGE)
        has_bulk = parcel.operation.type not in self._sender.limits.alone(now)
        if was_not_sent(error) or (
            refused and not has_bulk and is_firm(error) and outage.failures == 1
        ):
            self._give_up(parcel, error, "refused")
            return
        if refused and has_bulk and not parcel.in_bulk:
            # Bulk tells an operation that is refused from an API that refuses everything.
            self._sender.ask_bulk(parcel, error)
            return
        parcel.in_bulk = False
        if verdict is not Verdict.BUSY:
            before, parcel.taken_before = parcel.taken_before, outage.taken
            if before is not None and outage.taken > before:
                # It is this one that the API fails at: from now on it goes alone.
                parcel.alone = True
                parcel.faults += 1
                if _is_too_large(error) and self._sender.shrink(parcel):
                    return
                if self._is_to_blame(parcel, error, refused=refused):
                    given_up = refused or verdict is Verdict.DENIED
                    self._give_up(parcel, error, "refused" if given_up else "retries_exhausted")
                    return
        parcel.overtaken = self._draining and parcel.attempts > self._retries(error)
        wait = outage.wait(now)
        pause = max(outage.soon(), wait if wait < math.inf else 0.0)
        if outage.is_limited:
            pause *= 2  # another operation is to show whether the API is back, if there is one
        elif parcel.faults and not self._draining:
            pause = max(pause, outage.backoff.delay(parcel.faults))
        self._lane.backlog.put_aside(parcel, now + pause)

    def _is_to_blame(self, parcel: Parcel, error: Exception, *, refused: bool) -> bool:
        retries = 0 if refused else self._retries(error)
        if self._draining and parcel.attempts > retries:
            return True  # there may be nothing else that could be taken in between
        return parcel.faults >= max(1, retries)

    def _retries(self, error: Exception) -> int:
        return self._max_retries * (_PATIENCE if is_out_of_service(error) else 1)

    def _give_up(self, parcel: Parcel, error: Exception, reason: str) -> None:
        self._sender.settlement.give_up(parcel, error, reason)
        self._settle(parcel)


def _is_too_large(error: Exception) -> bool:
    return isinstance(error, PrefactorApiError) and error.status_code == _TOO_LARGE
