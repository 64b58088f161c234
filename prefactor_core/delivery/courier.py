"""Courier: brings what is in one lane to the API, in order; run by one worker."""

from __future__ import annotations

import math

import anyio

from prefactor_core.config import QueueConfig
from prefactor_core.delivery.backlog import Parcel, half
from prefactor_core.delivery.ledger import Ledger
from prefactor_core.delivery.outage import Outage
from prefactor_core.delivery.outbox import Lane, Outbox
from prefactor_core.delivery.sender import Sender
from prefactor_core.delivery.verdict import Verdict, judge_request, may_be_its_fault
from prefactor_core.exceptions import PrefactorApiError
from prefactor_core.operations import ENVELOPE_SIZE, Operation
from prefactor_core.queue.base import QueueClosedError


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
        # for.
        self._limit: int | None = None
        # Parcels at which the API fails while it takes others; these overtake them.
        self._faulty: list[Parcel] = []

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
        # What has to wait for its turn does not keep others out.
        faulty = self._waiting_for_their_turn()
        most = self._max_operations - (0 if faulty else backlog.operations)
        await queue.drain(self._take, most)
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

    def _waiting_for_their_turn(self) -> list[Parcel]:
        if self._faulty:
            # At the end, no wait of ours is worth more than the little time that is left.
            now = math.inf if self._lane.queue.closed else anyio.current_time()
            self._faulty = [parcel for parcel in self._faulty if parcel.due > now]
        return self._faulty

    async def _send(self) -> None:
        backlog = self._lane.backlog
        request = backlog.next_request(
            self._limit or self._max_operations,
            self._sender.max_bytes,
            alone=self._sender.alone,
            given_ids=self._sender.identities.given_ids,
            aside=self._waiting_for_their_turn(),
        )
        settled = [parcel for parcel in request if self._sender.drop_if_lost(parcel)]
        if not settled:
            if await self._wait_for_turn(request[0]):
                return
            round, sent_at = self._outage.round, anyio.current_time()
            try:
                settled = await self._sender.send(request)
            except Exception as error:
                settled = await self._failed(request, error, round, sent_at)
            else:
                # Twice as much as what went through, until all goes through again.
                if self._limit is not None:
                    self._limit = min(2 * self._limit, self._max_operations)
        for parcel in settled:
            backlog.remove(parcel)
        self._outbox.settled()

    async def _wait_for_turn(self, first: Parcel) -> bool:
        """Wait until a request may be sent; whether there may be something else to send now."""
        while (seconds := self._outage.wait(anyio.current_time())) > 0:
            await self._lane.pause(seconds)
        if first not in self._waiting_for_their_turn():
            return False
        await self._lane.pause(first.due - anyio.current_time())
        return True

    async def _failed(
        self, request: list[Parcel], error: Exception, round: int, sent_at: float
    ) -> list[Parcel]:
        """A whole request failed; the parcels that are given up for it, one at most."""
        verdict = judge_request(error)
        if verdict is Verdict.REFUSED:
            # Of several, the API does not say which: by halves it comes down to one, and
            # what that one's own endpoint says decides.
            self._split(request)
            return []
        self._ledger.retry()
        for parcel in request:
            parcel.attempts += 1
        exhausted = max(parcel.attempts for parcel in request) > self._max_retries
        # Is it the API, or something in this request? What it took last, it takes again.
        patience = verdict is Verdict.BUSY or (
            isinstance(error, PrefactorApiError) and error.retry_after is not None
        )
        in_doubt = (may_be_its_fault(error) or exhausted) and not patience
        if not in_doubt or not await self._sender.probe():
            took = anyio.current_time() - sent_at
            self._sender.unanswered(error, round, took)
            return []
        if len(request) > 1:
            self._split(request)
            return []
        (parcel,) = request
        parcel.alone = True
        parcel.faults += 1
        if parcel.faults > self._max_retries:
            reason = "refused" if verdict is Verdict.DENIED else "retries_exhausted"
            self._sender.give_up(parcel, error, reason)
            return [parcel]
        parcel.due = anyio.current_time() + self._outage.backoff.delay(parcel.faults)
        self._faulty.append(parcel)
        return []

    def _split(self, request: list[Parcel]) -> None:
        self._limit = half(request)
        self._sender.bulk_failed()
