"""Replay: a worker that sends what the journal of a dead process holds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import anyio.lowlevel

from prefactor_core.config import QueueConfig
from prefactor_core.exceptions import PrefactorApiError
from prefactor_core.export.api_limits import ApiLimits
from prefactor_core.export.batch_item import BatchItem
from prefactor_core.export.buffer import Buffer
from prefactor_core.export.circuit_breaker import CircuitBreaker
from prefactor_core.export.completion import Completion
from prefactor_core.export.counters import Counters
from prefactor_core.export.identity import Identities, RunIdentity
from prefactor_core.export.loss_report import LossReport
from prefactor_core.export.sender import Sender
from prefactor_core.export.worker import Worker
from prefactor_core.journal.adopted import AdoptedJournal
from prefactor_core.journal.reader import Entry
from prefactor_core.operations import ENVELOPE_SIZE, FinishSpan, Operation
from prefactor_core.queue.event_loop import EventLoop
from prefactor_core.queue.memory import InMemoryQueue

if TYPE_CHECKING:
    from prefactor_core.export.carrier import Carrier

_UNKNOWN: Final = 404
_NOT_OURS: Final = (401, 403, _UNKNOWN)
"""Statuses by which the API says that the operations are of another account, or another API."""

_SLICE: Final = 200
"""Entries that are read in one turn of the loop."""


class Replay(Worker):
    """Sends the entries of a journal until all are completed, each in the form it was sent in.

    ``journal`` is read already. ``breaker`` and ``limits`` are those of the client, so that one
    outage is one outage. Counts and ids are of the journal alone.
    """

    def __init__(
        self,
        carrier: Carrier,
        journal: AdoptedJournal,
        breaker: CircuitBreaker,
        limits: ApiLimits,
        config: QueueConfig,
        event_loop: EventLoop,
    ) -> None:
        self.counters = Counters(breaker)
        self._identities = Identities()
        losses = LossReport(self.counters, event_loop)
        buffer = Buffer([InMemoryQueue[Operation]()], self.counters, losses, config, event_loop)
        self._completion = _Completion(self.counters, self._identities, breaker, limits, losses)
        sender = Sender(carrier, self.counters, breaker, self._completion)
        super().__init__(buffer.worker_queues[0], buffer, sender, breaker, self.counters, config)
        self._adopted = journal
        self._entries: Iterator[Entry | None] = iter(())
        self._most_waiting = 2 * config.max_batch_operations
        self._closing = False

    async def run(self) -> None:
        """Take the journal over, and send what is in it; delete it if all of that is completed.

        Raises the error by which the API says that it has nothing to do with this journal, and
        :class:`~prefactor_core.journal.reader.JournalUnreadableError`. The rest stays then in the
        journal, as it does after :meth:`close`.
        """
        journal = self._adopted
        try:
            for _ in journal.take_over():
                await anyio.lowlevel.checkpoint()
            self._journal = self._completion.journal = journal.writer
            self._restore_ids()
            self._entries = journal.reader.entries_in_turns()
            await self.serve()
        except BaseException:
            journal.abandon()
            raise
        journal.writer.close()
        if self._completion.refusal is not None:
            raise self._completion.refusal

    def close(self) -> None:
        """Go on only as long as the API answers."""
        self._closing = True
        self._worker_queue.wake()

    async def _gather(self) -> bool:
        """Take more entries; return False if there is nothing more to send, or no use in it."""
        if self._completion.refusal is not None or (self._closing and self._breaker.is_outage):
            return False
        batcher = self._batcher
        await anyio.lowlevel.checkpoint()
        room = min(self._most_waiting - batcher.operations, _SLICE)
        for entry in self._entries if room > 0 else ():
            if entry is None:
                await anyio.lowlevel.checkpoint()
                continue
            self._take(entry)
            room -= 1
            if not room:
                break
        return bool(batcher)

    def _take(self, entry: Entry) -> None:
        operation, counters = entry.operation, self.counters
        self._adopted.writer.resumed(entry.keys, entry.sequences)
        counters.queued += len(entry.keys)
        counters.queued_bytes += operation.size
        if operation.instance_id not in self._identities.runs:
            self._add_run(operation.instance_id)
        if entry.is_sent:
            self._batcher.add_sent(operation, entry.keys, entry.original, given_id=entry.given_id)
        elif self._batcher.add(operation, is_replayed=True):
            counters.merge(ENVELOPE_SIZE)

    def _add_run(self, instance_id: str) -> RunIdentity:
        run = self._identities.add(instance_id)
        # Nobody is here whom a termination could stop; and the run is forgotten with its finish.
        run.termination.over = True
        return run

    def _run(self, instance_id: str) -> RunIdentity:
        known = self._identities.knows(instance_id)
        return self._identities.of(instance_id) if known else self._add_run(instance_id)

    def _restore_ids(self) -> None:
        state = self._adopted.reader.state
        for recorded_id, api_id in state.run_ids.items():
            self._add_run(recorded_id)
            self._identities.registered(recorded_id, api_id)
        for span_id, (instance_id, api_id) in state.span_ids.items():
            self._run(instance_id).span_made(span_id, api_id)
        for instance_id, refused in state.lost_runs.items():
            self._run(instance_id).lost = refused.reason
        for span_id, refused in state.lost_spans.items():
            self._run(refused.instance_id).restore_lost_span(
                span_id, refused.reason, refused.parent_span_id
            )


class _Completion(Completion):
    """Keeps operations in the journal that are for another account, or that this API cannot know.

    ``refusal``: the answer that says so.
    """

    refusal: PrefactorApiError | None = None

    def give_up(self, item: BatchItem, error: Exception, reason: str) -> None:
        # A span that is unknown may have lost its create; the other operations name a run. If the
        # API has accepted others of this journal, that run alone has lost its registration.
        if (
            isinstance(error, PrefactorApiError)
            and error.status_code in _NOT_OURS
            and not isinstance(item.operation, FinishSpan)
            and not (error.status_code == _UNKNOWN and self._counters.delivered)
        ):
            self.refusal = error
        else:
            super().give_up(item, error, reason)
