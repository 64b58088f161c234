"""ShardJournal: what becomes of a shard's operations is noted in its state."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from prefactor_core.journal.base import Item, NoJournal
from prefactor_core.models.lifecycle import SpanStatus, is_terminal
from prefactor_core.operations import (
    CreateSpan,
    FinishAgentInstance,
    FinishSpan,
    Operation,
    RegisterAgentInstance,
    StartAgentInstance,
)
from prefactor_core.relay.run_record import Form, LostSpan, OpenSpan
from prefactor_core.relay.shard_state import ShardState

if TYPE_CHECKING:
    from prefactor_core.export.identity import Identities


class Origin(Struct, eq=False):
    """Where an operation comes from. ``entry_id``: empty if this relay has made it. ``place``: in
    the entry. ``is_aside``: whether it was given up."""

    entry_id: str
    agent: str
    recorded: Operation
    place: int = 0
    is_aside: bool = False


class ShardJournal(NoJournal):
    """The journal of a shard's worker: Redis has the operations until they are settled.

    Each item's ``noted`` is its :class:`Origin`.
    """

    # A relay that stops leaves the rest to the next one: nothing need be sent out of order.
    is_on = True

    def __init__(self, state: ShardState, identities: Identities) -> None:
        self._state = state
        self._identities = identities

    def identified(self, instance_id: str, span_id: str | None, api_id: str) -> None:
        # A run has its record from the moment its registration is settled.
        record = self._state.runs.get(instance_id)
        if record is not None and span_id is not None:
            record.span_made(span_id, api_id)

    def sending(self, items: Iterable[Item]) -> None:
        for item in items:
            if not has_own_form(item):
                continue
            record = self._state.runs.get(item.operation.instance_id)
            if record is not None:
                record.sending(item.keys[0], Form(item.operation, item.given_id))

    def settled(self, items: Iterable[Item]) -> None:
        for item in items:
            origin = item.noted
            assert isinstance(origin, Origin)
            self._follow(item, origin)
            if origin.entry_id:
                self._state.settled(origin.entry_id, origin.place)

    def set_aside(
        self, item: Item, reason: str, error: str | None, addressed: Operation | None = None
    ) -> None:
        origin = item.noted
        assert isinstance(origin, Origin)
        origin.is_aside = True
        self._state.set_aside(
            [
                *("op", msgspec.json.encode(origin.recorded)),
                *("reason", reason),
                *("error", error or ""),
                *("agent", origin.agent),
            ]
        )
        operation = item.operation
        if isinstance(operation, RegisterAgentInstance):
            record = self._state.open_run(operation.instance_id, origin.agent, operation.agent_id)
            record.set(lost=reason)
        elif isinstance(operation, CreateSpan):
            lost = self._state.runs.get(operation.instance_id)
            run = self._identities.of(operation.instance_id)
            why = run.lost_span(operation.span_id)
            if lost is not None and why is not None:
                lost.span_lost(operation.span_id, LostSpan(*why))

    def _follow(self, item: Item, origin: Origin) -> None:
        """Keep what another relay would have to know, after an operation is settled."""
        operation, state = item.operation, self._state
        record = state.runs.get(operation.instance_id)
        if isinstance(operation, FinishAgentInstance):
            buried = not (origin.entry_id or origin.is_aside)
            state.close_run(operation.instance_id, buried=buried)
            return
        if isinstance(operation, RegisterAgentInstance) and not origin.is_aside:
            record = state.open_run(operation.instance_id, origin.agent, operation.agent_id)
            run = self._identities.of(operation.instance_id)
            run.registered = True  # also if the answer was that it is there already
            record.set(api_id=run.id if run.id != run.recorded_id else None)
        if record is None:
            return
        record.sent(item.keys[0])
        if origin.agent:
            record.written_by(origin.agent)
            record.happened(_end_of(operation))
        if isinstance(operation, CreateSpan):
            status = operation.status
            if is_terminal(status) or origin.is_aside:
                record.span_ended(operation.span_id)
            else:
                started = status is SpanStatus.ACTIVE
                span = OpenSpan(operation.span_id, operation.parent_span_id, started)
                record.span_opened(span)
        elif isinstance(operation, FinishSpan):
            record.span_ended(operation.span_id)
        elif isinstance(operation, StartAgentInstance) and not origin.is_aside:
            record.set(started="1")


def _end_of(operation: Operation) -> int:
    """The time of the last event that an operation tells of, in nanoseconds since 1970."""
    ended = operation.finished_at if isinstance(operation, CreateSpan) else None
    return operation.timestamp if ended is None else ended


def has_own_form(item: Item) -> bool:
    """Whether another relay, which reads the recorded operation, would send another body."""
    return item.is_changed or (isinstance(item.operation, CreateSpan) and not item.given_id)
