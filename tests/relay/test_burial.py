"""Runs whose agents are gone: who is silent, and how such a run ends."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from prefactor_core.models.lifecycle import InstanceStatus, SpanStatus
from prefactor_core.operations import (
    FinishAgentInstance,
    FinishSpan,
    StartAgentInstance,
    identifiers,
)
from prefactor_core.relay.burial import Heartbeats, burial_of
from prefactor_core.relay.run_record import OpenSpan, RunRecord

RUN = identifiers.generate(5)
AT = 1_796_000_000_000_000_000


def record(*spans: OpenSpan, started: bool = True) -> RunRecord:
    run = RunRecord("pf:run:x", [])
    run.set(instance_id=RUN, started="1" if started else None)
    run.written_by("a")
    for span in spans:
        run.span_opened(span)
    return run


@given(st.lists(st.integers(-1, 8), max_size=9), st.randoms(use_true_random=False))
def test_the_spans_of_a_buried_run_end_children_first_and_the_run_last(
    parents: list[int], random: Random
) -> None:
    ids = [identifiers.generate(5, 1000) for _ in parents]
    spans = [
        OpenSpan(id, None if parent < 0 or parent >= place else ids[parent], True)
        for place, (id, parent) in enumerate(zip(ids, parents, strict=True))
    ]
    shuffled = random.sample(spans, len(spans))  # a hash has no order
    *ends, last = burial_of(record(*shuffled), AT)
    assert isinstance(last, FinishAgentInstance)
    assert (last.status, last.idempotency_key) == (InstanceStatus.FAILED, f"{RUN}-finish")
    ended: set[str] = set()
    parent_of = {span.span_id: span.parent_span_id for span in spans}
    for end in ends:
        assert isinstance(end, FinishSpan)
        assert parent_of[end.span_id] not in ended
        ended.add(end.span_id)
    assert ended == set(ids)


def test_a_circle_of_parents_ends_too() -> None:
    one, two = identifiers.generate(5), identifiers.generate(5)
    run = record(OpenSpan(one, two, True), OpenSpan(two, one, True))
    assert len(list(burial_of(run, AT))) == 3


def test_a_run_that_has_not_started_is_started_and_a_span_that_never_starts_is_cancelled() -> None:
    span = identifiers.generate(5)
    start, end, finish = burial_of(record(OpenSpan(span, None, False), started=False), AT)
    assert isinstance(start, StartAgentInstance)
    assert isinstance(end, FinishSpan)
    assert end.status is SpanStatus.CANCELLED
    assert {start.timestamp, end.timestamp, finish.timestamp} == {AT}


def test_a_buried_run_ends_after_the_last_event_that_was_delivered() -> None:
    """An agent that dies soon after its first beat has recorded since."""
    run = record(OpenSpan(identifiers.generate(5), None, True))
    run.happened(AT + 3_100_000_000)
    run.happened(AT + 2)
    assert {end.timestamp for end in burial_of(run, AT)} == {AT + 4_000_000_000}


def test_a_time_that_the_caller_has_invented_ends_no_run() -> None:
    run = record()
    run.happened(AT + 3_600 * 10**9)
    (end,) = burial_of(run, AT)
    assert end.timestamp == AT


def test_what_is_kept_of_a_run_is_read_as_it_was_written() -> None:
    commands: list[object] = []
    run = record(OpenSpan(identifiers.generate(5), None, True))
    run.set(api_id="b", lost="refused", agent_id="x")
    run.happened(AT - 1)
    run.span_made("s", "t")
    fields = {name.encode(): value for name, value in run._fields.items()}
    again = RunRecord("pf:run:x", commands, fields)  # type: ignore[arg-type]
    assert list(again.open_spans()) == list(run.open_spans())
    assert (again.api_id, again.lost, again.agent_id, again.agents) == ("b", "refused", "x", ["a"])
    assert list(again.span_ids()) == [("s", "t")]
    assert again.last_time == AT
    assert commands == []


def beats(**values: int) -> dict[bytes, bytes]:
    return {name.encode(): str(value).encode() for name, value in values.items()}


def test_an_agent_whose_beat_changes_is_never_silent() -> None:
    heartbeats = Heartbeats(10.0)
    for second in range(0, 100, 5):
        heartbeats.read(beats(a=second, b=7), float(second), 0)
        assert heartbeats.silence("a") == 0
    assert heartbeats.silence("b") == 95
    assert heartbeats.last("a") == 95_000_000
    assert heartbeats.last("unknown") is None


def test_an_outage_of_redis_makes_no_agent_silent() -> None:
    heartbeats = Heartbeats(10.0)
    heartbeats.read(beats(a=1), 0.0, 0)
    heartbeats.read(beats(a=1), 10_000.0, 0)
    assert heartbeats.silence("a") == 10


def test_an_agent_that_was_never_heard_is_silent_from_the_first_question_on() -> None:
    heartbeats = Heartbeats(10.0)
    heartbeats.read({}, 0.0, 0)
    heartbeats.read({}, 5.0, 0)
    assert heartbeats.silence("a") == 0
    heartbeats.read({}, 10.0, 0)
    assert heartbeats.silence("a") == 5
    heartbeats.read(beats(a=1), 15.0, 0)
    assert heartbeats.silence("a") == 0


def test_agents_that_were_silent_for_long_are_forgotten() -> None:
    heartbeats = Heartbeats(10.0)
    for second in range(0, 50, 10):
        heartbeats.read(beats(a=second, b=1) if second < 30 else beats(a=second), float(second), 0)
        heartbeats.silence("never")
    assert heartbeats.forget(100) == []
    heartbeats.read(beats(a=40), 50.0, 0)
    heartbeats.read(beats(a=40), 60.0, 0)
    assert heartbeats.forget(15) == ["a"]
    assert heartbeats.silence("b") == 0  # asked anew
