"""Burial: what a dead process left open ends, children first, and each of it once."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw
from support.cases import for_each
from support.examples import examples
from support.journal_files import (
    NOON,
    create,
    created,
    end,
    finish,
    opened,
    register,
    start,
    state_of,
)
from support.journal_model import Process, check_rules, histories

from prefactor_core.export.identity import RunIdentity
from prefactor_core.journal.burial import burials
from prefactor_core.journal.format import Discarded, Identified, Kind, Refused
from prefactor_core.journal.reader import JournalReader
from prefactor_core.journal.state import JournalState
from prefactor_core.models.lifecycle import InstanceStatus, SpanStatus
from prefactor_core.operations import CreateSpan, FinishSpan, Operation

OPERATION, OPENED, CREATED = Kind.OPERATION, Kind.OPENED, Kind.CREATED
FAILED = SpanStatus.FAILED
LAST = NOON + 100
BEAT = Kind.BEAT, LAST

ERROR = Raw(
    msgspec.json.encode(
        {
            "error": {
                "type": "process_died",
                "message": "the process ended while this span was open; the time is that of the "
                "last entry in its journal",
                "stacktrace": "",
            }
        }
    )
)


def buried(*records: tuple[Kind, Any]) -> list[Operation]:
    return [*burials(state_of(*records, BEAT))]


def failed_create(span: str, parent: str | None = None, run: str = "run", at: int = NOON) -> Any:
    return create(span, parent, run, at=at, status=FAILED, finished_at=LAST, result=ERROR)


def failed(span: str, run: str = "run", status: SpanStatus = FAILED) -> Operation:
    return end(span, run, at=LAST, status=status, result=ERROR)


def failed_run(run: str = "run") -> Operation:
    return finish(run, LAST, InstanceStatus.FAILED)


RUNNING: list[tuple[Kind, Any]] = [(OPERATION, register()), (OPERATION, start())]


def test_a_span_that_was_not_reported_is_created_as_failed() -> None:
    assert buried(*RUNNING, (OPENED, opened("a", at=NOON + 1))) == [
        failed_create("a", at=NOON + 1),
        failed_run(),
    ]


def test_a_reported_span_is_finished_as_failed() -> None:
    assert buried(*RUNNING, (OPENED, opened("a")), (CREATED, created("a"))) == [
        failed("a"),
        failed_run(),
    ]


def test_children_end_before_their_parents() -> None:
    assert buried(
        *RUNNING,
        (OPENED, opened("a")),
        (OPENED, opened("b", "a")),
        (OPENED, opened("c", "b")),
        (OPENED, opened("d", "a")),
        (CREATED, created("a")),
        (CREATED, created("b", "a")),
    ) == [failed_create("d", "a"), failed_create("c", "b"), failed("b"), failed("a"), failed_run()]


def test_a_parent_that_was_not_reported_is_created_before_its_children() -> None:
    assert buried(
        *RUNNING,
        (OPENED, opened("a", at=NOON + 1)),
        (OPENED, opened("b", "a", at=NOON + 2)),
        (OPENED, opened("c", "b", at=NOON + 3)),
    ) == [
        create("a", at=NOON + 1),
        create("b", "a", at=NOON + 2),
        failed_create("c", "b", at=NOON + 3),
        failed("b"),
        failed("a"),
        failed_run(),
    ]


def test_a_span_that_was_created_to_be_cancelled_is_cancelled() -> None:
    assert buried(
        *RUNNING, (OPENED, opened("a")), (CREATED, created("a", status=SpanStatus.PENDING))
    ) == [failed("a", status=SpanStatus.CANCELLED), failed_run()]


def test_a_run_without_spans_ends_and_is_started_before_that() -> None:
    assert buried(*RUNNING) == [failed_run()]
    assert buried((OPERATION, register())) == [start(at=LAST), failed_run()]


def test_a_run_is_started_with_its_first_span() -> None:
    assert buried(
        (OPERATION, register()),
        (OPENED, opened("a", at=NOON + 1)),
        (OPENED, opened("b", at=NOON + 2)),
    ) == [
        start(at=NOON + 1),
        failed_create("b", at=NOON + 2),
        failed_create("a", at=NOON + 1),
        failed_run(),
    ]


def test_a_run_that_another_journal_registered_goes_on() -> None:
    assert buried((OPENED, opened("a", run="other"))) == [failed_create("a", run="other")]


def test_the_run_has_the_id_of_its_other_operations() -> None:
    identified = (OPERATION, register()), (Kind.IDENTIFIED, Identified("run", None, "theirs"))
    assert buried(*identified, (OPENED, opened("a", run="theirs"))) == [
        start("theirs"),
        failed_create("a", run="theirs"),
        failed_run("theirs"),
    ]
    assert buried(*identified, (OPERATION, start("theirs"))) == [failed_run("theirs")]


def test_nothing_of_a_refused_run_is_ended() -> None:
    refused = Refused(1, "refused", "run", None, None, True)
    assert buried(*RUNNING, (OPENED, opened("a")), (Kind.REFUSED, refused)) == []


def test_nothing_of_a_run_that_has_ended_is_ended() -> None:
    assert buried(*RUNNING, (OPENED, opened("a")), (OPERATION, finish())) == []


def test_a_refused_span_is_not_ended_and_its_children_hang_on_its_parent_when_sent() -> None:
    operations = buried(
        *RUNNING,
        (OPENED, opened("a")),
        (CREATED, created("a")),
        (OPENED, opened("b", "a")),
        (CREATED, created("b", "a")),
        (OPENED, opened("c", "b")),
        (Kind.REFUSED, Refused(6, "refused", "run", "b", "a", False)),
    )
    assert operations == [failed_create("c", "b"), failed("a"), failed_run()]
    run = RunIdentity("run")
    run.span_lost(create("b", "a"), "refused")
    assert run.addressed(operations[0]) == failed_create("c", "a")


def test_the_parent_of_a_span_that_is_not_recorded_gets_its_children() -> None:
    assert buried(
        *RUNNING,
        (OPENED, opened("a")),
        (OPENED, opened("b", "a")),
        (OPENED, opened("c", "b")),
        (Kind.DISCARDED, Discarded("b", "a")),
    ) == [create("a"), failed_create("c", "a"), failed("a"), failed_run()]


def test_nothing_is_ended_after_a_scope_was_left_in_order() -> None:
    assert buried(*RUNNING, (OPENED, opened("a")), (Kind.CLOSED, NOON + 1)) == []


@for_each("at", [NOON, LAST + 7])
def test_the_time_is_that_of_the_last_entry(at: int) -> None:
    # A caller may have given a start in the future.
    operations = buried(*RUNNING, (OPERATION, create("a", at=at)))
    assert [operation.timestamp for operation in operations] == [max(at, LAST)] * 2


def died(process: Process) -> JournalState:
    reader = JournalReader(process.path)
    for _ in reader.scan():
        pass
    return reader.state


@settings(max_examples=examples(200))
@given(histories)
def test_all_that_was_recorded_and_the_burials_obey_the_rules_of_the_api(
    history: list[tuple[str, int, int]],
) -> None:
    with TemporaryDirectory() as folder:
        process = Process(Path(folder) / "a.journal")
        process.play(history)
        operations = [*burials(died(process))]
    check_rules([*process.recorded, *operations])
    ends = {
        operation.span_id
        for operation in operations
        if isinstance(operation, FinishSpan)
        or (isinstance(operation, CreateSpan) and operation.status is FAILED)
    }
    assert ends == {span.id for span in process.spans}


@settings(max_examples=examples(100))
@given(histories, st.data())
def test_an_adopter_that_dies_leaves_the_rest_to_the_next_one(
    history: list[tuple[str, int, int]], data: st.DataObject
) -> None:
    with TemporaryDirectory() as folder:
        process = Process(Path(folder) / "a.journal")
        process.play(history)
        rest = [*burials(died(process))]
        while rest:
            files = process.files
            files.begin(died(process).records())
            for operation in rest[: data.draw(st.integers(1, len(rest)))]:
                files.operation(operation)
                rest.remove(operation)
            assert [*burials(died(process))] == rest
