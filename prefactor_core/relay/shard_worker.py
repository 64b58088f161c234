"""ShardWorker: reads one shard in order, sends what it reads, and acknowledges what is settled."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from secrets import token_hex
from typing import Final, cast

import anyio
import anyio.lowlevel

from prefactor_core.exceptions import PrefactorApiError
from prefactor_core.exceptions.log import log
from prefactor_core.export.batch_item import BatchItem
from prefactor_core.export.buffer import Buffer
from prefactor_core.export.completion import Completion
from prefactor_core.export.identity import Identities, RunIdentity
from prefactor_core.export.sender import Sender
from prefactor_core.export.status_poll import StatusPoll
from prefactor_core.export.worker import Worker
from prefactor_core.operations import CreateSpan, Operation, RegisterAgentInstance
from prefactor_core.queue.memory import InMemoryQueue
from prefactor_core.relay.burial import Heartbeats
from prefactor_core.relay.delivery import Delivery
from prefactor_core.relay.entry import EntryUnreadableError, decode, milliseconds_of_entry
from prefactor_core.relay.keys import GROUP
from prefactor_core.relay.lease import Lease
from prefactor_core.relay.scripts import STEP
from prefactor_core.relay.shard_journal import Origin, ShardJournal, has_own_form
from prefactor_core.relay.shard_runs import ShardRuns
from prefactor_core.relay.shard_state import ShardState

logger = logging.getLogger("prefactor_core.relay")

_ENTRIES: Final = 4
"""Entries that one step reads; each is a whole batch of an agent."""

_BATCHES: Final = 4
"""Batches that are read ahead: a run does not wait behind all operations of another one."""

_RUNS: Final = 100
"""Records of open runs that are read in one round trip."""

_LONGEST_REST: Final = 10_000
"""Milliseconds for which an agent may write after its last beat."""

_IDLE_SECONDS: Final = 5.0
"""Seconds after which an idle shard looks around without having been woken."""

_TRY_AGAIN_AFTER: Final = 0.5
"""Seconds until the next step, if Redis does not answer."""


class ShardWorker(Worker):
    """Delivers the entries of one shard, while it has the shard's ``lease``.

    Each round is one step on the server, which fails if another relay has the lease by now, and
    one request to the API. The step writes down what was settled by the round before, and reads
    on; a request needs no such check: what another relay sends again has the same keys.

    ``heartbeats``: of all agents. An agent that was silent for ``bury_after`` seconds is gone.
    """

    def __init__(
        self,
        lease: Lease,
        delivery: Delivery,
        heartbeats: Heartbeats,
        *,
        bury_after: float,
        poll_interval: float,
    ) -> None:
        counters = delivery.counters
        buffer = _Buffer(delivery)
        self._lease = lease
        self._delivery = delivery
        self._heartbeats = heartbeats
        self._identities = Identities()
        self._state = ShardState(lease.keys, lease.shard)
        self._name = token_hex(8)  # of its steps: this relay may gain the shard again
        self._runs = ShardRuns(
            lease, delivery, heartbeats, self._state, self._identities, bury_after
        )
        journal = ShardJournal(self._state, self._identities)
        completion = _Completion(
            counters,
            self._identities,
            delivery.breaker,
            delivery.limits,
            delivery.losses,
            journal,
        )
        sender = Sender(delivery.api, counters, delivery.breaker, completion)
        queue = buffer.worker_queues[0]
        super().__init__(
            queue, buffer, sender, delivery.breaker, counters, delivery.config, journal
        )
        self._most_waiting = _BATCHES * delivery.config.max_batch_operations
        self._most_bytes = _BATCHES * delivery.config.max_batch_bytes
        self._poll = StatusPoll(
            delivery.api,
            self._identities,
            delivery.breaker,
            counters,
            delivery.event_loop,
            poll_interval,
        )
        # The runs whose operations stay on the server until one that fails is settled.
        self._passed_over: set[str] = set()
        self._is_leaving = False
        self._is_idle = False

    @property
    def is_idle(self) -> bool:
        """Whether a new entry should wake it."""
        return self._is_idle or (self._worker_queue.waits_for_more and self._has_room)

    @property
    def _has_room(self) -> bool:
        """Whether it has so little to send that it may read on."""
        operations, bytes = self._batcher.operations, self._state.bytes
        return operations < self._most_waiting and bytes < self._most_bytes

    @property
    def last_id(self) -> str:
        """The newest entry that it has read."""
        return self._state.last_id

    def wake(self) -> None:
        """End its wait for entries."""
        self._worker_queue.wake()

    def leave(self) -> None:
        """End :meth:`run` after the request that is on its way."""
        self._is_leaving = True
        self.wake()

    async def run(self) -> None:
        """Deliver until :meth:`leave`, or until another relay has the lease.

        Raises a :class:`~prefactor_core.PrefactorApiError` if the open runs cannot be read.
        """
        self._delivery.worker_queues.add(self._worker_queue)
        try:
            await self._runs.load()
            async with anyio.create_task_group() as group:
                group.start_soon(self._poll.serve, name=f"status-poll-{self._lease.shard}")
                await self.serve()
                self._poll.close()
        finally:
            self._delivery.worker_queues.discard(self._worker_queue)
            # What is not settled stays in Redis, for the next relay.
            left = self._batcher.items()
            self._counters.hand_back(
                sum(item.count for item in left), sum(item.size for item in left)
            )

    async def _gather(self) -> bool:
        """Write down what is settled, and read on; return False when it is over."""
        state = self._state
        while True:
            await anyio.lowlevel.checkpoint()
            self._pass_over_failing_runs()
            reads, added = not self._is_leaving and self._has_room, self._batcher.added
            if (reads or state.has_changes) and not await self._step(reads=reads):
                return False
            if self._is_leaving:
                if state.has_changes:
                    continue
                return False
            if reads:
                self._bury()
            took_none = reads and self._batcher.added == added
            if took_none and self._passed_over and not state.is_at_end:
                continue  # all was passed over: other runs come after it, and wait for no probe
            if self._breaker.is_open and self._drop_lost():
                continue
            if self._batcher:
                return True
            if not state.has_changes:
                await self._wait_for_entries()

    def _pass_over_failing_runs(self) -> None:
        """Leave to the server what waits for an operation at which the API fails, if there is no
        room for more: other runs need the room, and only an operation of theirs that the API
        accepts shows that it is not in an outage."""
        batcher, passed_over = self._batcher, self._passed_over
        if not (passed_over or not self._has_room):
            return
        failing = batcher.failing()
        if not passed_over <= failing:
            passed_over &= failing
            self._state.read_again()
        if self._has_room:
            return
        # The end of a run whose agent is gone is in no entry.
        for instance_id in failing - self._runs.burying:
            for item in batcher.take_back(instance_id):
                assert isinstance(item.noted, Origin)
                self._state.put_back(item.noted.entry_id, item.noted.place)
                self._counters.hand_back(item.count, item.size)
                passed_over.add(instance_id)

    def _drop_lost(self) -> bool:
        """Set aside all that is lost with its run or span; return whether there was any. While the
        API fails, a batch has one operation, and other runs would wait for thousands."""
        drop = self._sender.completion.drop_if_lost
        lost = [item for item in self._batcher.items() if drop(item)]
        self._remove_completed(lost)
        return bool(lost)

    async def _send_batch(self, batch: list[BatchItem]) -> None:
        # Worker has noted the forms of the items. They must be on the server before the request.
        if any(has_own_form(item) for item in batch):
            await self._step(reads=False)
            if self._state.has_changes:
                return
        await super()._send_batch(batch)

    async def _wait_for_entries(self) -> None:
        self._is_idle = True
        try:
            await self._worker_queue.pause(_IDLE_SECONDS)
        finally:
            self._is_idle = False

    async def _step(self, *, reads: bool) -> bool:
        """Carry out changes, and read; return False if another relay has the shard."""
        state, lease, keys = self._state, self._lease, self._lease.keys
        read_from = state.read_from if reads else ""
        words = state.words()
        try:
            answered = await lease.server.call(
                STEP,
                [lease.key, keys.operations(lease.shard), keys.step(lease.shard), keys.config],
                *(lease.holder, lease.milliseconds, GROUP, read_from, _ENTRIES),
                int(state.will_have_none),
                f"{self._name}-{state.steps}",
                *words,
            )
        except PrefactorApiError as error:
            # The lease may be gone by now: the next step that is answered tells.
            state.read_again()
            lease.outage.failed(error)
            await self._worker_queue.pause(_TRY_AGAIN_AFTER)
            return not self._is_leaving
        lease.outage.answered()
        answer = cast("Sequence[object]", answered)
        if not answer[0]:
            lease.is_lost = True
            return False
        state.written()
        if reads:
            self._delivery.account.found(cast("bytes | None", answer[2]))
            read = cast("Sequence[tuple[bytes, Sequence[bytes]]]", answer[1])
            entries = {id.decode(): fields for id, fields in read}
            for entry_id in state.has_read(list(entries), _ENTRIES):
                self._take(entry_id, entries[entry_id])
        return True

    def _take(self, entry_id: str, words: Sequence[bytes]) -> None:
        fields = dict(zip(words[::2], words[1::2], strict=False))
        try:
            entry = decode(entry_id, fields)
            related_id = self._delivery.account.related_id
            operations = [self._state.ids.final(each, related_id) for each in entry.operations]
        except Exception as error:
            # Of whatever kind, such as an id that is none: else its shard would stand still.
            message = f"entry {entry_id} cannot be read: {type(error).__name__}"
            if isinstance(error, EntryUnreadableError):
                message = str(error)
            log(logger, logging.ERROR, "an entry is set aside whole: %s", message)
            self._state.took(entry_id, ())
            ops, agent, version = (fields.get(name, b"") for name in (b"ops", b"agent", b"version"))
            # With its version: a later relay may be able to read it.
            self._state.set_aside(
                [
                    *("op", ops, "version", version, "reason", "unreadable"),
                    *("error", message, "agent", agent),
                ]
            )
            return
        self._heartbeats.wrote(entry.agent, milliseconds_of_entry(entry_id))
        sizes = [operation.size for operation in operations]
        passed_over = [
            place
            for place, operation in enumerate(operations if self._passed_over else ())
            if operation.instance_id in self._passed_over
        ]
        for place in self._state.took(entry_id, sizes, passed_over):
            origin = Origin(entry_id, entry.agent, entry.operations[place], place)
            self._add_recorded(operations[place], origin)

    def _add_recorded(self, operation: Operation, origin: Origin) -> None:
        key, given_id = origin.recorded.idempotency_key, self._identities.given_ids
        record = self._state.runs.get(operation.instance_id)
        original = None
        if isinstance(operation, RegisterAgentInstance):
            run = self._runs.add(operation.instance_id)
            # What was refused may be sent once more.
            run.lost, run.agent_id = None, operation.agent_id
            if record is None:
                run.registered = False  # the API does not know it yet, and need not be asked
            else:
                record.set(lost=None)
        else:
            run = self._runs.of(operation.instance_id)
        if isinstance(operation, CreateSpan):
            run.found_span(operation.span_id)
            if record is not None:
                record.found_span(operation.span_id)
        form = None if record is None else record.form(key)
        if form is not None:
            original, operation, given_id = operation, form.operation, form.given_id
        item = self._batcher.add_sent(operation, (key,), original, given_id=given_id)
        item.noted = origin
        self._counters.queued += 1
        self._counters.queued_bytes += item.size

    def _bury(self) -> None:
        """End the runs whose agents are gone, of which nothing is left to read or to send."""
        for operations in self._runs.burials(self._batcher):
            for operation in operations:
                self._add_recorded(operation, Origin("", "", operation))
            if not self._has_room:
                break  # the next round goes on


class _Buffer(Buffer):
    """Wakes the workers of all shards: an outage of the API is one for all, and ends for all."""

    def __init__(self, delivery: Delivery) -> None:
        super().__init__(
            [InMemoryQueue[Operation]()],
            delivery.counters,
            delivery.losses,
            delivery.config,
            delivery.event_loop,
        )
        self._delivery = delivery

    def wake(self) -> None:
        self._delivery.wake()


class _Completion(Completion):
    """Forgets a run when its end is settled: nothing is recorded here after that."""

    def _run_ended(self, run: RunIdentity) -> None:
        run.termination.run_ended()
        super()._run_ended(run)
