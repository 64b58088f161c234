"""Steps follow the transitions of the API, and reach every end once."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st
from support.cases import for_each

from prefactor_core.models.lifecycle import (
    INSTANCE_TRANSITIONS,
    OUTCOMES,
    SPAN_TRANSITIONS,
    InstanceStatus,
    InstanceStep,
    SpanStatus,
    SpanStep,
    instance_steps,
    is_terminal,
    span_steps,
)

ENDS = {"complete", "failed", "cancelled"}


def stored_span(current: SpanStatus, steps: Iterable[SpanStep]) -> SpanStatus | None:
    """The state at the API after the steps (None: no such span); fails if it would refuse one."""
    # A span is pending here until its create; the API does not know it yet.
    stored = None if current is SpanStatus.PENDING else current
    for call, status in steps:
        if call == "create":
            assert stored is None
            # Some versions of the API create no span as cancelled.
            assert status is not SpanStatus.CANCELLED
        else:
            assert stored is not None
            assert status in SPAN_TRANSITIONS[stored]
        stored = status
    return stored


def stored_instance(current: InstanceStatus, steps: Iterable[InstanceStep]) -> InstanceStatus:
    """The state at the API after the steps; fails if it would refuse one."""
    for call, status in steps:
        assert (call == "start") == (status is InstanceStatus.ACTIVE)
        if call == "finish":
            assert current is InstanceStatus.ACTIVE
        assert status in INSTANCE_TRANSITIONS[current]
        current = status
    return current


def test_the_transitions_of_spans_are_the_apis() -> None:
    transitions = dict(SPAN_TRANSITIONS)
    assert transitions == {
        "pending": {"cancelled"},
        "active": ENDS,
        **{end: set() for end in ENDS},
    }


def test_the_transitions_of_instances_are_the_apis() -> None:
    transitions = dict(INSTANCE_TRANSITIONS)
    assert transitions == {
        "pending": {"active", "cancelled", "terminated"},
        "active": {*ENDS, "terminated"},
        **{end: set() for end in (*ENDS, "terminated")},
    }


@for_each("status", [*SpanStatus, *InstanceStatus])
def test_a_state_is_terminal_if_nothing_follows_it(status: SpanStatus | InstanceStatus) -> None:
    transitions = SPAN_TRANSITIONS if isinstance(status, SpanStatus) else INSTANCE_TRANSITIONS
    assert is_terminal(status) == (not transitions[status])


def test_the_outcomes_are_the_ends_that_a_body_can_have() -> None:
    assert OUTCOMES == ENDS


@for_each("goal", SpanStatus)
@for_each("current", SpanStatus)
def test_a_span_gets_to_its_goal_by_steps_that_the_api_takes(
    current: SpanStatus, goal: SpanStatus
) -> None:
    steps = span_steps(current, goal)
    ahead = {"pending": {"active", *ENDS}, "active": ENDS}.get(current, set())
    if goal in ahead:
        assert stored_span(current, steps) is goal
    else:
        assert steps == ()


@for_each("goal", InstanceStatus)
@for_each("current", InstanceStatus)
def test_an_instance_gets_to_its_goal_by_steps_that_the_api_takes(
    current: InstanceStatus, goal: InstanceStatus
) -> None:
    steps = instance_steps(current, goal)
    ahead = {"pending": {"active", *ENDS}, "active": ENDS}.get(current, set())
    if goal in ahead:
        assert stored_instance(current, steps) is goal
    else:
        assert steps == ()


@given(st.lists(st.sampled_from(SpanStatus)))
def test_a_span_is_created_once_and_its_first_end_counts_for_any_calls(
    goals: list[SpanStatus],
) -> None:
    current, steps = SpanStatus.PENDING, list[SpanStep]()
    for goal in goals:
        new = span_steps(current, goal)
        steps += new
        current = new[-1].status if new else current
    asked = [goal for goal in goals if goal is not SpanStatus.PENDING]
    ends = [goal for goal in asked if goal in ENDS]
    # The first goal is the status of the create; only an end needs no finish.
    first = asked[:1]
    created = [
        SpanStep("create", SpanStatus.PENDING if goal is SpanStatus.CANCELLED else goal)
        for goal in first
    ]
    at_once = first in ([SpanStatus.COMPLETE], [SpanStatus.FAILED])
    finished = [SpanStep("finish", end) for end in ends[:1]]
    assert steps == created + ([] if at_once else finished)
    stored_span(SpanStatus.PENDING, steps)


@given(st.lists(st.sampled_from(InstanceStatus)))
def test_an_instance_starts_once_and_its_first_end_counts_for_any_calls(
    goals: list[InstanceStatus],
) -> None:
    current, steps = InstanceStatus.PENDING, list[InstanceStep]()
    for goal in goals:
        new = instance_steps(current, goal)
        steps += new
        current = new[-1].status if new else current
    asked = [goal for goal in goals if goal == "active" or goal in ENDS]
    ends = [goal for goal in asked if goal in ENDS]
    start = InstanceStep("start", InstanceStatus.ACTIVE)
    assert steps == [start][: len(asked)] + [InstanceStep("finish", end) for end in ends[:1]]
    assert stored_instance(InstanceStatus.PENDING, steps) is current
