"""Segments: files that follow one another, that go, that are full, and that cannot be written."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import msgspec
import pytest
from msgspec import Raw
from support.journal_files import create, end, quality, register
from support.journal_writing import PAUSE, Writing, item, recorded, room_in_files

from prefactor_core.journal.format import Kind
from prefactor_core.operations import RecordQuality

LARGE_PAYLOAD = Raw(b'"' + b"x" * 4_000 + b'"')


def large(name: str) -> RecordQuality:
    return msgspec.structs.replace(quality(name), payload=LARGE_PAYLOAD)


def fill(writing: Writing, name: str = "filler") -> int:
    """Record operations until a new file has begun; return how many."""
    before, count = writing.files[-1], 0
    while writing.files[-1] == before:
        writing.give(quality(f"{name}-{count}"))
        count += 1
    return count


def levels(caplog: pytest.LogCaptureFixture) -> list[int]:
    return [record.levelno for record in caplog.records]


# Rotation.


def test_a_create_is_always_in_the_file_of_its_opening(tmp_path: Path) -> None:
    writing = Writing(tmp_path, max_bytes=8_000)
    expected = []
    for number in range(60):
        span = f"span-{number}"
        writing.open_span(span)
        for other in range(number % 7):
            writing.give(quality(f"{number}-{other}"))
            expected.append(quality(f"{number}-{other}"))
        expected.append(writing.end_span(span))
    assert len(writing.files) > 4
    assert Kind.CREATED in {kind for _, kind, _ in writing.records()}
    assert writing.operations() == expected


def test_spans_that_are_open_over_many_files_come_back_whole(tmp_path: Path) -> None:
    writing = Writing(tmp_path, max_bytes=8_000)
    spans = [f"span-{number}" for number in range(5)]
    for span in spans:
        writing.open_span(span)
    for number in range(3):
        fill(writing, f"{number}")
    creates = [writing.end_span(span) for span in spans]
    assert writing.operations()[-5:] == creates
    reader, _ = writing.read()
    assert [*reader.state.open_spans()] == []


def test_each_file_says_which_spans_are_open(tmp_path: Path) -> None:
    writing = Writing(tmp_path, max_bytes=8_000)
    for span in ("a", "b", "c"):
        writing.open_span(span)
    writing.end_span("b")
    writing.journal.discarded("c", None)
    writing.open.remove("c")
    fill(writing)
    for file in writing.files[:-1]:
        file.unlink()
    reader, _ = writing.read()
    assert [span.span_id for span in reader.state.open_spans()] == ["a"]


def test_sequence_numbers_go_up_over_all_files(tmp_path: Path) -> None:
    writing = Writing(tmp_path, max_bytes=8_000)
    for _ in range(3):
        fill(writing)
    numbers = [sequence for sequence, _, _ in writing.records()]
    assert numbers == list(range(1, len(numbers) + 1))


def test_a_file_goes_when_it_and_those_before_it_are_settled(tmp_path: Path) -> None:
    writing = Writing(tmp_path, max_bytes=100_000)
    first = register()
    writing.give(first)
    fill(writing)
    count = fill(writing, "second")
    assert len(writing.files) == 3
    writing.settle(*[quality(f"second-{number}") for number in range(count)])
    assert len(writing.files) == 3
    writing.settle(*[quality(f"filler-{number}") for number in range(400)])
    assert len(writing.files) == 3
    writing.settle(first)
    assert len(writing.files) == 1
    assert writing.journal.pending == 0
    assert writing.journal.size == writing.files[0].stat().st_size


def test_two_hundred_megabytes_that_are_delivered_leave_a_few_files(tmp_path: Path) -> None:
    writing = Writing(tmp_path, max_bytes=4_000_000)
    most = 0
    for _ in range(500):
        operations = [large(f"{number}") for number in range(100)]
        writing.give(*operations)
        writing.settle(*operations)
        most = max(most, len(writing.files))
        assert not writing.journal.is_full
    assert sum(1 for _ in writing.records()) < 1_000
    assert most <= 3
    writing.journal.close()
    assert list(tmp_path.iterdir()) == []


def test_open_spans_that_fill_the_files_alone_are_not_written_again_each_time(
    tmp_path: Path,
) -> None:
    writing = Writing(tmp_path, max_bytes=20_000)
    spans = [f"span-{number}" for number in range(300)]
    for span in spans:
        writing.open_span(span)
    assert writing.journal.is_full
    for number in range(50):
        writing.give(quality(f"{number}"))
        writing.settle(quality(f"{number}"))
    number = int(writing.files[-1].stem)
    assert number < 20
    # When they have ended, there is room again.
    writing.settle(*[writing.end_span(span) for span in spans])
    writing.now += PAUSE
    writing.give(quality("last"))
    writing.settle(quality("last"))
    assert not writing.journal.is_full


# The bound.


def test_files_are_full_at_their_bound_and_open_again_when_they_are_settled(
    tmp_path: Path,
) -> None:
    writing = Writing(tmp_path, max_bytes=100_000)
    operations = [quality(f"{number}") for number in range(1_000)]
    recorded_so_far = []
    while not writing.journal.is_full:
        recorded_so_far.append(operations[len(recorded_so_far)])
        writing.give(recorded_so_far[-1])
    assert 99_000 < writing.journal.size < 101_000
    # What belongs to runs and spans that are recorded is still taken.
    writing.give(create("child"))
    writing.settle(*recorded_so_far[:-1])
    assert not writing.journal.is_full
    assert writing.operations() == [recorded_so_far[-1], create("child")]


# A disk that is full, and files that are gone.


def test_a_short_write_leaves_no_part_of_a_record(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "prefactor_core.journal")
    writing = Writing(tmp_path)
    journal = writing.journal
    writing.give(register())
    whole = writing.files[0].stat().st_size
    with room_in_files(whole + 30):
        writing.give(quality("lost"))
        assert journal.is_resting
        assert writing.files[0].stat().st_size == whole
        writing.give(quality("lost, too"))
        writing.now += PAUSE
    assert writing.operations() == [register()]
    assert (journal.unwritten, journal.pending) == (2, 1)
    assert levels(caplog) == [logging.WARNING]
    assert "only 30 of" in caplog.text
    assert "in memory only" in caplog.text
    writing.give(quality("again"))
    assert writing.operations() == [register(), quality("again")]
    assert levels(caplog) == [logging.WARNING, logging.INFO]
    assert "is written again" in caplog.text
    assert journal.unwritten == 2
    writing.settle(register(), quality("lost"), quality("lost, too"), quality("again"))
    journal.close()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_stays_full_gives_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "prefactor_core.journal")
    writing = Writing(tmp_path)
    writing.give(register())
    with room_in_files(30):
        for number in range(20):
            writing.give(quality(f"{number}"))
            writing.open_span(f"{number}")
            writing.settle(quality(f"{number}"))
            writing.now += PAUSE / 2
    assert levels(caplog) == [logging.WARNING]
    writing.now += PAUSE
    writing.end_span("3")
    assert levels(caplog) == [logging.WARNING, logging.INFO]
    reader, entries = writing.read()
    # That it was opened is in the new file, whose records are those of all open spans.
    assert [entry.operation for entry in entries] == [register(), recorded("3")]
    assert len([*reader.state.open_spans()]) == 19


def test_settled_files_go_while_the_disk_is_full(tmp_path: Path) -> None:
    writing = Writing(tmp_path, max_bytes=20_000)
    operations = [quality(f"{number}") for number in range(80)]
    writing.give(*operations)
    files = len(writing.files)
    assert files > 2
    with room_in_files(10):
        writing.settle(*operations[:70])
        assert writing.journal.is_resting
        assert len(writing.files) < files
        assert writing.operations()[-10:] == operations[70:]


def test_a_span_that_ended_while_the_disk_was_full_is_not_open_after_that(tmp_path: Path) -> None:
    writing = Writing(tmp_path)
    writing.open_span("a")
    writing.open_span("b")
    with room_in_files(10):
        writing.end_span("a")
    writing.now += PAUSE
    writing.give(quality())
    reader, _ = writing.read()
    assert [span.span_id for span in reader.state.open_spans()] == ["b"]


def test_what_was_in_a_file_that_somebody_has_deleted_is_written_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "prefactor_core.journal")
    writing = Writing(tmp_path)
    writing.give(register(), create("a"), end("a"))
    writing.open_span("b")
    ended = writing.end_span("b")
    merged = create("a").finished_by(end("a"))
    both = item(merged)
    both.keys = ("a-create", "a-finish")
    writing.journal.sending([both])
    writing.files[0].unlink()
    assert writing.journal.pending == 0
    writing.settle(register())
    assert writing.journal.is_resting
    writing.now += PAUSE
    writing.give(quality())
    assert writing.journal.pending == 4
    _, entries = writing.read()
    assert [entry.operation for entry in entries] == [merged, ended, quality()]
    assert [entry.is_sent for entry in entries] == [True, False, False]
    assert levels(caplog) == [logging.WARNING, logging.INFO]
    writing.settle(create("a"), end("a"), ended, quality())
    writing.journal.close()
    assert list(tmp_path.iterdir()) == []


def test_what_a_deleted_file_said_of_earlier_ones_is_written_again(tmp_path: Path) -> None:
    writing = Writing(tmp_path, max_bytes=40_000)
    writing.give(create("a"), quality("settled"))
    fill(writing)
    writing.journal.sending([item(create("a"))])
    writing.settle(quality("settled"))
    # Its start was sent: it must not be merged into that.
    writing.give(end("a"))
    writing.files[-1].unlink()
    writing.settle(quality("filler-0"))
    writing.now += PAUSE
    writing.give(quality("last"))
    _, entries = writing.read()
    assert quality("settled") not in [entry.operation for entry in entries]
    sent = [entry.operation for entry in entries if entry.is_sent]
    assert sent == [create("a")]


def test_a_folder_that_is_gone_gives_one_warning_and_nothing_is_raised(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writing = Writing(tmp_path / "journals")
    writing.give(register())
    shutil.rmtree(tmp_path / "journals")
    for number in range(10):
        writing.give(quality(f"{number}"))
        writing.settle(quality(f"{number}"))
        writing.journal.set_aside(item(quality(f"{number}")), "refused", "no")
        writing.now += PAUSE
    assert len([line for line in caplog.messages if "in memory only" in line]) == 1
    assert writing.journal.pending == 0
    writing.journal.close()
    assert not (tmp_path / "journals").exists()


def test_a_file_in_place_of_the_folder_is_left_alone(tmp_path: Path) -> None:
    writing = Writing(tmp_path / "journals")
    shutil.rmtree(tmp_path / "journals")
    (tmp_path / "journals").write_text("mine")
    writing.give(register())
    writing.settle(register())
    writing.now += PAUSE
    writing.give(quality())
    writing.journal.close()
    assert (tmp_path / "journals").read_text() == "mine"


def test_a_link_in_place_of_the_next_file_is_not_followed(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("mine")
    writing = Writing(tmp_path / "journals", max_bytes=8_000)
    (writing.hold.path / "000002.log").symlink_to(other)
    for number in range(100):
        writing.give(quality(f"{number}"))
    assert writing.journal.is_resting
    assert other.read_text() == "mine"
