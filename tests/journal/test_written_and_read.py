"""What the writer of a journal writes, its reader reads; and an adopter goes on writing."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from threading import RLock

import msgspec
import pytest
from support.journal_files import (
    HEADER,
    NOON,
    PAYLOAD,
    RESULT,
    create,
    end,
    opened,
    quality,
    register,
    start,
)
from support.journal_writing import room_in_files

from prefactor_core.journal.adopted import AdoptedJournal
from prefactor_core.journal.burial import burials
from prefactor_core.journal.directory import JournalDirectory
from prefactor_core.journal.format import Identified, Kind, OpenRun, OpenSpan
from prefactor_core.journal.reader import Entry, JournalReader, JournalUnreadableError, asides
from prefactor_core.journal.writer import JournalWriter
from prefactor_core.models.lifecycle import InstanceStatus, SpanStatus
from prefactor_core.operations import CreateSpan, Operation
from prefactor_core.queue.event_loop import EventLoop

LARGE = 1 << 30


@dataclass(eq=False)
class Item:
    """An item of a request."""

    operation: Operation
    keys: tuple[str, ...]
    is_changed: bool = False
    given_id: bool = True
    noted: object = None


def item(operation: Operation, **fields: bool) -> Item:
    return Item(operation, (operation.idempotency_key,), **fields)


def write(
    path: Path, state: Callable[[], Iterable[tuple[Kind, object]]] = tuple, max_bytes: int = LARGE
) -> JournalWriter:
    directory = JournalDirectory(path)
    directory.open()
    return JournalWriter(
        directory.create(), HEADER, RLock(), lambda call: call(), state=state, max_bytes=max_bytes
    )


def read(path: Path) -> tuple[JournalReader, list[Entry]]:
    [journal] = JournalDirectory(path).journals()
    reader = JournalReader(journal)
    for _ in reader.scan():
        pass
    entries = [*reader.entries()]
    assert reader.damaged == reader.torn == {}
    return reader, entries


def open_span(journal: JournalWriter, span: str, parent: str | None = None) -> None:
    note = opened(span, parent)
    journal.opened(*msgspec.structs.astuple(note))


def recorded(span: str, parent: str | None = None) -> CreateSpan:
    return create(span, parent, status=SpanStatus.COMPLETE, finished_at=NOON + 1, result=RESULT)


def test_what_is_not_settled_comes_back(tmp_path: Path) -> None:
    journal = write(tmp_path)
    for operation in (register(), start()):
        journal.append(operation)
    open_span(journal, "a")
    open_span(journal, "b", "a")
    journal.append(create("a"))
    journal.append(recorded("b", "a"))
    journal.append(end("a"))
    journal.identified("run", None, "theirs")
    journal.settled([item(register()), item(recorded("b"))])
    open_span(journal, "c", "a")
    journal.abandon()
    reader, entries = read(tmp_path)
    assert [entry.operation for entry in entries] == [start(), create("a"), end("a")]
    assert [entry.keys for entry in entries] == [("run-start",), ("a-create",), ("a-finish",)]
    assert not any(entry.is_sent for entry in entries)
    assert reader.state.run_ids == {"run": "theirs"}
    assert [*reader.state.open_spans()] == [opened("c", "a")]
    assert journal.pending == sum(reader.unsettled.values()) == 3
    assert journal.size == sum(reader.sizes.values())


def test_what_was_sent_keeps_its_form(tmp_path: Path) -> None:
    journal = write(tmp_path)
    for span in ("a", "b"):
        journal.append(create(span))
        journal.append(end(span))
    journal.append(quality())
    merged = create("a").finished_by(end("a"))
    shrunk = msgspec.structs.replace(quality(), payload=PAYLOAD)
    journal.sending([Item(merged, ("a-create", "a-finish")), item(create("b"), given_id=False)])
    journal.sending([item(quality())])
    journal.sending([item(shrunk, is_changed=True)])
    journal.abandon()
    _, entries = read(tmp_path)
    assert [(entry.operation, entry.keys, entry.is_sent, entry.given_id) for entry in entries] == [
        (merged, ("a-create", "a-finish"), True, True),
        (create("b"), ("b-create",), True, False),
        (end("b"), ("b-finish",), False, True),
        (shrunk, (quality().idempotency_key,), True, True),
    ]
    assert entries[3].original == quality()


def test_what_is_given_up_is_kept_aside(tmp_path: Path) -> None:
    journal = write(tmp_path)
    journal.append(create("a", "parent"))
    journal.append(end("a"))
    journal.set_aside(item(create("a", "parent")), "refused", "no such field")
    journal.abandon()
    reader, entries = read(tmp_path)
    assert [entry.operation for entry in entries] == [end("a")]
    assert reader.state.lost_spans["a"].parent_span_id == "parent"
    [(sequence, aside)] = asides(reader.path)
    assert (sequence, aside.error, aside.operation) == (3, "no such field", create("a", "parent"))


def small_files(path: Path) -> JournalWriter:
    """A writer whose files have room for some operations, with the state of an open run."""

    def state() -> list[tuple[Kind, object]]:
        return [
            (Kind.IDENTIFIED, Identified("run", None, "theirs")),
            (Kind.OPEN_RUN, OpenRun("run", InstanceStatus.ACTIVE, NOON)),
            (Kind.OPENED, opened("a")),
            (Kind.OPEN_SPAN, OpenSpan("b", "run", NOON)),
        ]

    return write(path, state, max_bytes=12_000)


def pass_by(journal: JournalWriter, count: int) -> None:
    """Append so many operations, and settle each at once."""
    for number in range(count):
        journal.append(quality(f"passing-{number}"))
        journal.settled([item(quality(f"passing-{number}"))])


def test_files_that_are_settled_go_and_the_rest_says_the_same(tmp_path: Path) -> None:
    journal = small_files(tmp_path)
    pass_by(journal, 100)
    journal.append(quality())
    journal.abandon()
    reader, entries = read(tmp_path)
    assert [entry.operation for entry in entries] == [quality()]
    assert min(reader.sizes) > 1
    assert [span.span_id for span in reader.state.open_spans()] == ["a", "b"]
    assert reader.state.run_of("theirs") is not None


def test_a_file_stays_while_an_earlier_one_is_needed(tmp_path: Path) -> None:
    journal = small_files(tmp_path)
    journal.append(create("z"))
    journal.append(quality())
    pass_by(journal, 10)
    # In the second file: how an operation of the first one was sent, and that one is settled.
    journal.sending([item(create("z"), given_id=False)])
    journal.settled([item(quality())])
    pass_by(journal, 20)
    assert not journal.is_full
    journal.abandon()
    reader, [entry] = read(tmp_path)
    assert entry == Entry(create("z"), ("z-create",), entry.sequences, None, True, False)
    assert len(reader.sizes) > 2
    assert journal.pending == 1


def test_a_large_state_does_not_begin_a_new_file_with_each_record(tmp_path: Path) -> None:
    spans = [opened(f"span-{number}") for number in range(200)]
    journal = write(tmp_path, lambda: [(Kind.OPENED, span) for span in spans], max_bytes=40_000)
    pass_by(journal, 100)
    journal.append(quality())
    journal.abandon()
    reader, _ = read(tmp_path)
    assert max(reader.sizes) < 20


# --- The adopter ---


class Loop:
    """An event loop that runs at once what it is to run soon."""

    def run_sync_soon(self, function: Callable[[], object]) -> None:
        function()


def adopt(path: Path) -> AdoptedJournal:
    [held] = filter(None, JournalDirectory(path).abandoned())
    journal = AdoptedJournal(held, EventLoop(Loop()))
    for _ in journal.read():
        pass
    return journal


def begin_next_file(journal: JournalWriter) -> None:
    """Append so much that the next record begins a file, and one more record."""
    journal.identified("run", "span", "x" * 9_000_000)
    journal.identified("run", "span", "theirs")


def test_an_end_that_an_adopter_cannot_write_is_left_to_the_next_one(tmp_path: Path) -> None:
    path, copy = tmp_path / "journals", tmp_path / "copy"
    journal = write(path)
    journal.append(register())
    for number in range(3):
        open_span(journal, f"{number}")
    journal.abandon()
    shutil.copytree(path, copy)
    whole = adopt(copy)
    assert [*whole.take_over()] == []
    written = [entry.operation for entry in whole.reader.entries()]
    whole.abandon()
    (file,) = copy.glob("*/000002.log")
    with room_in_files(file.stat().st_size - 10):
        first = adopt(path)
        with pytest.raises(JournalUnreadableError, match="cannot be written"):
            [*first.take_over()]
        first.abandon()
    second = adopt(path)
    assert [*second.take_over()] == []
    assert [entry.operation for entry in second.reader.entries()] == written
    second.abandon()


def test_what_an_adopter_has_done_is_not_done_again_after_its_death(tmp_path: Path) -> None:
    for count in (0, 3, 7):
        path = tmp_path / f"{count}"
        journal = write(path)
        journal.append(register())
        for number in range(3):
            open_span(journal, f"{number}")
        journal.append(create("0"))
        journal.abandon()
        first = adopt(path)
        assert [*first.take_over()] == []
        writer, entries = first.writer, [*first.reader.entries()]
        for entry in entries:
            writer.resumed(entry.keys, entry.sequences)
        assert len(entries) == 7
        writer.identified("run", None, "theirs")
        writer.set_aside(item(recorded("lost")), "refused", None)
        begin_next_file(writer)
        writer.settled([item(entry.operation) for entry in entries[:count]])
        begin_next_file(writer)
        writer.abandon()
        second = adopt(path)
        state = second.reader.state
        assert [entry.operation for entry in second.reader.entries()] == [
            entry.operation for entry in entries[count:]
        ]
        assert [*burials(state)] == []
        assert state.run_ids == {"run": "theirs"}
        assert [*state.lost_spans] == ["lost"]
        assert (min(second.reader.sizes) > 2) == (count == 7)
        second.abandon()


def test_an_adopter_that_dies_while_it_ends_what_was_open_leaves_the_rest(tmp_path: Path) -> None:
    journal = write(tmp_path)
    journal.append(register())
    for number in range(300):
        open_span(journal, f"{number}", f"{number - 1}" if number % 7 else None)
    journal.abandon()
    first = adopt(tmp_path)
    expected = [*burials(first.reader.state)]
    next(first.take_over())
    begin_next_file(first.writer)
    first.abandon()
    second = adopt(tmp_path)
    assert 0 < len([*burials(second.reader.state)]) < len(expected)
    for _ in second.take_over():
        pass
    entries = [*second.reader.entries()]
    assert [entry.operation for entry in entries] == [register(), *expected]
    second.abandon()


def test_an_operation_that_is_twice_in_a_journal_is_settled_twice(tmp_path: Path) -> None:
    journal = write(tmp_path)
    journal.append(quality())
    journal.append(quality())
    assert journal.pending == 2
    journal.abandon()
    adopted = adopt(tmp_path)
    for _ in adopted.take_over():
        pass
    writer = adopted.writer
    for entry in adopted.reader.entries():
        writer.resumed(entry.keys, entry.sequences)
    for left in (1, 0):
        writer.settled([item(quality())])
        assert writer.pending == left
    writer.close()
    assert JournalDirectory(tmp_path).journals() == []
