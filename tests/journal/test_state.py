"""JournalState: what the records say, one after another and repeated in a newer file."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import Raw
from support.cases import for_each
from support.journal_files import (
    HEADER,
    NOON,
    create,
    created,
    end,
    finish,
    opened,
    quality,
    register,
    seen,
    start,
    state_of,
)

from prefactor_core.journal.format import (
    NONE,
    Discarded,
    Form,
    Header,
    Identified,
    JournalVersionError,
    Kind,
    Opened,
    OpenRun,
    OpenSpan,
    Refused,
    encode,
)
from prefactor_core.journal.sequences import SequenceSet
from prefactor_core.journal.state import JournalState, RunState
from prefactor_core.models.lifecycle import InstanceStatus, SpanStatus

ACTIVE, PENDING = InstanceStatus.ACTIVE, InstanceStatus.PENDING
OPERATION, SETTLED = Kind.OPERATION, Kind.SETTLED


def spans_of(state: JournalState) -> list[str]:
    return [span.span_id for span in state.open_spans()]


def pending_of(state: JournalState) -> list[int]:
    return [number for number in range(state.last_sequence + 1) if number in state.pending]


def test_a_run_is_open_from_its_registration_to_its_end() -> None:
    state = state_of((OPERATION, register()))
    assert state.runs == {"run": RunState("run", PENDING, None)}
    state_of((OPERATION, start(at=NOON + 1)), state=state)
    assert state.run_of("run") == RunState("run", ACTIVE, NOON + 1)
    state_of((OPERATION, finish(at=NOON + 2)), state=state)
    assert state.run_of("run") is None


def test_a_run_of_another_journal_is_not_open_here() -> None:
    state = state_of((OPERATION, start()), (OPERATION, create("a")))
    assert not state.runs
    assert spans_of(state) == ["a"]


def test_a_run_has_the_id_of_its_registration_and_that_of_the_api() -> None:
    state = state_of(
        (OPERATION, register()),
        (Kind.IDENTIFIED, Identified("run", None, "theirs")),
        (OPERATION, start("theirs")),
    )
    assert state.run_of("run") is state.run_of("theirs") is not None
    assert [run.instance_id for run in state.runs.values()] == ["theirs"]
    assert state.run_ids == {"run": "theirs"}
    state_of((OPERATION, finish("theirs")), state=state)
    assert not state.runs


def test_a_run_that_got_the_id_of_another_open_one_is_the_same_run() -> None:
    state = state_of(
        (OPERATION, register("first")),
        (OPERATION, start("first")),
        (OPERATION, register("second")),
        (Kind.IDENTIFIED, Identified("second", None, "first")),
    )
    assert [run.instance_id for run in state.runs.values()] == ["first"]
    assert state.run_of("second") is state.run_of("first")
    state_of(
        (Kind.IDENTIFIED, Identified("second", None, "first")),
        (OPERATION, create("a", run="first")),
        (OPERATION, finish("first")),
        (Kind.IDENTIFIED, Identified("second", None, "first")),
        state=state,
    )
    assert not state.runs
    assert not spans_of(state)


def test_a_span_is_open_from_its_opening_to_its_end() -> None:
    state = state_of((Kind.OPENED, opened("a")), (Kind.OPENED, opened("b", "a")))
    assert state.spans == {"a": opened("a"), "b": opened("b", "a")}
    state_of((Kind.CREATED, created("a", at=NOON + 1)), state=state)
    assert [*state.spans.values()] == [OpenSpan("a", "run", NOON + 1), opened("b", "a")]
    state_of(
        (Kind.CREATED, created("b", "a", status=SpanStatus.FAILED, finished_at=NOON + 2)),
        (OPERATION, end("a")),
        state=state,
    )
    assert not state.spans


def test_a_span_without_a_note_of_its_opening_is_open_from_its_create() -> None:
    state = state_of(
        (OPERATION, create("a", status=SpanStatus.PENDING)),
        (OPERATION, create("b", at=NOON + 1)),
        (OPERATION, create("c", status=SpanStatus.COMPLETE, finished_at=NOON + 2)),
    )
    assert [*state.spans.values()] == [
        OpenSpan("a", "run", None),
        OpenSpan("b", "run", NOON + 1),
    ]


def test_a_later_payload_of_an_open_span_replaces_the_first() -> None:
    state = state_of((Kind.OPENED, opened("a")), (Kind.OPENED, opened("b")))
    again = Opened("a", "run", "agent:llm", None, NOON, Raw(b'{"prompt":"Ho"}'))
    state_of((Kind.OPENED, again), state=state)
    assert [*state.spans.values()] == [again, opened("b")]


def test_children_of_a_span_that_is_not_recorded_hang_on_its_parent() -> None:
    state = state_of(
        (Kind.OPENED, opened("b", "a")),
        (Kind.OPENED, opened("c", "b")),
        (Kind.OPENED, opened("d", "c")),
        (Kind.DISCARDED, Discarded("b", "a")),
        (Kind.DISCARDED, Discarded("c", "b")),
    )
    assert state.parent_of(opened("d", "c")) == "a"
    assert spans_of(state) == ["d"]


def test_parents_in_a_circle_are_no_parents() -> None:
    state = state_of((Kind.DISCARDED, Discarded("a", "b")), (Kind.DISCARDED, Discarded("b", "a")))
    assert state.parent_of(opened("a", "b")) is None
    assert state.parent_of(opened("c", "c")) is None
    assert state.parent_of(opened("d", "b")) in ("a", "b")


def test_an_operation_is_pending_until_it_is_settled() -> None:
    state = state_of(
        (OPERATION, register()),
        (OPERATION, start()),
        (Kind.OPENED, opened("a")),
        (Kind.CREATED, created("a")),
    )
    assert pending_of(state) == [1, 2, 4]
    state_of((SETTLED, [1, 4]), (SETTLED, [1, 700_000]), state=state)
    assert pending_of(state) == [2]
    assert len(state.pending) == 1


def test_the_last_form_of_an_operation_counts_until_it_is_settled() -> None:
    first, second = Form((1,), True, NONE), Form((1,), False, Raw(encode(quality())))
    state = state_of((OPERATION, quality()), (OPERATION, quality("other")))
    state_of((Kind.SENDING, [first, Form((2,), True, NONE)]), state=state)
    state_of((Kind.SENDING, [second]), state=state)
    assert state.forms == {1: second, 2: Form((2,), True, NONE)}
    state_of((SETTLED, [1]), (Kind.SENDING, [first]), state=state)
    assert state.forms == {2: Form((2,), True, NONE)}


@for_each("settled, other", [(1, 2), (2, 1)])
def test_the_other_operation_of_an_item_stands_alone_after_one_is_settled(
    settled: int, other: int
) -> None:
    state = state_of((OPERATION, create("a")), (OPERATION, end("a")))
    state_of((Kind.SENDING, [Form((1, 2), False, Raw(encode(create("a"))))]), state=state)
    state_of((SETTLED, [settled]), state=state)
    assert state.forms == {other: Form((other,), False, NONE)}


def test_a_refused_operation_is_settled() -> None:
    refused = Refused(1, "refused", "run", None, None, False)
    state = state_of((OPERATION, quality()), (Kind.REFUSED, refused))
    assert pending_of(state) == []
    assert not state.lost_runs
    assert not state.lost_spans


def test_a_span_whose_create_is_refused_is_lost() -> None:
    refused = Refused(1, "refused", "run", "a", "parent", False)
    state = state_of((OPERATION, create("a", "parent")), (Kind.REFUSED, refused))
    assert spans_of(state) == []
    assert state.lost_spans == {"a": refused}


def test_a_run_whose_registration_is_refused_is_lost_with_its_spans() -> None:
    refused = Refused(1, "refused", "run", None, None, True)
    state = state_of(
        (OPERATION, register()),
        (Kind.OPENED, opened("a")),
        (Kind.REFUSED, refused),
        (Kind.OPENED, opened("b")),
        (Kind.OPENED, opened("c", run="other")),
        (Kind.OPEN_RUN, OpenRun("run", PENDING, None)),
    )
    assert state.lost_runs == {"run": refused}
    assert not state.runs
    assert spans_of(state) == ["c"]


@for_each("over", [(OPERATION, finish()), (Kind.REFUSED, Refused(1, "", "run", None, None, True))])
def test_the_id_of_a_run_that_is_over_can_be_used_again(over: tuple[Kind, object]) -> None:
    state = state_of(
        (OPERATION, register()),
        (Kind.OPENED, opened("a")),
        over,
        (OPERATION, register()),
        (Kind.OPENED, opened("b")),
    )
    assert state.runs == {"run": RunState("run", PENDING, None)}
    assert spans_of(state) == ["b"]


def test_nothing_is_open_after_a_scope_was_left_in_order() -> None:
    state = state_of((OPERATION, register()), (Kind.OPENED, opened("a")), (Kind.CLOSED, NOON + 1))
    assert state.is_closed
    assert not state.runs
    assert not state.spans
    assert pending_of(state) == [1]


@for_each(
    "record",
    [
        (OPERATION, quality(at=NOON + 9)),
        (OPERATION, end("a", at=NOON + 9)),
        (OPERATION, create("a", status=SpanStatus.COMPLETE, finished_at=NOON + 9)),
        (Kind.OPENED, opened("a", at=NOON + 9)),
        (Kind.CREATED, created("z", at=NOON + 9)),
        (Kind.CREATED, created("z", status=SpanStatus.COMPLETE, finished_at=NOON + 9)),
        (Kind.OPEN_RUN, OpenRun("run", ACTIVE, NOON + 9)),
        (Kind.OPEN_SPAN, OpenSpan("a", "run", NOON + 9)),
        (Kind.BEAT, NOON + 9),
        (Kind.CLOSED, NOON + 9),
    ],
)
def test_the_last_time_is_the_latest_of_any_record(record: tuple[Kind, object]) -> None:
    state = state_of((Kind.BEAT, NOON + 1), (Kind.OPENED, opened("z")), record)
    assert state.last_time == NOON + 9
    state_of((Kind.BEAT, NOON + 2), (OPERATION, quality(at=NOON)), state=state)
    assert state.last_time == NOON + 9


HISTORIES: dict[str, list[tuple[Kind, Any]]] = {
    "open": [
        (OPERATION, register()),
        (OPERATION, start()),
        (Kind.OPENED, opened("a")),
        (Kind.CREATED, created("a")),
        (Kind.OPENED, opened("b", "a")),
        (Kind.OPENED, opened("c", "b")),
        (Kind.OPENED, opened("d", "c")),
        (Kind.DISCARDED, Discarded("c", "b")),
        (Kind.CREATED, created("b", "a", status=SpanStatus.PENDING)),
        (OPERATION, register("pending")),
    ],
    "identified": [
        (OPERATION, register()),
        (Kind.IDENTIFIED, Identified("run", None, "theirs")),
        (OPERATION, start("theirs")),
        (OPERATION, create("a", run="theirs")),
        (Kind.IDENTIFIED, Identified("theirs", "a", "their-a")),
    ],
    "one run": [
        (OPERATION, register("first")),
        (OPERATION, register("second")),
        (Kind.IDENTIFIED, Identified("second", None, "first")),
        (Kind.OPENED, opened("a", run="first")),
    ],
    "lost": [
        (OPERATION, register()),
        (OPERATION, register("other")),
        (OPERATION, create("a", run="other")),
        (Kind.REFUSED, Refused(1, "refused", "run", None, None, True)),
        (Kind.REFUSED, Refused(3, "dropped", "other", "a", "b", False)),
        (Kind.OPENED, opened("c", "a", "other")),
        (Kind.OPENED, opened("d")),
    ],
    "ended": [
        (OPERATION, register()),
        (Kind.OPENED, opened("a")),
        (OPERATION, finish(at=NOON + 1)),
    ],
    "closed": [(OPERATION, register()), (Kind.OPENED, opened("a")), (Kind.CLOSED, NOON + 1)],
}


@for_each("name", HISTORIES)
def test_a_newer_file_says_the_same_with_and_without_the_earlier_ones(name: str) -> None:
    state = state_of(*HISTORIES[name])
    before, repeated = seen(state), [*state.records()]
    assert seen(state_of(*repeated)) == before
    state.begin_file()
    state_of(*repeated, state=state)
    assert seen(state) == before
    assert [*state.records()] == repeated


@for_each("name", HISTORIES)
def test_a_newer_file_that_is_torn_in_its_first_records_changes_nothing(name: str) -> None:
    before = seen(state_of(*HISTORIES[name]))
    for count in range(len([*state_of(*HISTORIES[name]).records()])):
        state = state_of(*HISTORIES[name])
        repeated = [*state.records()][:count]
        state.begin_file()
        assert seen(state_of(*repeated, state=state)) == before


def test_a_create_whose_opening_is_not_in_the_same_file_is_lost() -> None:
    body = encode(created("a"))
    state = state_of((Kind.OPENED, opened("a")))
    state.begin_file()
    assert not state.apply(Kind.CREATED, 2, body)
    assert not state.apply(Kind.CREATED, 3, encode(created("unknown")))
    assert pending_of(state) == []
    assert spans_of(state) == ["a"]
    state_of((Kind.OPENED, opened("a")), state=state)
    assert state.apply(Kind.CREATED, 5, body)
    assert not state.apply(Kind.CREATED, 6, body), "a span is created once"


@for_each(
    "kind, body",
    [
        *[(kind, b'{"no":') for kind in Kind],
        *[(kind, b'"text"') for kind in Kind],
        (OPERATION, b'{"operation_type":"CREATE_SPAN"}'),
        (OPERATION, b'{"operation_type":"\xff","timestamp":1,"instance_id":"run"}'),
        (Kind.OPENED, b'["a"]'),
        (15, b"{}"),
    ],
)
def test_a_record_with_another_body_counts_as_damaged(kind: int, body: bytes) -> None:
    state = JournalState()
    assert not state.apply(kind, 1, body)
    assert pending_of(state) == []
    assert state.last_sequence == 1


def test_the_header_is_that_of_the_newest_file() -> None:
    newer = Header(version=1, api_url="https://other", host="host", process=8, sdk="later")
    assert state_of((Kind.HEADER, HEADER), (Kind.HEADER, newer)).header == newer


def test_a_header_of_a_later_version_is_refused() -> None:
    with pytest.raises(JournalVersionError):
        JournalState().apply(Kind.HEADER, 1, encode({"version": 2}))


def test_a_set_of_sequence_numbers_is_a_set() -> None:
    numbers = SequenceSet()
    for number in (0, 1, 65_535, 65_536, 65_536, 2**40):
        numbers.add(number)
    assert len(numbers) == 5
    assert 65_535 in numbers
    assert 2 not in numbers
    assert 2**41 not in numbers
    numbers.discard(1)
    numbers.discard(5)
    numbers.discard(2**41)
    assert [numbers.count(0, last) for last in (0, 1, 65_534, 65_535, 65_536, 2**40)] == [
        1, 1, 1, 2, 3, 4,
    ]  # fmt: skip
    assert numbers.count(65_536, 70_000) == 1
    assert numbers.count(1, 65_534) == 0
