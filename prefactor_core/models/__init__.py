"""The models of runs and spans, as a client knows them while they are open.

Data: structs, the states and their transitions, statistics, the clock of a run, durations as
text. Read ``lifecycle`` first.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from msgspec import Struct, field

from prefactor_core.models.lifecycle import OPEN, InstanceStatus, SpanStatus, is_terminal


def _now() -> datetime:
    return datetime.now(UTC)


class AgentInstance(Struct, kw_only=True):
    """One run of an agent. Times are aware, in UTC, and None until the event.

    ``agent_id`` is None if the API token identifies the agent.
    """

    id: str
    agent_id: str | None
    status: InstanceStatus = InstanceStatus.PENDING
    created_at: datetime = field(default_factory=_now)
    started_at: datetime | None = None
    finished_at: datetime | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        """Whether the run has finished or was terminated."""
        return is_terminal(self.status)


class Span(Struct, kw_only=True):
    """One step of a run. Times are aware, in UTC, and None until the event.

    ``status`` is ``pending`` from entering the block to the start; ``created_at`` is the time of
    entering. ``payload``: the parameters of the span. ``result``: its result so far. Both are
    empty after its end.
    """

    id: str
    instance_id: str
    schema_name: str
    parent_span_id: str | None = None
    status: SpanStatus = SpanStatus.PENDING
    payload: Mapping[str, object] = field(default_factory=dict[str, object])
    result: dict[str, object] = field(default_factory=dict[str, object])
    created_at: datetime = field(default_factory=_now)
    started_at: datetime | None = None
    finished_at: datetime | None = None

    @property
    def ended(self) -> bool:
        """Whether the span is complete, failed or cancelled."""
        return self.status not in OPEN
