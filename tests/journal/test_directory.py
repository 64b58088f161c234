"""The journal directory: who makes, holds, finds and deletes the journals in it.

Real folders and real processes. A process that is killed or looked at in the middle of a call is
so at each of its system calls, which an audit hook counts.
"""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Generator
from pathlib import Path

import pytest
from support.cases import case
from support.forks import needs_fork, run_without_client
from support.process import program

from prefactor_core import PrefactorValueError
from prefactor_core.journal.directory import Hold, JournalDirectory, check_private, hold
from prefactor_core.journal.files import open_file
from prefactor_core.operations.identifiers import is_pfid

BACKEND = ("asyncio", {})


@pytest.fixture
def directory(tmp_path: Path) -> JournalDirectory:
    directory = JournalDirectory(tmp_path / "journals")
    directory.open()
    return directory


@pytest.fixture
def umask() -> Generator[None]:
    """Restores the umask."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def dead_journal(directory: JournalDirectory) -> Path:
    """A journal with a segment, whose process has ended."""
    held = directory.create()
    write_segment(held)
    held.release()
    return held.path


def write_segment(held: Hold) -> None:
    file = open_file(held.path / "000001.log")
    os.write(file, b"records")
    os.close(file)


def adopt(directory: JournalDirectory) -> list[Path]:
    """The journals that an adopter gets; it releases them."""
    paths = []
    for held in filter(None, directory.abandoned()):
        paths.append(held.path)
        held.release()
    return paths


# The folder


@pytest.mark.usefixtures("umask")
def test_the_folder_and_those_above_it_are_made_for_their_owner_alone(tmp_path: Path) -> None:
    for mask in (0o000, 0o022, 0o077, 0o777):
        os.umask(mask)
        directory = JournalDirectory(tmp_path / f"{mask:o}" / "b" / "c")
        directory.open()
        directory.open()
        held = directory.create()
        with case(f"{mask:o}"):
            for folder in (held.path, *held.path.parents[:3]):
                assert mode(folder) == 0o700
            assert mode(held.path / "lock") == 0o600
        held.release()


@pytest.mark.parametrize("bits", [0o750, 0o770, 0o705, 0o701, 0o710, 0o777], ids=oct)
def test_a_folder_that_others_can_use_is_refused_with_the_way_out(
    bits: int, tmp_path: Path
) -> None:
    folder = tmp_path / "journals"
    folder.mkdir(exist_ok=True)
    folder.chmod(bits)
    message = f"{folder} has the mode 0{bits:o}: use 'chmod 700 {folder}'"
    with pytest.raises(PrefactorValueError, match=message):
        JournalDirectory(folder).open()
    folder.chmod(0o700)
    JournalDirectory(folder).open()


def test_a_folder_that_others_may_need_is_not_to_be_closed_to_them(tmp_path: Path) -> None:
    shared, sticky = tmp_path / "shared", tmp_path / "sticky"
    (shared / "1.journal").mkdir(parents=True)
    sticky.mkdir()
    sticky.chmod(0o1777)
    for mode in (0o755, 0o700):
        shared.chmod(mode)
        if mode & 0o077:
            with pytest.raises(PrefactorValueError, match=f"use 'chmod 700 {shared}'$"):
                JournalDirectory(shared).open()
        else:
            JournalDirectory(shared).open()
    (shared / "notes.txt").touch()
    shared.chmod(0o755)
    for folder in (shared, sticky):
        own = folder / "prefactor-journal"
        message = f"give a folder of its own, such as {own}, which is made for you$"
        with pytest.raises(PrefactorValueError, match=message):
            JournalDirectory(folder).open()
        JournalDirectory(own).open()


def test_a_folder_with_the_setgid_bit_of_the_one_above_is_accepted(tmp_path: Path) -> None:
    folder = tmp_path / "journals"
    folder.mkdir()
    folder.chmod(0o2700)
    JournalDirectory(folder).open()


def test_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journals"
    path.touch(0o600)
    with pytest.raises(PrefactorValueError, match=f"must be a folder, and {path} is a file"):
        JournalDirectory(path).open()


def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "journals"
    folder.mkdir(0o700)
    if os.geteuid() == 0:
        os.chown(folder, 12345, -1)
    else:
        folder = Path("/")  # belongs to root
    owner = folder.stat().st_uid
    with pytest.raises(PrefactorValueError, match=f"{folder} belongs to user {owner}: give"):
        JournalDirectory(folder).open()


def test_a_folder_that_cannot_be_made_is_an_error_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        JournalDirectory(tmp_path / "file" / "journals").open()


def test_a_relative_path_is_that_of_the_time_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    directory = JournalDirectory("journals")
    monkeypatch.chdir("elsewhere")
    directory.open()
    assert (tmp_path / "journals").is_dir()


def test_a_system_without_file_locks_is_told(tmp_path: Path) -> None:
    script = """
from prefactor_core import PrefactorValueError
from prefactor_core.journal.directory import JournalDirectory
sys.modules["fcntl"] = None
try:
    JournalDirectory("journals").open()
except PrefactorValueError as error:
    assert "file locks of Unix" in str(error)
else:
    raise AssertionError("not refused")
assert not os.path.exists("journals")
"""
    run_without_client(script, tmp_path)


# Who holds a journal


def test_each_client_of_a_process_has_a_journal_of_its_own(directory: JournalDirectory) -> None:
    holds = [directory.create() for _ in range(3)]
    assert directory.journals() == sorted(held.path for held in holds)
    for held in holds:
        assert is_pfid(held.path.stem)
        assert hold(held.path) is None
    assert adopt(directory) == []
    holds[1].release()
    assert adopt(directory) == [holds[1].path]
    for held in holds:
        held.release()


def test_journals_are_found_oldest_first(directory: JournalDirectory) -> None:
    for name in ("3", "1", "2"):
        (directory.path / f"{name}.journal").mkdir(0o700)
    assert [path.stem for path in adopt(directory)] == ["1", "2", "3"]


def test_a_journal_that_is_held_from_the_list_is_not_found_again(
    directory: JournalDirectory,
) -> None:
    paths = sorted([dead_journal(directory), dead_journal(directory)])
    adopter, second = filter(None, directory.abandoned()), filter(None, directory.abandoned())
    first = next(adopter)
    assert (first.path, [held.path for held in second]) == (paths[0], [paths[1]])
    assert list(adopter) == []


def test_a_turn_is_given_after_each_journal_of_a_living_process(
    directory: JournalDirectory,
) -> None:
    living = [directory.create() for _ in range(3)]
    dead = dead_journal(directory)
    found = [None if held is None else held.path for held in directory.abandoned()]
    # Names that were made in one millisecond are in no order.
    assert (len(found), [path for path in found if path is not None]) == (4, [dead])
    for held in living:
        held.remove()


HOLD = """
from prefactor_core.journal.directory import JournalDirectory
directory = JournalDirectory("journals")
directory.open()
held = directory.create()
print(held.path, flush=True)
"""


def test_a_journal_is_left_alone_until_its_process_is_dead(tmp_path: Path) -> None:
    directory = JournalDirectory(tmp_path / "journals")
    with program(HOLD + "signal.pause()", BACKEND, tmp_path) as process:
        path = Path(process.line())
        assert directory.journals() == [path]
        assert adopt(directory) == []
        process.send(signal.SIGKILL)
        process.process.wait(60)
    assert adopt(directory) == [path]


@needs_fork
def test_a_forked_child_does_not_keep_its_dead_parents_journal(tmp_path: Path) -> None:
    directory = JournalDirectory(tmp_path / "journals")
    script = """
child = os.fork()
if child == 0:
    held.release()
    held.remove()
    own = directory.create()
    print(own.path, os.getpid(), flush=True)
signal.pause()
"""
    with program(HOLD + script, BACKEND, tmp_path) as process:
        parents = Path(process.line())
        childs, pid = process.line().rsplit(" ", 1)
        try:
            assert directory.journals() == sorted([parents, Path(childs)])
            assert adopt(directory) == []
            process.send(signal.SIGKILL)
            process.process.wait(60)
            assert adopt(directory) == [parents]
        finally:
            os.kill(int(pid), signal.SIGKILL)


@needs_fork
@pytest.mark.parametrize("does_remove", [False, True], ids=["keep", "remove"])
def test_of_many_adopters_each_journal_has_one(does_remove: bool, tmp_path: Path) -> None:
    script = """
from pathlib import Path
from prefactor_core.journal.directory import JournalDirectory

directory = JournalDirectory("journals")
directory.open()
for _ in range(100):
    held = directory.create()
    open(held.path / "000001.log", "w").close()
    held.release()
start, started = os.pipe()
end, ended = os.pipe()
children = []
for number in range(4):
    children.append(os.fork())
    if children[-1] == 0:
        os.close(started)
        os.close(ended)
        os.read(start, 1)
        kept = []
        with open(f"got-{number}", "w") as got:
            for held in filter(None, directory.abandoned()):
                print(held.path, file=got)
                held.remove() if DOES_REMOVE else kept.append(held)
        open(f"done-{number}", "w").close()
        os.read(end, 1)
        os._exit(3)
os.close(started)
until = time.monotonic() + 60
while not all(os.path.exists(f"done-{number}") for number in range(4)):
    assert time.monotonic() < until
    time.sleep(0.001)
os.close(ended)
for child in children:
    assert wait_for(child) == 3
paths = [line for number in range(4) for line in Path(f"got-{number}").read_text().splitlines()]
assert len(paths) == len(set(paths)) == 100, paths
assert len(directory.journals()) == (0 if DOES_REMOVE else 100)
"""
    folder = tmp_path / str(does_remove)
    folder.mkdir()
    run_without_client(script.replace("DOES_REMOVE", str(does_remove)), folder)


# What is no journal to adopt


def test_a_journal_behind_a_symbolic_link_is_not_followed(
    directory: JournalDirectory, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(0o700)
    link = directory.path / "1.journal"
    link.symlink_to(elsewhere)
    assert adopt(directory) == []
    with pytest.raises(PrefactorValueError, match="symbolic link: replace it by the folder"):
        hold(link)
    assert list(elsewhere.iterdir()) == []


def test_a_lock_behind_a_symbolic_link_is_not_followed(
    directory: JournalDirectory, tmp_path: Path
) -> None:
    path = dead_journal(directory)
    (path / "lock").unlink()
    (path / "lock").symlink_to(tmp_path / "elsewhere")
    assert adopt(directory) == []
    assert not (tmp_path / "elsewhere").exists()


def test_a_journal_that_others_can_use_is_left_alone(directory: JournalDirectory) -> None:
    path = dead_journal(directory)
    path.chmod(0o750)
    assert adopt(directory) == []
    with pytest.raises(PrefactorValueError, match="has the mode 0750"):
        hold(path)
    path.chmod(0o700)
    assert adopt(directory) == [path]


def test_a_journal_of_another_user_is_left_alone(directory: JournalDirectory) -> None:
    path = dead_journal(directory)
    status = [*path.stat()]
    status[stat.ST_UID] += 1
    said = f"belongs to user {status[stat.ST_UID]}: use 'chown -R {os.geteuid()} {path}'"
    with pytest.raises(PrefactorValueError, match=said):
        check_private(path, os.stat_result(status))
    if os.geteuid() == 0:  # only root can make one
        os.chown(path, 12345, -1)
        assert adopt(directory) == []


def test_other_files_in_the_folder_are_left_alone(directory: JournalDirectory) -> None:
    names = ["1.journal", "README", "lock", ".new-file", ".old-file"]
    for name in names:
        (directory.path / name).touch()
    assert adopt(directory) == []
    assert sorted(path.name for path in directory.path.iterdir()) == sorted(names)


def test_a_copied_journal_without_its_lock_is_found(directory: JournalDirectory) -> None:
    path = dead_journal(directory)
    (path / "lock").unlink()
    assert adopt(directory) == [path]


def test_a_directory_that_vanished_has_no_journals(directory: JournalDirectory) -> None:
    held = directory.create()
    (held.path / "lock").unlink()
    held.path.rmdir()
    directory.path.rmdir()
    assert (adopt(directory), directory.journals(), hold(held.path)) == ([], [], None)
    with pytest.raises(FileNotFoundError):
        directory.create()
    held.remove()
    held.remove()


# Deleting


def test_a_removed_journal_is_gone_with_all_its_files(directory: JournalDirectory) -> None:
    held = directory.create()
    for name in ("000001.log", "000002.damaged", "1000000.log", "refused.log"):
        os.close(open_file(held.path / name))
    held.remove()
    assert list(directory.path.iterdir()) == []
    held.remove()
    held.release()


@pytest.mark.parametrize("name", ["refused.log", "000001.damaged"])
def test_a_journal_knows_whether_it_has_files_for_a_person(
    name: str, directory: JournalDirectory
) -> None:
    held = directory.create()
    write_segment(held)
    assert not held.has_kept_files
    os.close(open_file(held.path / name))
    assert held.has_kept_files
    held.remove()
    assert held.has_kept_files, "nothing is known of a folder that cannot be read"


def test_a_released_journal_is_not_removed(directory: JournalDirectory) -> None:
    held = directory.create()
    held.release()
    held.remove()
    assert adopt(directory) == [held.path]


def test_a_file_that_is_not_ours_is_not_deleted(directory: JournalDirectory) -> None:
    held = directory.create()
    write_segment(held)
    (held.path / "notes.txt").touch()
    held.remove()
    assert adopt(directory) == []
    (folder,) = directory.path.iterdir()
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


STEPS = """
import itertools, shutil, signal
from prefactor_core.journal.directory import Hold, JournalDirectory

directory = JournalDirectory("journals")
directory.open()
act, points = None, 0

def step(event, args):
    "Act at one of the system calls."
    global act, points
    if act and event.startswith(("os.", "open", "fcntl.")):
        points -= 1
        if points == 0:
            action, act = act, None
            action()

sys.addaudithook(step)

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

def adopt():
    "Delete what an adopter finds, and say its names."
    names = []
    for held in filter(None, directory.abandoned()):
        names.append(sorted(path.name for path in held.path.iterdir()))
        held.remove()
    return names

def journal():
    held = directory.create()
    for name in ("000001.log", "000002.log", "refused.log"):
        open(held.path / name, "w").close()
    return held

WHOLE = ["000001.log", "000002.log", "lock", "refused.log"]

def files():
    return sorted(str(path) for path in directory.path.rglob("*"))

def until_not_killed(function, prepare=lambda: None):
    "Kill a child at each of the system calls of a function."
    global act, points
    for point in itertools.count(1):
        prepare()
        child = os.fork()
        if child == 0:
            act, points = kill, point
            function()
            os._exit(3)
        code = wait_for(child)
        assert code in (3, -signal.SIGKILL), code
        if code == 3:
            return
        yield point
"""


@needs_fork
def test_a_process_that_is_killed_while_it_makes_a_journal_leaves_nothing(tmp_path: Path) -> None:
    script = """
kills, found = 0, 0
for kills in until_not_killed(directory.create):
    assert len(directory.journals()) <= 1
    names = adopt()
    assert names in ([], [["lock"]]), names
    found += len(names)
    assert files() == [], files()
assert kills >= 5 and found == 0, (kills, found)
assert adopt() == [["lock"]] and files() == []
"""
    run_without_client(STEPS + script, tmp_path)


@needs_fork
def test_a_journal_whose_removal_is_killed_is_whole_or_gone(tmp_path: Path) -> None:
    script = """
kills, found = 0, []
for kills in until_not_killed(lambda: journal().remove()):
    names = adopt()
    found += names
    assert files() == [], files()
assert kills >= 10, kills
assert found[-1] == WHOLE
assert adopt() == [] and files() == []
"""
    run_without_client(STEPS + script, tmp_path)


@needs_fork
def test_an_adopter_that_is_killed_while_it_deletes_leaves_the_rest_to_the_next(
    tmp_path: Path,
) -> None:
    script = """
def leave_some():
    journal().release()
    shutil.copytree(directory.journals()[0], "journals/.new-1")
    shutil.copytree(directory.journals()[0], "journals/.old-2")

kills = 0
for kills in until_not_killed(adopt, leave_some):
    names = adopt()
    assert len(names) <= 1
    assert files() == [], files()
assert kills >= 20, kills
assert adopt() == [] and files() == []
"""
    run_without_client(STEPS + script, tmp_path)


def test_a_journal_in_creation_or_removal_is_not_taken_by_an_adopter_at_any_point(
    tmp_path: Path,
) -> None:
    script = """
def adopt_at_each_point(function, prepare=lambda: None):
    "Adopt at each of the system calls of a function."
    global act, points
    for point in itertools.count(1):
        seen, held = [], prepare()
        act, points = lambda: seen.extend(adopt()), point
        made = function(held)
        is_last, act = act is not None, None
        assert seen == [] and adopt() == []
        yield made
        assert files() == [], files()
        if is_last:
            break
    assert point >= 5, point

for held in adopt_at_each_point(lambda _: directory.create()):
    assert directory.journals() == [held.path]
    held.remove()
for _ in adopt_at_each_point(Hold.remove, journal):
    pass
"""
    run_without_client(STEPS + script, tmp_path)
