"""Locks: who has one, who has it after a fork, and where a lock says nothing."""

from __future__ import annotations

import os
import stat
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.cases import for_each
from support.forks import needs_fork, run_without_client

from prefactor_core.journal.files import open_file
from prefactor_core.journal.locks import is_network_device, lock_file, locks_work, try_lock

UMASKS = (0o000, 0o022, 0o077, 0o777)


@pytest.fixture
def umask() -> Generator[None]:
    """Restores the umask."""
    before = os.umask(0o022)
    yield
    os.umask(before)


# Files


@pytest.mark.usefixtures("umask")
def test_a_new_file_is_for_its_owner_alone_whatever_the_umask(tmp_path: Path) -> None:
    for mask in UMASKS:
        os.umask(mask)
        file = open_file(tmp_path / f"{mask:o}.log")
        try:
            assert stat.S_IMODE(os.fstat(file).st_mode) == 0o600
        finally:
            os.close(file)


def test_writes_go_to_the_end_of_a_file_that_is_there(tmp_path: Path) -> None:
    path = tmp_path / "000001.log"
    path.write_text("first ")
    file = open_file(path)
    os.write(file, b"second ")
    with path.open("a") as other:
        other.write("third ")
    os.write(file, b"last")
    os.close(file)
    assert path.read_text() == "first second third last"


def test_a_program_that_is_started_does_not_inherit_a_file(tmp_path: Path) -> None:
    file = open_file(tmp_path / "000001.log")
    assert not os.get_inheritable(file)
    os.close(file)


@pytest.mark.parametrize(
    "flags", [os.O_WRONLY | os.O_APPEND | os.O_CREAT, os.O_RDONLY], ids=["write", "read"]
)
def test_a_file_behind_a_symbolic_link_is_not_opened(flags: int, tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "000001.log"
    target.touch(0o644)
    link.unlink(missing_ok=True)
    link.symlink_to(target)
    with pytest.raises(OSError, match=r"000001\.log"):
        open_file(link, flags)
    assert stat.S_IMODE(target.stat().st_mode) == 0o644


# Locks


def test_a_lock_is_had_once_also_in_one_process(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    lock = try_lock(path)
    assert lock is not None
    assert lock.is_held
    assert try_lock(path) is None
    lock.release()
    lock.release()
    assert not lock.is_held
    again = try_lock(path)
    assert again is not None
    again.release()


def test_a_second_release_closes_nothing_of_others(tmp_path: Path) -> None:
    lock = try_lock(tmp_path / "lock")
    assert lock is not None
    lock.release()
    with (tmp_path / "other").open("w") as other:  # has the number of the lock's file
        lock.release()
        other.write("is open")


def test_there_is_no_lock_in_a_missing_folder(tmp_path: Path) -> None:
    assert try_lock(tmp_path / "missing" / "lock") is None


def test_a_file_that_cannot_be_opened_leaves_no_lock(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    with pytest.raises(IsADirectoryError):
        try_lock(tmp_path / "lock")


@pytest.mark.parametrize("is_replaced", [False, True], ids=["deleted", "replaced"])
def test_a_file_that_was_opened_before_its_end_is_not_locked(
    is_replaced: bool, tmp_path: Path
) -> None:
    path = tmp_path / "lock"
    path.touch()
    file = open_file(path, os.O_RDWR)
    path.unlink()
    if is_replaced:
        path.touch()
    assert not lock_file(file, path)
    os.close(file)


# Forks


@needs_fork
def test_a_forked_child_has_no_lock_and_forgets_the_numbers(tmp_path: Path) -> None:
    script = """
from pathlib import Path
from prefactor_core.journal.files import open_file
from prefactor_core.journal.locks import try_lock

log = open_file(Path("log"))

def leave():
    global log
    os.close(log)
    log = -1

given_back = try_lock(Path("given-back"))
given_back.watch_fork(lambda: print("left a lock that is not held"))
given_back.release()
failing = try_lock(Path("failing"))
failing.watch_fork(lambda: os.close(-1))
failing.watch_fork(None)
lock = try_lock(Path("lock"))
lock.watch_fork(leave)
locked, logged = os.stat("lock"), os.fstat(log)

def is_open(status):
    for number in range(100):
        try:
            if os.path.samestat(os.fstat(number), status):
                return True
        except OSError:
            pass
    return False

assert is_open(locked) and is_open(logged)
child = os.fork()
if child == 0:
    assert not lock.is_held and not failing.is_held and log == -1
    assert not is_open(locked) and not is_open(logged)
    others = [os.open(name, os.O_RDWR | os.O_CREAT) for name in ("one", "two", "three")]
    lock.release()
    for other in others:
        os.write(other, b"is open")
    assert try_lock(Path("lock")) is None, "the parent lives"
    own = try_lock(Path("own"))
    assert own.is_held
    os._exit(3)
assert wait_for(child) == 3
assert lock.is_held and is_open(locked) and is_open(logged)
assert try_lock(Path("lock")) is None, "the child gave the parent's lock back"
"""
    run_without_client(script, tmp_path)


@needs_fork
def test_a_fork_while_threads_lock_and_release_has_no_lock(tmp_path: Path) -> None:
    script = """
from pathlib import Path
from prefactor_core.journal.locks import try_lock

names = [f"lock-{number}" for number in range(4)]
for name in names:
    Path(name).touch()
statuses = [os.stat(name) for name in names]
going = True

def lock_and_release(name):
    while going:
        try_lock(Path(name)).release()

def open_locks():
    for number in range(100):
        try:
            status = os.fstat(number)
        except OSError:
            continue
        if any(os.path.samestat(status, other) for other in statuses):
            yield number

threads = [threading.Thread(target=lock_and_release, args=(name,)) for name in names]
for thread in threads:
    thread.start()
try:
    for _ in range(100):
        child = os.fork()
        if child == 0:
            os._exit(4 if list(open_locks()) else 3)
        assert wait_for(child) == 3
finally:
    going = False
for thread in threads:
    thread.join(60)
"""
    run_without_client(script, tmp_path)


# File systems


def test_locks_work_on_a_local_file_system(tmp_path: Path) -> None:
    assert locks_work(tmp_path)
    assert not locks_work(tmp_path / "missing")


def test_looking_whether_locks_work_leaves_no_file_and_no_lock(tmp_path: Path) -> None:
    before = try_lock(tmp_path / "lock")
    assert before is not None
    assert locks_work(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    before.release()


LOCAL = ("ext4", "xfs", "btrfs", "tmpfs", "overlay", "zfs", "fuseblk", "apfs", "squashfs")
NETWORK = ("nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "afs", "lustre", "gfs2", "ocfs2", "fuse",
           "fuse.sshfs", "fuse.s3fs", "fuse.glusterfs", "virtiofs")  # fmt: skip

numbers = st.integers(0, 400)
# A blank, a tab, a line break and a backslash are written as octal numbers.
names = st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters="\\"))
paths = names.map(lambda name: "/" + name) | st.just(r"/with\040-\040blanks")
optional_fields = st.lists(st.sampled_from(["shared:1", "master:2", "propagate_from:3"]))


@st.composite
def mounts(draw: st.DrawFn) -> tuple[tuple[int, int], str, str]:
    """A device, the type of its file system, and their line."""
    device, kind = (draw(numbers), draw(numbers)), draw(st.sampled_from(LOCAL + NETWORK))
    mount = [str(draw(numbers)), str(draw(numbers)), f"{device[0]}:{device[1]}", draw(paths),
             draw(paths), "rw,noatime", *draw(optional_fields)]  # fmt: skip
    return device, kind, " ".join([*mount, "-", kind, draw(paths), "rw,errors=continue"])


@given(st.lists(mounts(), unique_by=lambda mount: mount[0]))
def test_a_device_is_a_network_file_system_by_the_type_in_its_line(
    lines: list[tuple[tuple[int, int], str, str]],
) -> None:
    text = "".join(f"{line}\n" for _, _, line in lines)
    for (major, minor), kind, _ in lines:
        assert is_network_device(text, major, minor) == (kind in NETWORK)
    assert not is_network_device(text, 401, 0)


@for_each("text", ["", "\n", "36 35", "36 35 8:1", "36 35 8:1 / / rw -", "36 35 8:1 / / rw - "])
def test_a_line_that_is_cut_short_says_nothing(text: str) -> None:
    assert not is_network_device(text, 8, 1)
