"""JournalReader: the unsettled operations of a journal in their last form, whatever is damaged."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw
from support.examples import examples
from support.journal_files import (
    HEADER,
    NOON,
    RESULT,
    JournalFiles,
    create,
    created,
    end,
    opened,
    quality,
    register,
    sample,
    seen,
    start,
)
from support.journal_model import Process, Snapshot, histories

from prefactor_core.journal.format import (
    HEAD,
    NONE,
    Aside,
    Damage,
    Form,
    JournalVersionError,
    Kind,
    OpenSpan,
    Refused,
    encode,
    frame,
    records,
)
from prefactor_core.journal.reader import (
    REFUSED_NAME,
    Entry,
    JournalReader,
    JournalUnreadableError,
    asides,
)
from prefactor_core.models.lifecycle import SpanStatus
from prefactor_core.operations import Operation

DONE = SpanStatus.COMPLETE


@pytest.fixture
def files(tmp_path: Path) -> JournalFiles:
    return JournalFiles(tmp_path / "a.journal")


def scanned(path: Path) -> JournalReader:
    reader = JournalReader(path)
    for _ in reader.scan():
        pass
    return reader


def read(path: Path) -> list[Entry]:
    reader = scanned(path)
    entries = [*reader.entries()]
    assert reader.damaged == reader.torn == {}
    return entries


def plain(operation: Operation, *sequences: int) -> Entry:
    return Entry(operation, (operation.idempotency_key,), sequences)


def sent(operation: Operation, *sequences: int, given_id: bool = True) -> Entry:
    return msgspec.structs.replace(plain(operation, *sequences), is_sent=True, given_id=given_id)


def open_descriptors() -> list[str]:
    return sorted(path.name for path in Path("/proc/self/fd").iterdir())


def operations(entries: Sequence[Entry]) -> list[Operation]:
    return [entry.operation for entry in entries]


def test_unsettled_operations_come_in_the_order_of_their_recording(files: JournalFiles) -> None:
    first = files.operation(register())
    second = files.operation(start())
    files.add(Kind.SETTLED, [first])
    files.add(Kind.OPENED, opened("a"))
    files.add(Kind.OPENED, opened("b", "a"))
    files.begin([(Kind.OPENED, opened("a")), (Kind.OPENED, opened("b", "a"))])
    third = files.add(
        Kind.CREATED, created("b", "a", status=DONE, finished_at=NOON + 1, result=RESULT)
    )
    fourth = files.add(Kind.CREATED, created("a"))
    fifth = files.operation(quality())
    assert read(files.path) == [
        plain(start(), second),
        plain(create("b", "a", status=DONE, finished_at=NOON + 1, result=RESULT), third),
        plain(create("a"), fourth),
        plain(quality(), fifth),
    ]


def test_a_scan_counts_the_unsettled_operations_and_bytes_of_each_file(
    files: JournalFiles,
) -> None:
    first = files.operation(register())
    files.operation(start())
    files.begin()
    files.operation(quality())
    last = files.operation(quality("other"))
    files.begin()
    files.add(Kind.SETTLED, [first, last])
    reader = scanned(files.path)
    assert reader.unsettled == {1: 1, 2: 1, 3: 0}
    assert reader.firsts == {1: 1, 2: 4, 3: 7}
    assert reader.sizes == {number: files.file_of(number).stat().st_size for number in (1, 2, 3)}
    assert reader.state.header == HEADER
    assert reader.state.last_sequence == files.sequence == 8


def test_records_that_are_settled_give_others_a_turn_as_well(files: JournalFiles) -> None:
    settled = [files.operation(quality(f"{number}")) for number in range(2_500)]
    files.add(Kind.SETTLED, settled)
    last = files.operation(quality("last"))
    reader = JournalReader(files.path)
    assert sum(1 for _ in reader.scan()) == 2
    assert [*reader.entries_in_turns()] == [None, None, plain(quality("last"), last)]


def test_a_scan_gives_others_a_turn_after_each_megabyte(files: JournalFiles) -> None:
    large = msgspec.structs.replace(quality(), payload=Raw(encode("x" * 300_000)))
    for _ in range(3):
        for _ in range(5):
            files.operation(large)
        files.begin([(Kind.BEAT, NOON)])
    assert sum(1 for _ in JournalReader(files.path).scan()) == 3


def test_the_open_spans_are_those_that_the_newest_file_lists(files: JournalFiles) -> None:
    files.operation(create("child", parent="outer"))
    files.add(Kind.OPENED, opened("ended"))
    files.begin([(Kind.OPEN_SPAN, OpenSpan("outer", "run", NOON)), (Kind.BEAT, NOON)])
    files.add(Kind.OPENED, opened("inner", "outer"))
    assert [*scanned(files.path).state.spans] == ["outer", "inner"]


def test_a_newest_file_that_lists_nothing_lets_earlier_ones_tell(files: JournalFiles) -> None:
    files.add(Kind.OPENED, opened("outer"))
    files.begin()  # its process died at once
    files.add(Kind.OPENED, opened("inner", "outer"))
    assert [*scanned(files.path).state.spans] == ["outer", "inner"]


# --- Forms ---


def test_an_operation_that_was_in_a_request_keeps_its_form(files: JournalFiles) -> None:
    first, second = files.operation(create("a")), files.operation(end("a"))
    files.add(Kind.SENDING, [Form((first,), False, NONE)])
    assert read(files.path) == [
        sent(create("a"), first, given_id=False),
        plain(end("a"), second),
    ]


def test_the_last_form_counts(files: JournalFiles) -> None:
    shrunk = msgspec.structs.replace(create("a"), payload=Raw(b'{"truncated":true}'))
    first = files.operation(create("a"))
    files.add(Kind.SENDING, [Form((first,), True, NONE)])
    files.begin()
    files.add(Kind.SENDING, [Form((first,), False, Raw(encode(shrunk)))])
    [entry] = read(files.path)
    assert entry == msgspec.structs.replace(
        sent(shrunk, first, given_id=False), original=create("a")
    )


def merged_in(files: JournalFiles, *, apart: bool, changed: Operation | None = None) -> list[int]:
    """A start and a finish in one item, and other operations around; return all numbers."""
    numbers = [files.operation(quality("before"))]
    files.add(Kind.OPENED, opened("a"))
    numbers.append(files.add(Kind.CREATED, created("a")))
    numbers.append(files.operation(quality("between")))
    if apart:
        files.begin()
    numbers.append(files.operation(end("a", at=NOON + 1)))
    numbers.append(files.operation(quality("after")))
    body = NONE if changed is None else Raw(encode(changed))
    files.add(Kind.SENDING, [Form((numbers[1], numbers[3]), False, body)])
    return numbers


WHOLE = create("a").finished_by(end("a", at=NOON + 1))
KEYS = ("a-create", "a-finish")


def test_a_start_and_a_finish_that_were_one_item_are_one_entry(tmp_path: Path) -> None:
    for apart in (False, True):
        files = JournalFiles(tmp_path / f"{apart}.journal")
        before, first, between, second, after = merged_in(files, apart=apart)
        assert read(files.path) == [
            plain(quality("before"), before),
            Entry(WHOLE, KEYS, (first, second), is_sent=True, given_id=False),
            plain(quality("between"), between),
            plain(quality("after"), after),
        ]


def test_one_item_of_two_operations_that_was_changed_has_both_forms(files: JournalFiles) -> None:
    shrunk = msgspec.structs.replace(WHOLE, payload=Raw(b"{}"))
    _, first, _, second, _ = merged_in(files, apart=True, changed=shrunk)
    assert read(files.path)[1] == Entry(
        shrunk, KEYS, (first, second), WHOLE, is_sent=True, given_id=False
    )


def test_the_rest_of_an_item_stands_alone_when_one_operation_is_settled(
    files: JournalFiles,
) -> None:
    _, first, _, second, _ = merged_in(files, apart=True)
    files.add(Kind.REFUSED, Refused(first, "refused", "run", "a", None, False))
    entry = sent(end("a", at=NOON + 1), second, given_id=False)
    assert read(files.path)[2] == entry
    assert len(read(files.path)) == 4


def test_an_item_settled_as_a_whole_is_not_there(files: JournalFiles) -> None:
    _, first, _, second, _ = merged_in(files, apart=True)
    files.add(Kind.SETTLED, [first, second])
    assert len(read(files.path)) == 3


def damage(file: Path, text: bytes) -> None:
    """Flip a bit in the last place of the file that has this text."""
    data = bytearray(file.read_bytes())
    data[data.rindex(text)] ^= 1
    file.write_bytes(data)


def test_a_start_whose_finish_is_damaged_stands_alone_in_its_form(files: JournalFiles) -> None:
    _, first, *_ = merged_in(files, apart=True)
    damage(files.file, b"FINISH_SPAN")
    reader = scanned(files.path)
    assert [*reader.entries()][1] == sent(create("a"), first, given_id=False)
    assert reader.damaged == {2: 1}


def test_a_finish_whose_start_is_damaged_stands_alone(files: JournalFiles) -> None:
    *_, second, _ = merged_in(files, apart=True)
    damage(files.file_of(1), b'["a","run"')
    reader = scanned(files.path)
    assert [*reader.entries()][2] == sent(end("a", at=NOON + 1), second, given_id=False)
    # The note of the opening, and the create that needs its payload.
    assert reader.damaged == {1: 2}


def test_a_finish_whose_start_has_gone_between_the_passes_stands_alone(
    files: JournalFiles,
) -> None:
    *_, second, after = merged_in(files, apart=True)
    reader = scanned(files.path)
    files.file_of(1).unlink()
    assert [*reader.entries()] == [
        sent(end("a", at=NOON + 1), second, given_id=False),
        plain(quality("after"), after),
    ]
    assert reader.damaged == {1: 1}


def test_a_changed_form_that_is_no_operation_counts_as_damage(files: JournalFiles) -> None:
    first = files.operation(create("a"))
    files.add(Kind.SENDING, [Form((first,), True, Raw(b"{}"))])
    reader = scanned(files.path)
    assert [*reader.entries()] == [sent(create("a"), first)]
    assert reader.damaged == {1: 1}


# --- What comes between the passes ---


def test_operations_that_were_appended_to_a_new_file_come_last(files: JournalFiles) -> None:
    first = files.operation(quality())
    files.add(Kind.OPENED, opened("a"))
    reader = scanned(files.path)
    files.begin(reader.state.records())
    second = files.add(Kind.CREATED, created("a", status=SpanStatus.FAILED, finished_at=NOON + 1))
    entries = reader.entries()
    assert next(entries) == plain(quality(), first)
    # The adopter goes on writing while it sends.
    files.add(Kind.SETTLED, [first])
    files.begin()
    files.add(Kind.SETTLED, [second])
    assert [*entries] == [
        plain(create("a", status=SpanStatus.FAILED, finished_at=NOON + 1), second)
    ]
    assert reader.damaged == {}


def test_a_file_without_unsettled_operations_may_go_between_the_passes(
    files: JournalFiles,
) -> None:
    first = files.operation(quality())
    files.begin()
    second = files.operation(quality("other"))
    files.add(Kind.SETTLED, [first])
    reader = scanned(files.path)
    files.file_of(1).unlink()
    assert [*reader.entries()] == [plain(quality("other"), second)]
    assert reader.damaged == {}


def test_a_file_that_goes_during_the_scan_counts_as_damaged(files: JournalFiles) -> None:
    large = msgspec.structs.replace(quality(), payload=Raw(encode("x" * 1_100_000)))
    files.operation(large)
    files.begin()
    files.operation(quality("other"))
    reader = JournalReader(files.path)
    scan = reader.scan()
    next(scan)
    files.file_of(2).unlink()
    for _ in scan:
        pass
    assert operations([*reader.entries()]) == [large]
    assert reader.damaged == {2: 1}


# --- Damage ---


class Sample:
    """A journal of one file, of which parts can be read."""

    def __init__(self, path: Path) -> None:
        files = sample(path)
        self.path = path
        self._file = files.file
        data = self._file.read_bytes()
        self.frames = [
            frame(number, Kind(kind), body)
            for number, kind, body in records(data)
            if isinstance(kind, int) and isinstance(body, bytes)
        ]
        assert b"".join(self.frames) == data

    def read(self, data: bytes) -> tuple[object, dict[int, int], dict[int, int]]:
        """Return the content of the journal with these bytes; and the counts of its damage."""
        # In place: ext4 brings a file to the disk that was truncated to nothing and written again.
        with self._file.open("r+b", buffering=0) as file:
            file.write(data)
            file.truncate()
        reader = scanned(self.path)
        entries = [*reader.entries()]
        state = reader.state
        says = entries, seen(state), state.header, state.last_sequence, reader.unsettled
        return says, reader.damaged, reader.torn


def test_a_journal_cut_at_any_byte_has_the_whole_records_before_the_cut(tmp_path: Path) -> None:
    journal = Sample(tmp_path / "a.journal")
    whole = b""
    for record in journal.frames:
        says, *nothing = journal.read(whole)
        assert nothing == [{}, {}]
        for cut in range(1, len(record)):
            assert journal.read(whole + record[:cut]) == (says, {}, {1: cut}), (len(whole), cut)
        whole += record


def test_a_flipped_bit_costs_the_record_that_has_it(tmp_path: Path) -> None:
    journal = Sample(tmp_path / "a.journal")
    for number, record in enumerate(journal.frames):
        before = b"".join(journal.frames[:number])
        after = b"".join(journal.frames[number + 1 :])
        says, damaged, _ = journal.read(before + after)
        lost = {1: damaged.get(1, 0) + 1}
        expected = (says, lost, {}) if after else (says, damaged, {1: len(record)})
        for place in range(len(record)):
            # All bits of the head; of the body one of each byte: test_format flips the others.
            for bit in range(8) if place < HEAD.size else [place % 8]:
                hit = bytearray(record)
                hit[place] ^= 1 << bit
                assert journal.read(before + hit + after) == expected, (number, place, bit)


def test_a_file_of_zeros_or_garbage_has_nothing_and_hides_no_other_file(tmp_path: Path) -> None:
    for number, bad in enumerate((bytes(5_000), b"\xa5garbage" * 500, b"{" * 1_000)):
        files = JournalFiles(tmp_path / f"{number}.journal")
        first = files.operation(quality())
        files.number += 1
        files.file.write_bytes(bad)
        files.begin()
        second = files.operation(quality("other"))
        reader = scanned(files.path)
        assert [*reader.entries()] == [plain(quality(), first), plain(quality("other"), second)]
        assert (reader.damaged, reader.torn) == ({}, {2: len(bad)})
        assert reader.unsettled == {1: 1, 2: 0, 3: 1}


def test_a_journal_of_nothing_but_garbage_has_no_header(files: JournalFiles) -> None:
    files.file.write_bytes(bytes(100))
    reader = scanned(files.path)
    assert [*reader.entries()] == []
    assert reader.state.header is None
    assert reader.torn == {1: 100}


def test_an_empty_file_is_left_by_a_writer_that_died_at_its_beginning(files: JournalFiles) -> None:
    files.operation(quality())
    files.file_of(2).touch()
    assert len(read(files.path)) == 1


def test_damage_in_a_new_file_is_noted_by_the_second_pass(files: JournalFiles) -> None:
    reader = scanned(files.path)
    files.begin()
    files.operation(quality())
    files.operation(quality("other"))
    damage(files.file, b"score")
    assert operations([*reader.entries()]) == [quality("other")]
    assert reader.damaged == {2: 1}


def test_a_finish_that_is_none_counts_as_damage_and_leaves_its_start(files: JournalFiles) -> None:
    first = files.operation(create("a"))
    broken = {"operation_type": "FINISH_SPAN", "timestamp": NOON, "instance_id": "run"}
    second = files.add(Kind.OPERATION, broken)
    files.add(Kind.SENDING, [Form((first, second), True, NONE)])
    reader = scanned(files.path)
    assert [*reader.entries()] == [sent(create("a"), first)]
    assert reader.damaged == {1: 1}


def test_an_item_of_two_operations_that_are_none_of_a_span_is_two(files: JournalFiles) -> None:
    first, second = files.operation(quality()), files.operation(quality("other"))
    files.add(Kind.SENDING, [Form((first, second), True, NONE)])
    assert read(files.path) == [sent(quality(), first), sent(quality("other"), second)]


def test_an_operation_that_is_none_counts_as_damage(files: JournalFiles) -> None:
    files.add(
        Kind.OPERATION, {"operation_type": "UNKNOWN", "timestamp": NOON, "instance_id": "run"}
    )
    reader = scanned(files.path)
    assert [*reader.entries()] == []
    assert reader.damaged == {1: 1}
    assert reader.unsettled == {1: 1}


# --- A process that records at random ---


def snapshot_of(path: Path) -> Snapshot:
    reader = scanned(path)
    entries = [*reader.entries()]
    assert reader.damaged == {}
    assert sum(reader.unsettled.values()) == sum(len(entry.sequences) for entry in entries)
    return Snapshot(
        [(entry.sequences, entry.operation, entry.is_sent) for entry in entries],
        [(span.span_id, isinstance(span, OpenSpan)) for span in reader.state.open_spans()],
        [
            (run.instance_id.removeprefix("their-"), run.status)
            for run in reader.state.runs.values()
        ],
    )


@settings(max_examples=examples(200))
@given(histories, st.data())
def test_a_journal_says_what_its_process_recorded_until_it_was_cut(
    history: list[tuple[str, int, int]], data: st.DataObject
) -> None:
    with TemporaryDirectory() as folder:
        process = Process(Path(folder) / "a.journal")
        process.play(history)
        files = process.files
        number = data.draw(st.integers(1, files.number))
        cut = data.draw(st.integers(0, files.file_of(number).stat().st_size))
        for later in range(number + 1, files.number + 1):
            files.file_of(later).unlink()
        with files.file_of(number).open("r+b") as file:
            file.truncate(cut)
        whole = sum(
            not isinstance(record, Damage)
            for existing in range(1, number + 1)
            for record in records(files.file_of(existing).read_bytes())
        )
        expected = process.snapshots[whole - 1] if whole else Snapshot([], [], [])
        assert snapshot_of(files.path) == expected


@settings(max_examples=examples(200))
@given(histories)
def test_earlier_files_can_go_when_all_in_them_is_settled(
    history: list[tuple[str, int, int]],
) -> None:
    with TemporaryDirectory() as folder:
        process = Process(Path(folder) / "a.journal")
        process.play(history)
        for number, unsettled in scanned(process.path).unsettled.items():
            if unsettled or number == process.files.number:
                break
            process.files.file_of(number).unlink()
        assert snapshot_of(process.path) == process.snapshots[-1]


# --- What cannot be read ---


def test_a_file_of_a_later_version_is_not_read(files: JournalFiles) -> None:
    files.operation(quality())
    files.begin(header=msgspec.structs.replace(HEADER, version=2))
    with pytest.raises(JournalVersionError, match="version 2"):
        scanned(files.path)


def test_a_folder_or_a_file_that_cannot_be_read_is_an_error_of_this_library(
    tmp_path: Path, files: JournalFiles
) -> None:
    with pytest.raises(JournalUnreadableError, match=r"nothing cannot be read: No such file"):
        scanned(tmp_path / "nothing")
    reader = scanned(files.path)
    files.file.rename(tmp_path / "elsewhere")
    files.file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(JournalUnreadableError, match=r"000001\.log cannot be read"):
        scanned(files.path)
    files.file.unlink()
    files.path.rmdir()
    with pytest.raises(JournalUnreadableError):
        [*reader.entries()]


def test_other_files_in_the_folder_are_not_read(files: JournalFiles) -> None:
    for name in ("lock", "1.log", "000001.log.damaged", "x000002.log", REFUSED_NAME):
        (files.path / name).write_bytes(b"garbage")
    assert read(files.path) == []


def test_reading_leaves_no_descriptor_open(files: JournalFiles) -> None:
    files.operation(quality())
    before = open_descriptors()
    for _ in range(3):
        read(files.path)
    assert open_descriptors() == before


# --- Operations that are given up ---


def test_operations_that_are_given_up_come_with_their_reasons(
    files: JournalFiles, caplog: pytest.LogCaptureFixture
) -> None:
    assert [*asides(files.path)] == []
    kept = [
        (7, Aside(reason="refused", error="no such field", at=NOON, operation=create("a"))),
        (0, Aside(reason="rejected", error=None, at=NOON + 1, operation=quality())),
    ]
    data = b"".join(frame(number, Kind.REFUSED, encode(aside)) for number, aside in kept)
    file = files.path / REFUSED_NAME
    file.write_bytes(data)
    assert [*asides(files.path)] == kept
    with caplog.at_level(logging.WARNING, "prefactor_core"):
        file.write_bytes(data[:-1])
        assert [*asides(files.path)] == kept[:1]
        file.write_bytes(frame(1, Kind.REFUSED, b"{}"))
        assert [*asides(files.path)] == []
    assert [record.getMessage() for record in caplog.records] == [
        f"a refused operation in {file} is damaged, and left out"
    ] * 2


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_pipe_or_a_folder_in_place_of_a_file_is_unreadable_and_holds_nobody_up(
    files: JournalFiles, make: Callable[[Path], object]
) -> None:
    make(files.path / "000002.log")
    before = open_descriptors()
    with pytest.raises(JournalUnreadableError, match="it is no file"):
        [*JournalReader(files.path).scan()]
    assert open_descriptors() == before
