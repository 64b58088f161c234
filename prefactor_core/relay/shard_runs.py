"""ShardRuns: the open runs of a shard, from one relay to the next, until their agents are gone."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Final, cast

from prefactor_core.exceptions.log import log
from prefactor_core.export.batch import Batcher
from prefactor_core.export.identity import Identities, RunIdentity
from prefactor_core.operations import Operation
from prefactor_core.relay.burial import Heartbeats, burial_of
from prefactor_core.relay.delivery import Delivery
from prefactor_core.relay.lease import Lease
from prefactor_core.relay.run_record import RunRecord
from prefactor_core.relay.shard_state import ShardState

logger = logging.getLogger("prefactor_core.relay")

_RUNS: Final = 100
"""Records of open runs that are read in one round trip."""

_LONGEST_REST: Final = 10_000
"""Milliseconds for which an agent may write after its last beat."""


class ShardRuns:
    """The open runs of the shard that a relay has the ``lease`` of; their records are in ``state``.

    The terminations of all runs are noted for their agents. ``heartbeats``: of all agents. An agent
    that was silent for ``bury_after`` seconds is gone. ``burying``: the runs whose ends are to be
    sent.
    """

    def __init__(
        self,
        lease: Lease,
        delivery: Delivery,
        heartbeats: Heartbeats,
        state: ShardState,
        identities: Identities,
        bury_after: float,
    ) -> None:
        self._lease = lease
        self._delivery = delivery
        self._heartbeats = heartbeats
        self._state = state
        self._identities = identities
        self._bury_after = bury_after
        self.burying: set[str] = set()
        self._judged = 0  # with which heartbeats all runs were judged

    def add(self, instance_id: str) -> RunIdentity:
        """The identity of a run of this shard, which is registered here, or was."""
        if not self._identities.knows(instance_id):
            self._watch(self._identities.add(instance_id))
        return self._identities.of(instance_id)

    def of(self, instance_id: str) -> RunIdentity:
        """The identity of a run, be it that nothing is known of its registration."""
        run = self._identities.of(instance_id)
        if not self._identities.knows(instance_id):
            self._watch(self._identities.keep(run))
        return run

    def _watch(self, run: RunIdentity) -> None:
        termination = run.termination
        if termination.reason is None and not termination.is_watched:
            run.termination.watch(partial(self._terminated, run.recorded_id))

    def _terminated(self, instance_id: str, reason: str) -> None:
        self._delivery.terminated += 1
        self._delivery.terminations.add(instance_id, reason)

    async def load(self) -> None:
        """Read the open runs, as an earlier relay has left them."""
        lease = self._lease
        members, done = await lease.server.run_all(
            [
                ["SMEMBERS", lease.keys.runs(lease.shard)],
                ["HGETALL", lease.keys.done(lease.shard)],
            ]
        )
        self._state.load_done(cast("dict[bytes, bytes]", done))
        names = [name.decode() for name in cast("Sequence[bytes]", members)]
        for begin in range(0, len(names), _RUNS):
            some = names[begin : begin + _RUNS]
            found = await lease.server.run_all([["HGETALL", name] for name in some])
            for name, fields in zip(some, found, strict=True):
                if fields:
                    self._restore(name, cast("dict[bytes, bytes]", fields))
                else:
                    self._state.forget(name)

    def _restore(self, name: str, fields: Mapping[bytes, bytes]) -> None:
        try:
            record = RunRecord(name, [], fields)
            record.check()
        except ValueError as error:
            # A server that was replaced by an older copy may lack a part of it.
            message = "what was kept of a run at %s cannot be read, and is forgotten (%s)"
            log(logger, logging.ERROR, message, name, type(error).__name__)
            self._state.delete(name)
            return
        record = self._state.load(name, fields)
        run = self.add(record.instance_id)
        run.agent_id, run.lost = record.agent_id, record.lost
        if record.api_id != record.instance_id:
            self._identities.registered(record.instance_id, record.api_id)
        for span_id, api_id in record.span_ids():
            run.span_made(span_id, api_id)
        for span_id, lost in record.lost_spans():
            run.restore_lost_span(span_id, lost.reason, lost.parent_span_id)

    def burials(self, batcher: Batcher) -> Iterator[Iterator[Operation]]:
        """The ends of the runs whose agents are gone, of which nothing is left to read or to send;
        one run after another. ``batcher``: has what is read and not settled."""
        heartbeats = self._heartbeats
        if self._judged == heartbeats.readings:
            return
        self.burying &= self._state.runs.keys()
        waiting: set[str] | None = None
        for record in list(self._state.runs.values()):
            # Runs whose agents are unknown have one that was never heard.
            instance_id, agents = record.instance_id, record.agents or [""]
            silent = [agent for agent in agents if heartbeats.silence(agent) >= self._bury_after]
            if instance_id in self.burying or len(silent) < len(agents):
                for agent in silent:
                    record.left_by(agent)
                continue
            last_time = max(map(heartbeats.last_time, agents))
            if not (self._state.is_at_end or self._state.last_time > last_time + _LONGEST_REST):
                continue  # an entry of it may be among those that are not read yet
            if waiting is None:
                waiting = {item.operation.instance_id for item in batcher.items()}
            if instance_id in waiting:
                continue
            if record.lost is not None:
                self._identities.forget(instance_id)
                self._state.close_run(instance_id)
                continue
            message = "agent %s is gone: its run %s ends as failed"
            log(logger, logging.WARNING, message, agents[-1], instance_id)
            self.burying.add(instance_id)
            self._delivery.buried += 1
            lasts = [last for agent in agents if (last := heartbeats.last(agent)) is not None]
            now = time.time_ns()
            at = max(lasts, default=min(record.last_time or now, now))
            yield burial_of(record, at)
        self._judged = heartbeats.readings
