"""Courier: brings what is in one lane to the API, in order; run by one worker."""

from __future__ import annotations

import anyio

from prefactor_core.config import QueueConfig
from prefactor_core.delivery.backlog import Parcel, half
from prefactor_core.delivery.ledger import Ledger
from prefactor_core.delivery.outage import Outage
from prefactor_core.delivery.outbox import Lane, Outbox
from prefactor_core.delivery.sender import Sender
from prefactor_core.delivery.verdict import Verdict, judge_request
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
        self._max_faults = max(1, config.max_retries)
        self._max_retries = config.max_retries
        # How many operations a request may have, while one that may not go through is looked
        # for; and parcels that others overtake, to see whether the API takes those.
        self._limit: int | None = None
        self._aside: list[Parcel] = []

    async def serve(self) -> None:
        """Deliver until the queue is closed and all of it is settled."""
        while await self._gather():
            await self._send()

    async def _gather(self) -> bool:
        """Have something to send; False if there will never be more."""
        queue, backlog = self._lane.queue, self._lane.backlog
        if not backlog:
            try:
                self._take(await queue.get())
            except QueueClosedError:
                return False
            await self._wait_for_more()
        # What is behind those aside may show whose fault it is.
        most = self._max_operations - (0 if self._aside else backlog.operations)
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
            self._ledger.accept(operation)
        if backlog.add(operation):
            self._ledger.merge(ENVELOPE_SIZE)

    async def _send(self) -> None:
        backlog = self._lane.backlog
        request = backlog.next_request(
            self._limit or self._max_operations,
            self._sender.max_bytes,
            alone=self._sender.alone,
            given_ids=self._sender.identities.given_ids,
            aside=self._aside,
        )
        nothing_else = request[0] in self._aside
        if nothing_else:
            self._aside = []
        settled = [parcel for parcel in request if self._sender.drop_if_lost(parcel)]
        if not settled:
            while (seconds := self._outage.wait(anyio.current_time())) > 0:
                await self._lane.pause(seconds)
            exhausted = request[0].attempts > self._max_retries
            if nothing_else and exhausted and not await self._sender.probe():
                return
            try:
                settled = await self._sender.send(request)
            except Exception as error:
                settled = self._failed(request, error)
            else:
                self._limit = None
                self._aside = []
        for parcel in settled:
            backlog.remove(parcel)
        self._outbox.settled()

    def _failed(self, request: list[Parcel], error: Exception) -> list[Parcel]:
        """A whole request failed; the parcels that are given up for it, one at most."""
        verdict = judge_request(error)
        if verdict is Verdict.REFUSED:
            # Of several, the API does not say which: by halves it comes down to one, and
            # what that one's own endpoint says decides.
            self._limit = half(request)
            return []
        self._ledger.retry()
        if verdict is not Verdict.FAILED:
            return []
        alone = len(request) == 1
        for parcel in request:
            parcel.failed(self._sender.taken, alone=alone)
        exhausted = max(parcel.attempts for parcel in request) > self._max_retries
        if not alone:
            if exhausted:
                # Perhaps one of them is too much for the API: smaller requests show which.
                self._limit = half(request)
            return []
        # One alone fails. Is it this one, or the API altogether? What others get shows.
        (parcel,) = request
        if parcel.faults >= self._max_faults:
            self._sender.give_up(parcel, error, "retries_exhausted")
            return [parcel]
        answered = isinstance(error, PrefactorApiError) and error.status_code is not None
        if answered or exhausted:
            parcel.alone = True
            self._aside.append(parcel)
        return []
