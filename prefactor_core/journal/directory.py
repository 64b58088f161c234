"""JournalDirectory: the folder with one journal for each process; which process holds which.

A journal is a folder ``<pfid>.journal``. It belongs to the process that has locked the file
``lock`` in it; if no process has, its process is dead. A journal begins as ``.new-<pfid>``, and is
renamed when it is locked; before it is deleted, it is renamed to ``.old-<pfid>``. So nobody meets
a journal that is half made or half deleted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from stat import S_IMODE, S_ISDIR, S_ISLNK, S_ISVTX
from typing import Final

from prefactor_core.exceptions import PrefactorValueError
from prefactor_core.journal.locks import Lock, locks_work, try_lock
from prefactor_core.operations.identifiers import generate

_SUFFIX: Final = ".journal"
_LOCK: Final = "lock"
REFUSED_NAME: Final = "refused.log"
_NEW, _OLD = ".new-", ".old-"
DAMAGED: Final = ".damaged"
"""The suffix of a file that is kept because a part of it cannot be read."""

_JOURNAL: Final = re.compile(r".+\.journal|\.(?:new|old)-.+")
"""The names of the folders in a folder of journals."""

_FILE: Final = re.compile(r"\d{6,}\.(?:log|damaged)|refused\.log")
"""The names of the files in a journal, beside the lock."""


class Hold:
    """A journal, at ``path``, that this process has locked: no other writes to it or deletes it.

    A forked child does not hold it: there, ``release()`` and ``remove()`` do nothing.
    """

    __slots__ = ("_lock", "path")

    def __init__(self, path: Path, lock: Lock) -> None:
        self.path = path
        self._lock = lock

    @property
    def has_kept_files(self) -> bool:
        """Whether it has files for a person: refused operations, or damaged files."""
        try:
            files = list(self.path.iterdir())
        except OSError:
            return True  # unknown: nothing is deleted
        return any(file.name == REFUSED_NAME or file.suffix == DAMAGED for file in files)

    def watch_fork(self, leave: Callable[[], object]) -> None:
        """Call ``leave()`` in a forked child: it closes the files of the journal, and forgets their
        descriptors."""
        self._lock.watch_fork(leave)

    def release(self) -> None:
        """Leave the journal to others. A second call does nothing."""
        self._lock.release()

    def remove(self) -> None:
        """Delete the journal, and release it. A second call does nothing.

        If this is interrupted or fails, the next process that looks for abandoned journals does the
        rest.
        """
        if self._lock.is_held:
            with suppress(OSError):
                old = self.path.with_name(_OLD + self.path.stem)
                self.path.rename(old)
                _delete(old)
            self._lock.release()


class JournalDirectory:
    """The folder of the journals. No two processes that use it share a journal."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path: Final = Path(path).absolute()

    def open(self) -> None:
        """Make the folder, with the mode 0700, or check it if it is there.

        Raises :class:`~prefactor_core.PrefactorValueError` if it is no folder, or others can use
        it, or this system has no file locks; and OSError if it cannot be made.
        """
        if find_spec("fcntl") is None:
            raise PrefactorValueError(
                "journal needs the file locks of Unix, which this system does not have: leave it "
                "out, and operations are kept in memory"
            )
        _make(self.path)
        check_private(self.path, self.path.stat())

    def create(self) -> Hold:
        """Make a journal, and hold it. Raises OSError if that fails."""
        while True:
            pfid = generate(0)
            new = self.path / f"{_NEW}{pfid}"
            new.mkdir(0o700)
            # Until it is locked, another process may take it for a leftover.
            with suppress(FileNotFoundError):
                new.chmod(0o700)  # whatever the umask
            lock = try_lock(new / _LOCK)
            if lock is not None:
                break
        hold = Hold(self.path / f"{pfid}{_SUFFIX}", lock)
        try:
            new.rename(hold.path)
        except BaseException:
            hold.release()
            raise
        return hold

    def journals(self) -> list[Path]:
        """The folders of all journals, oldest first."""
        return [self.path / name for name in self._names() if name.endswith(_SUFFIX)]

    def abandoned(self) -> Iterator[Hold | None]:
        """Hold the journals whose processes are dead, one after another, oldest first.

        Yield None for each other one, so that other tasks can have a turn: there may be many. The
        caller releases or removes each that it gets. Left alone are journals that others can use,
        symbolic links, and all journals on a file system without reliable locks.
        """
        if not locks_work(self.path):
            return
        names = self._names()
        for name in names:
            if name.startswith((_NEW, _OLD)):
                with suppress(OSError, PrefactorValueError):
                    _delete_leftover(self.path / name)
                yield None
        for name in names:
            if name.endswith(_SUFFIX):
                held = None
                with suppress(OSError, PrefactorValueError):
                    held = hold(self.path / name)
                yield held

    def _names(self) -> list[str]:
        # Not Path.glob(): of many journals, it makes the event loop wait.
        try:
            return sorted(os.listdir(self.path))  # noqa: PTH208
        except OSError:
            return []


def hold(path: Path) -> Hold | None:
    """Hold the journal at ``path``; None if a process has it, or if it is gone.

    Raises :class:`~prefactor_core.PrefactorValueError` if it is a symbolic link or others can use
    it, and OSError if it cannot be locked.
    """
    lock = _lock(path)
    return None if lock is None else Hold(path, lock)


def check_private(path: Path, status: os.stat_result) -> None:
    """Raise :class:`~prefactor_core.PrefactorValueError` unless ``path`` is a folder that only this
    user can use. ``status``: its status."""
    user, mode = os.geteuid(), S_IMODE(status.st_mode)
    if S_ISLNK(status.st_mode):
        raise PrefactorValueError(
            f"journal must be a folder, and {path} is a symbolic link: replace it by the folder"
        )
    if not S_ISDIR(status.st_mode):
        raise PrefactorValueError(
            f"journal must be a folder, and {path} is a file: give another path"
        )
    if status.st_uid != user:
        way_out = "give the path of a new folder"
        if path.suffix == _SUFFIX:
            way_out = f"use 'chown -R {user} {path}'"
        raise PrefactorValueError(
            f"journal must be a folder of this user ({user}), and {path} belongs to user "
            f"{status.st_uid}: {way_out}"
        )
    if mode & 0o077:
        way_out = f"use 'chmod 700 {path}'"
        if mode & S_ISVTX or not _has_only_journals(path):  # others need it as it is
            own = path / "prefactor-journal"
            way_out = f"give a folder of its own, such as {own}, which is made for you"
        raise PrefactorValueError(
            f"journal must be a folder that only its owner can use, and {path} has the mode "
            f"{mode:04o}: {way_out}"
        )


def _has_only_journals(folder: Path) -> bool:
    """Whether a folder is a journal, or has nothing but journals."""
    if folder.suffix == _SUFFIX:
        return True
    try:
        return all(_JOURNAL.fullmatch(path.name) for path in folder.iterdir())
    except OSError:
        return False


def _make(folder: Path) -> None:
    """Make a folder and those above it, for this user alone."""
    if not folder.exists():
        _make(folder.parent)
        with suppress(FileExistsError):
            folder.mkdir(0o700)
            folder.chmod(0o700)  # whatever the umask


def _lock(folder: Path) -> Lock | None:
    try:
        check_private(folder, folder.lstat())
    except FileNotFoundError:
        return None
    return try_lock(folder / _LOCK)


def _delete_leftover(folder: Path) -> None:
    """Delete the folder of a process that died while it made or deleted a journal."""
    lock = _lock(folder)
    if lock is not None:
        try:
            _delete(folder)
        finally:
            lock.release()


def _delete(folder: Path) -> None:
    """Delete a folder that is locked, unless it has files that are not ours."""
    for file in folder.iterdir():
        if _FILE.fullmatch(file.name):
            file.unlink()
    # The lock goes last: as long as it is there, no other process takes the folder.
    (folder / _LOCK).unlink()
    folder.rmdir()
