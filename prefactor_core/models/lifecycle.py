"""The transitions between the states of agent instances and spans. Pure.

The transitions are the API's, for ``POST /agent_instance/{id}/start`` and ``/finish``,
``POST /agent_spans`` and ``POST /agent_spans/{id}/finish``. *Steps* are the calls that bring a run
or a span from its state to another.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, StrEnum, auto
from functools import cache
from typing import Final, Literal, NamedTuple


class SpanStatus(StrEnum):
    """The states of a span; ``pending``: opened locally, nothing sent yet."""

    # The hash of Enum is written in Python, and these are looked up several times for every span.
    __hash__ = str.__hash__

    PENDING = "pending"
    ACTIVE = "active"
    COMPLETE = "complete"
    FAILED = "failed"
    CANCELLED = "cancelled"


class InstanceStatus(StrEnum):
    """The states of an agent instance."""

    PENDING = "pending"
    ACTIVE = "active"
    COMPLETE = "complete"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TERMINATED = "terminated"


OPEN: Final = (SpanStatus.PENDING, SpanStatus.ACTIVE)
"""The states of a span that has not ended."""

Outcome = Literal["complete", "failed", "cancelled"]
"""The ends of a body, a span or a run."""

OUTCOMES: Final = frozenset({"complete", "failed", "cancelled"})

SPAN_TRANSITIONS: Final[Mapping[SpanStatus, frozenset[SpanStatus]]] = {
    SpanStatus.PENDING: frozenset({SpanStatus.CANCELLED}),
    SpanStatus.ACTIVE: frozenset({SpanStatus.COMPLETE, SpanStatus.FAILED, SpanStatus.CANCELLED}),
    SpanStatus.COMPLETE: frozenset(),
    SpanStatus.FAILED: frozenset(),
    SpanStatus.CANCELLED: frozenset(),
}
"""The transitions by a finish of a stored span. No call leads from pending to active."""

INSTANCE_TRANSITIONS: Final[Mapping[InstanceStatus, frozenset[InstanceStatus]]] = {
    InstanceStatus.PENDING: frozenset(
        {InstanceStatus.ACTIVE, InstanceStatus.CANCELLED, InstanceStatus.TERMINATED}
    ),
    InstanceStatus.ACTIVE: frozenset(
        {
            InstanceStatus.COMPLETE,
            InstanceStatus.FAILED,
            InstanceStatus.CANCELLED,
            InstanceStatus.TERMINATED,
        }
    ),
    InstanceStatus.COMPLETE: frozenset(),
    InstanceStatus.FAILED: frozenset(),
    InstanceStatus.CANCELLED: frozenset(),
    InstanceStatus.TERMINATED: frozenset(),
}


class OperationType(Enum):
    """The kinds of operation."""

    REGISTER_AGENT_INSTANCE = auto()
    START_AGENT_INSTANCE = auto()
    FINISH_AGENT_INSTANCE = auto()
    CREATE_SPAN = auto()
    FINISH_SPAN = auto()
    UPDATE_SPAN_PAYLOAD = auto()
    RECORD_QUALITY = auto()


class SpanStep(NamedTuple):
    """One call about a span: create it in a status, or finish it with one."""

    call: Literal["create", "finish"]
    status: SpanStatus


class InstanceStep(NamedTuple):
    """One call about an agent instance: start it, or finish it with a status."""

    call: Literal["start", "finish"]
    status: InstanceStatus


def is_terminal(status: SpanStatus | InstanceStatus) -> bool:
    """Whether nothing can follow this state."""
    return status in OUTCOMES or status == InstanceStatus.TERMINATED


@cache
def span_steps(current: SpanStatus, goal: SpanStatus) -> tuple[SpanStep, ...]:
    """Return the calls that bring a span from ``current`` to ``goal``; none if it has ended.

    The first end counts: an ended span needs no call. A span that was not sent before its end is
    created complete or failed. A span that is cancelled before its start is created pending and
    finished at once, the only way that the API has for it.
    """
    match current, goal:
        case SpanStatus.PENDING, SpanStatus.ACTIVE:
            return (SpanStep("create", goal),)
        case SpanStatus.PENDING, SpanStatus.CANCELLED:
            return SpanStep("create", SpanStatus.PENDING), SpanStep("finish", goal)
        case SpanStatus.PENDING, SpanStatus.COMPLETE | SpanStatus.FAILED:
            return (SpanStep("create", goal),)
        case SpanStatus.ACTIVE, SpanStatus.COMPLETE | SpanStatus.FAILED | SpanStatus.CANCELLED:
            return (SpanStep("finish", goal),)
        case _:
            return ()


def instance_steps(current: InstanceStatus, goal: InstanceStatus) -> tuple[InstanceStep, ...]:
    """Return the calls that bring a run from ``current`` to ``goal``; none if it has ended.

    A run that ends before its start is started first: ``POST /agent_instance/{id}/finish`` refuses
    a pending run.
    """
    match current, goal:
        case InstanceStatus.PENDING, InstanceStatus.ACTIVE:
            return (InstanceStep("start", goal),)
        case (
            InstanceStatus.PENDING,
            InstanceStatus.COMPLETE | InstanceStatus.FAILED | InstanceStatus.CANCELLED,
        ):
            return InstanceStep("start", InstanceStatus.ACTIVE), InstanceStep("finish", goal)
        case (
            InstanceStatus.ACTIVE,
            InstanceStatus.COMPLETE | InstanceStatus.FAILED | InstanceStatus.CANCELLED,
        ):
            return (InstanceStep("finish", goal),)
        case _:
            return ()
