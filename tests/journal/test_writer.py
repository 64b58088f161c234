"""JournalWriter: what the other rooms say to it, in any thread, and interrupted anywhere."""

from __future__ import annotations

import os
import stat
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from support.forks import needs_fork, run
from support.interruptions import in_the_middle
from support.journal_files import RESULT, create, end, quality, register
from support.journal_writing import LARGE, Writing, item, recorded

from prefactor_core.journal.directory import JournalDirectory
from prefactor_core.journal.format import HEAD, Kind
from prefactor_core.journal.reader import asides
from prefactor_core.operations import Operation

# What is on the disk.


def test_files_are_for_their_owner_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        writing = Writing(tmp_path / "journals" / "of agents", max_bytes=8_000)
        for number in range(60):
            writing.give(quality(f"{number}"))
        writing.journal.set_aside(item(quality("0")), "refused", "no")
    finally:
        os.umask(before)
    found = {stat.S_IMODE(path.stat().st_mode) for path in writing.hold.path.iterdir()}
    assert len(writing.files) > 1
    assert (writing.hold.path / "refused.log").exists()
    assert found == {0o600}
    for folder in (writing.hold.path, *writing.hold.path.parents[:2]):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_closed_journal_with_nothing_left_is_gone(tmp_path: Path) -> None:
    writing = Writing(tmp_path)
    writing.give(register())
    writing.settle(register())
    writing.journal.close()
    writing.journal.close()
    writing.journal.abandon()
    assert list(tmp_path.iterdir()) == []
    writing.give(quality())  # too late, and of no consequence
    assert writing.journal.unwritten == 1


def test_a_closed_journal_keeps_what_is_left_and_has_nothing_open(tmp_path: Path) -> None:
    writing = Writing(tmp_path)
    writing.give(register())
    writing.open_span("a")
    writing.journal.close()
    reader, [entry] = writing.read()
    assert entry.operation == register()
    assert reader.state.is_closed
    assert [*reader.state.open_spans()] == []
    assert writing.journal.pending == 1


def test_a_closed_journal_keeps_what_was_refused_and_nothing_else(tmp_path: Path) -> None:
    writing = Writing(tmp_path)
    writing.give(register(), create("a"))
    writing.settle(register())
    writing.journal.set_aside(item(create("a")), "refused", "400: no such type")
    writing.journal.close()
    assert sorted(path.name for path in writing.hold.path.iterdir()) == ["lock", "refused.log"]
    [(_, aside)] = asides(writing.hold.path)
    assert (aside.operation, aside.error) == (create("a"), "400: no such type")


def test_refused_operations_have_the_bound_of_the_files(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writing = Writing(tmp_path, max_bytes=8_000)
    for number in range(100):
        writing.give(quality(f"{number}"))
        writing.journal.set_aside(item(quality(f"{number}")), "refused", None)
    assert 7_000 < (writing.hold.path / "refused.log").stat().st_size <= 8_000
    assert writing.journal.pending == 0
    # Said for the first, the second, the fourth...
    assert 0 < len(caplog.messages) < 8
    assert all("journal_max_bytes=8000 is reached" in message for message in caplog.messages)


def test_an_operation_that_its_queue_refuses_is_not_sent_after_a_restart(tmp_path: Path) -> None:
    writing = Writing(tmp_path)
    writing.give(register(), quality())
    writing.journal.withdrawn([quality().idempotency_key], quality(), "queue")
    writing.settle()
    assert writing.operations() == [register()]


def test_an_opening_with_another_payload_is_followed_by_the_whole_create(tmp_path: Path) -> None:
    writing = Writing(tmp_path)
    writing.open_span("a")
    other = msgspec.structs.replace(create("a"), payload=RESULT)
    writing.give(other)
    assert writing.operations() == [other]
    reader, _ = writing.read()
    assert [*reader.state.open_spans()] != []  # as active


def test_an_id_that_is_given_twice_is_settled_twice(tmp_path: Path) -> None:
    writing = Writing(tmp_path)
    for _ in range(3):
        writing.give(create("a"))
    assert writing.journal.pending == 3
    for left in (2, 1, 0):
        writing.settle(create("a"))
        assert writing.journal.pending == len(writing.operations()) == left


# Forms.


def test_a_form_is_noted_once_and_again_when_it_changes(tmp_path: Path) -> None:
    writing = Writing(tmp_path)
    writing.give(create("a"))
    first = item(create("a"))
    journal = writing.journal

    def notes() -> int:
        return Counter(kind for _, kind, _ in writing.records())[Kind.SENDING]

    journal.sending([first])
    journal.sending([first])
    assert notes() == 1
    first.given_id = False
    journal.sending([first])
    journal.sending([first])
    assert notes() == 2
    first.operation, first.is_changed = create("a", "parent"), True
    journal.sending([first])
    assert notes() == 3
    [entry] = writing.read()[1]
    assert (entry.operation, entry.original) == (create("a", "parent"), create("a"))
    assert not entry.given_id


def test_a_form_that_a_restart_can_tell_is_not_noted(tmp_path: Path) -> None:
    writing = Writing(tmp_path)
    operations: list[Operation] = [register(), recorded("a"), end("b"), quality()]
    writing.give(*operations)
    before = len(writing.records())
    writing.journal.sending([item(operation) for operation in operations])
    assert len(writing.records()) == before


def test_an_item_of_which_a_half_could_not_be_written_is_noted_whole(tmp_path: Path) -> None:
    writing = Writing(tmp_path)
    writing.give(create("a"))
    merged = item(create("a").finished_by(end("a")))
    merged.keys = ("a-create", "a-finish")
    writing.journal.sending([merged])
    [entry] = writing.read()[1]
    assert entry.operation == create("a").finished_by(end("a"))
    writing.journal.settled([merged])
    assert writing.journal.pending == 0


# Interruptions.


class Alarm(BaseException):
    """What a signal handler raises."""


def sound() -> None:
    raise Alarm


Step = Callable[[Writing], None]


def opens(writing: Writing) -> None:
    writing.open_span("a")


def creates(writing: Writing) -> None:
    writing.journal.append(recorded("open"))


def records(writing: Writing) -> None:
    writing.journal.append(end("other"))


def discards(writing: Writing) -> None:
    writing.journal.discarded("open", None)


def settles(writing: Writing) -> None:
    writing.settle(register())


def sends(writing: Writing) -> None:
    writing.journal.sending([item(create("other"))])


def sets_aside(writing: Writing) -> None:
    writing.journal.set_aside(item(create("other")), "refused", "no")


def begin(folder: Path, *, at_the_end_of_a_file: bool) -> Writing:
    writing = Writing(folder, max_bytes=8_000 if at_the_end_of_a_file else LARGE)
    writing.give(register())
    writing.open_span("open")
    writing.give(create("other"))
    if at_the_end_of_a_file:
        number = 0
        while writing.journal.size < 2_500:
            writing.give(quality(f"{number}"))
            writing.settle(quality(f"{number}"))
            number += 1
    return writing


STEPS = [opens, creates, records, discards, settles, sends, sets_aside]


@pytest.mark.parametrize("at_the_end_of_a_file", [False, True])
@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
def test_a_call_that_is_interrupted_anywhere_and_made_again_counts_once(
    step: Step, at_the_end_of_a_file: bool, tmp_path: Path
) -> None:
    at, goes_on = 0, True
    while goes_on:
        at += 1
        writing = begin(tmp_path / f"{at}", at_the_end_of_a_file=at_the_end_of_a_file)
        expected = begin(tmp_path / f"{at} as planned", at_the_end_of_a_file=at_the_end_of_a_file)
        step(expected)
        goes_on = False
        try:
            with in_the_middle(at, sound):
                step(writing)
        except Alarm:
            goes_on = True
            if step is opens:
                # As the recorder does: the span is not recorded, and another one is opened.
                writing.journal.discarded("a", None)
            step(writing)
        reader, _ = writing.read()
        assert writing.operations() == expected.operations()
        assert [*reader.state.open_spans()] == [*expected.read()[0].state.open_spans()]
        assert writing.journal.pending == expected.journal.pending
        numbers = [sequence for sequence, _, _ in writing.records()]
        assert len(set(numbers)) == len(numbers)
        writing.settle(*expected.operations())
        assert (writing.journal.pending, writing.operations()) == (0, [])
        writing.journal.close()
        expected.journal.abandon()
        if step is not sets_aside:
            assert list(writing.folder.iterdir()) == []
    assert at > 3


def test_an_operation_whose_call_was_interrupted_for_good_is_not_left(tmp_path: Path) -> None:
    writing = Writing(tmp_path)
    at = 0
    with suppress(StopIteration):
        while True:
            at += 1
            try:
                with in_the_middle(at, sound):
                    writing.give(quality(f"{at}"))
            except Alarm:
                continue
            raise StopIteration
    assert at > 5
    assert writing.journal.pending == 1
    writing.settle(quality(f"{at}"))
    writing.journal.close()
    assert list(tmp_path.iterdir()) == []


def test_what_a_signal_handler_records_in_the_middle_of_a_call_is_recorded_as_well(
    tmp_path: Path,
) -> None:
    at, comes = 0, True
    while comes:
        at += 1
        writing = Writing(tmp_path / f"{at}")
        heard: list[int] = []

        def handle(writing: Writing = writing, heard: list[int] = heard) -> None:
            heard.append(1)
            writing.give(quality())

        with in_the_middle(at, handle):
            writing.give(register())
        comes = bool(heard)
        expected = {register().idempotency_key, *([quality().idempotency_key] * len(heard))}
        assert {operation.idempotency_key for operation in writing.operations()} == expected
        assert writing.journal.pending == len(expected)
        assert writing.journal.size == writing.files[0].stat().st_size
        numbers = [sequence for sequence, _, _ in writing.records()]
        assert numbers == sorted(set(numbers))
        writing.journal.abandon()
    assert at > 5


# Threads, processes.


def test_threads_append_while_another_one_settles(tmp_path: Path) -> None:
    writing = Writing(tmp_path, max_bytes=200_000)
    most, each = 4, 400
    done: list[Operation] = []

    def work(name: str) -> None:
        for number in range(each):
            operation = quality(f"{name}-{number}")
            with writing.lock:
                writing.journal.append(operation)
                done.append(operation)

    threads = [threading.Thread(target=work, args=(f"{n}",)) for n in range(most)]
    for thread in threads:
        thread.start()
    settled = 0
    while settled < most * each // 2:
        batch = done[settled : settled + 50]
        writing.settle(*batch)
        settled += len(batch)
    for thread in threads:
        thread.join(20)
    assert writing.operations() == done[settled:]
    assert writing.journal.pending == len(done) - settled


def test_two_journals_in_one_folder_have_nothing_in_common(tmp_path: Path) -> None:
    first, second = Writing(tmp_path), Writing(tmp_path)
    first.give(register("one"))
    second.give(register("two"))
    assert first.operations() == [register("one")]
    assert second.operations() == [register("two")]
    assert list(filter(None, JournalDirectory(tmp_path).abandoned())) == []
    first.journal.close()
    assert len(JournalDirectory(tmp_path).journals()) == 2
    second.settle(register("two"))
    second.journal.close()
    [held] = filter(None, JournalDirectory(tmp_path).abandoned())
    assert held.path == first.hold.path
    held.release()


@needs_fork
@pytest.mark.parametrize("synchronise", ["None", "os.fdatasync"])
def test_a_child_writes_nothing_and_leaves_descriptors_alone_that_it_has_opened_since(
    synchronise: str, tmp_path: Path
) -> None:
    script = f"""
from pathlib import Path
from support.journal_files import register, quality
from support.journal_writing import Writing, item

writing = Writing(Path("journals"), synchronise={synchronise})
writing.give(register())
before = len(os.listdir("/proc/self/fd"))
(log,) = [n for n in map(int, os.listdir("/proc/self/fd"))
          if os.path.exists(f"/proc/self/fd/{{n}}")
          and os.readlink(f"/proc/self/fd/{{n}}").endswith("000001.log")]
child = os.fork()
if child == 0:
    assert len(os.listdir("/proc/self/fd")) == before - 2  # the file and the lock
    mine = os.open("mine", os.O_RDWR | os.O_CREAT)
    os.dup2(mine, log)
    writing.give(quality())
    writing.journal.beat()
    writing.settle(register())
    writing.journal.close()
    assert os.fstat(log).st_size == 0
    os._exit(3)
assert wait_for(child) == 3
assert writing.operations() == [register()]
writing.give(quality())
assert writing.operations() == [register(), quality()]
writing.settle(register(), quality())
writing.journal.close()
assert os.listdir("journals") == []
"""
    run(script, tmp_path)


def test_a_record_is_one_write(tmp_path: Path) -> None:
    """So that the death of the process leaves a whole record, or none."""
    writing = Writing(tmp_path)
    for number in range(100):
        writing.give(quality(f"{number}"))
        data = writing.files[0].read_bytes()
        length = HEAD.unpack_from(data, len(data) - len(writing.records()[-1][2]) - HEAD.size)[0]
        assert length == len(writing.records()[-1][2])
