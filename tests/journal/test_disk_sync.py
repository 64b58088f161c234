"""DiskSync: what is appended comes to the disk, in a thread, and ``synced()`` waits for that."""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from support.interruptions import in_the_middle
from support.journal_files import create, end, quality, register
from support.journal_writing import LARGE, PAUSE, Writing, item

from prefactor_core.queue.event_loop import EventLoop


class Disk:
    """Notes which files are synchronised, and with how many bytes; it can be slow, and fail.

    ``goes_on``: cleared, each call waits for it. ``began``: a call has begun.
    """

    def __init__(self) -> None:
        self.sizes: dict[str, list[int]] = defaultdict(list)
        self.fails: set[str] = set()
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.began = threading.Event()

    def __call__(self, file: int) -> None:
        name = Path(f"/proc/self/fd/{file}").readlink().name.removesuffix(" (deleted)")
        size = os.fstat(file).st_size
        self.began.set()
        assert self.goes_on.wait(20)
        self.sizes[name].append(size)
        if name in self.fails:
            raise OSError(errno.EIO, "the disk is broken")


def write(folder: Path, disk: Disk, max_bytes: int = LARGE) -> Writing:
    return Writing(folder, max_bytes, disk, EventLoop.here().run_soon)


def descriptors(folder: Path) -> list[str]:
    """The files of a folder that this process has open."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        try:
            target = link.readlink()
        except FileNotFoundError:
            continue  # that of the listing
        if target.is_relative_to(folder):
            found.append(target.name)
    return sorted(found)


async def until(condition: Callable[[], object]) -> None:
    """Let the thread go on until it has done something."""
    with anyio.fail_after(10):
        while not condition():  # noqa: ASYNC110 - the thread sets no event of the loop
            await anyio.sleep(0.001)


async def test_all_that_is_appended_is_on_the_disk_after_synced(tmp_path: Path) -> None:
    disk = Disk()
    writing = write(tmp_path, disk)
    with anyio.fail_after(10):
        for number in range(5):
            for other in range(200):
                writing.give(quality(f"{number}-{other}"))
            await writing.journal.synced()
            assert disk.sizes["000001.log"][-1] == writing.journal.size
        calls = len(disk.sizes["000001.log"])
        await writing.journal.synced()
        assert len(disk.sizes["000001.log"]) == calls <= 12  # grouped
        writing.journal.close()
        await writing.journal.synced()
    await until(lambda: descriptors(tmp_path) == [])


async def test_synced_waits_for_a_synchronisation_that_began_after_the_append(
    tmp_path: Path,
) -> None:
    disk = Disk()
    writing = write(tmp_path, disk)
    with anyio.fail_after(10):
        await writing.journal.synced()
        disk.goes_on.clear()
        disk.began.clear()
        writing.give(quality("first"))
        await anyio.to_thread.run_sync(disk.began.wait, 10)
        size = writing.journal.size
        writing.give(quality("second"))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(writing.journal.synced)
            tasks.start_soon(writing.journal.synced)
            await anyio.lowlevel.checkpoint()
            assert disk.sizes["000001.log"][-1] < size
            disk.goes_on.set()
        assert disk.sizes["000001.log"][-1] == writing.journal.size > size
    writing.journal.abandon()


async def test_files_that_are_followed_are_synchronised_to_their_end_and_closed(
    tmp_path: Path,
) -> None:
    disk = Disk()
    writing = write(tmp_path, disk, max_bytes=20_000)
    with anyio.fail_after(10):
        for number in range(60):
            for other in range(3):
                writing.give(quality(f"{number}-{other}"))
            await anyio.lowlevel.checkpoint()
        await writing.journal.synced()
        assert len(writing.files) > 3
        assert {name: sizes[-1] for name, sizes in disk.sizes.items()} == {
            file.name: file.stat().st_size for file in writing.files
        }
        await until(lambda: descriptors(tmp_path) == [writing.files[-1].name, "lock"])
        writing.journal.close()
        await writing.journal.synced()
    await until(lambda: descriptors(tmp_path) == [])


async def test_a_file_stays_until_the_one_after_it_is_on_the_disk(tmp_path: Path) -> None:
    disk = Disk()
    writing = write(tmp_path, disk, max_bytes=20_000)
    with anyio.fail_after(10):
        await writing.journal.synced()
        disk.goes_on.clear()
        operations = [quality(f"{number}") for number in range(30)]
        writing.give(*operations)
        writing.settle(*operations)
        assert len(writing.files) == 2
        disk.goes_on.set()
        await writing.journal.synced()
        writing.give(quality())
        writing.settle(quality())
        assert len(writing.files) == 1
    writing.journal.abandon()


async def test_closing_waits_for_nothing_and_synced_for_the_last_synchronisation(
    tmp_path: Path,
) -> None:
    disk = Disk()
    writing = write(tmp_path, disk)
    with anyio.fail_after(10):
        await writing.journal.synced()
        disk.goes_on.clear()
        disk.began.clear()
        writing.give(register())
        await anyio.to_thread.run_sync(disk.began.wait, 10)
        writing.give(quality())
        writing.journal.close()
        size = writing.files[0].stat().st_size
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(writing.journal.synced)
            await anyio.lowlevel.checkpoint()
            disk.goes_on.set()
        assert disk.sizes["000001.log"][-1] == size
    await until(lambda: descriptors(tmp_path) == [])
    assert writing.operations() == [register(), quality()]


@pytest.mark.parametrize("is_followed", [False, True])
async def test_after_a_failure_everything_unsettled_is_written_to_another_file(
    is_followed: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "prefactor_core.journal")
    disk = Disk()
    writing = write(tmp_path, disk, max_bytes=20_000)
    journal = writing.journal
    with anyio.fail_after(10):
        await journal.synced()
        disk.fails.add("000001.log")
        disk.goes_on.clear()
        writing.give(register(), create("a"), end("a"))
        writing.open_span("b")
        ended = writing.end_span("b")
        both = item(create("a").finished_by(end("a")))
        both.keys = ("a-create", "a-finish")
        journal.sending([both])
        expected = [register(), both.operation, ended]
        if is_followed:
            others = [quality(f"{number}") for number in range(40)]
            writing.give(*others)
            assert len(writing.files) > 1
            expected += others
        disk.goes_on.set()
        await until(lambda: journal.is_resting)
        await journal.synced()
        writing.give(quality("not written"))
        assert journal.unwritten == 1
        before = len(disk.sizes["000001.log"])
        writing.now += PAUSE
        writing.settle(register())
        await journal.synced()
        _, entries = writing.read()
        assert [entry.operation for entry in entries] == expected[1:]
        assert [entry.is_sent for entry in entries[:2]] == [True, False]
        assert entries[0].keys == ("a-create", "a-finish")
        # The old files are settled, and the new one is on the disk.
        writing.settle(ended)
        assert "000001.log" not in [file.name for file in writing.files]
        assert len(disk.sizes["000001.log"]) == before
        assert [r.levelno for r in caplog.records] == [logging.WARNING, logging.INFO]
        assert "the disk is broken" in caplog.text
        assert journal.pending == len(expected) + 1 - 2
        journal.close()
        await journal.synced()
    await until(lambda: descriptors(tmp_path) == [])


async def test_a_disk_that_always_fails_is_tried_every_five_seconds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    disk = Disk()
    disk.fails |= {f"{number:06}.log" for number in range(20)}
    writing = write(tmp_path, disk)
    with anyio.fail_after(20):
        for number in range(5):
            writing.give(register(f"{number}"))
            await until(lambda: writing.journal.is_resting)
            await writing.journal.synced()
            writing.give(quality("lost"))
            writing.now += PAUSE
        assert [len(sizes) for sizes in disk.sizes.values()] == [1] * 5
        writing.give(register("last"))
        assert len(writing.operations()) == 6
        writing.journal.close()
        await writing.journal.synced()
    await until(lambda: descriptors(tmp_path) == [])


async def test_an_append_that_is_interrupted_anywhere_comes_to_the_disk(tmp_path: Path) -> None:
    class Alarm(BaseException):
        pass

    def sound() -> None:
        raise Alarm

    disk = Disk()
    writing = write(tmp_path, disk)
    with anyio.fail_after(10):
        at, goes_on = 0, True
        while goes_on:
            at += 1
            await writing.journal.synced()
            try:
                with in_the_middle(at, sound):
                    writing.give(quality(f"{at}"))
                goes_on = False
            except Alarm:
                await writing.journal.synced()  # it hangs for nothing that did not happen
                writing.give(quality(f"{at}"))
        assert at > 5
        await writing.journal.synced()
        assert disk.sizes["000001.log"][-1] == writing.files[0].stat().st_size
        assert writing.operations() == [quality(f"{number + 1}") for number in range(at)]
    writing.journal.abandon()
    await until(lambda: descriptors(tmp_path) == [])
