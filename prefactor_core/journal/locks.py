"""Locks: which process has a journal, and whether the locks of a file system can be relied on.

A lock is ``flock`` on a file. It ends with its process, also by SIGKILL. It keeps out a second
client of the same process, too. And it holds across containers, where process ids differ.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import RLock
from typing import Final

from prefactor_core.journal.files import open_file

_NETWORK_FILE_SYSTEMS: Final = frozenset(
    {
        "9p", "afs", "beegfs", "ceph", "cifs", "coda", "fuse", "gfs2", "gpfs", "lustre", "ncpfs",
        "nfs", "nfs4", "ocfs2", "orangefs", "pvfs2", "smb3", "smbfs", "vboxsf", "virtiofs",
    }
)  # fmt: skip
"""The types of file system on which another machine may not see our locks."""


class Lock:
    """A lock that this process has. A forked child does not keep it when the parent dies.

    ``is_held`` is False after ``release()``, and in a forked child.
    """

    __slots__ = ("_file", "_on_fork")

    def __init__(self, file: int) -> None:
        self._file = file
        self._on_fork: list[Callable[[], object]] = []

    @property
    def is_held(self) -> bool:
        return self._file >= 0

    def watch_fork(self, leave: Callable[[], object]) -> None:
        """Call ``leave()`` in a child that is forked while the lock is held.

        It closes the other descriptors of the lock's holder, and forgets their numbers.
        """
        self._on_fork.append(leave)

    def release(self) -> None:
        """Release the lock. A second call does nothing."""
        import fcntl  # here: Windows has none, and JournalDirectory.open() says so

        with _forking:
            if self.is_held:
                # Closing alone is not enough while a program is started: until its process runs
                # the program, it has a copy of the descriptor.
                with suppress(OSError):
                    fcntl.flock(self._file, fcntl.LOCK_UN)
            self._close()

    def leave(self) -> None:
        """Close everything, in a forked child. The parent keeps the lock."""
        self._close()
        for leave in self._on_fork:
            leave()

    def _close(self) -> None:
        file, self._file = self._file, -1
        _locks.discard(self)
        if file >= 0:
            os.close(file)


def try_lock(path: Path) -> Lock | None:
    """Lock the file at ``path``; a missing file is made.

    Returns None if the file is locked, if it is replaced or deleted meanwhile, or if its folder is
    missing. Raises OSError if the file cannot be opened, or its file system has no locks.
    """
    with _forking:
        try:
            file = open_file(path, os.O_RDWR | os.O_CREAT)
        except FileNotFoundError:
            return None
        lock = Lock(file)
        _locks.add(lock)
        try:
            if lock_file(file, path):
                return lock
        except BaseException:
            lock.release()
            raise
        lock.release()
        return None


def lock_file(file: int, path: Path) -> bool:
    """Lock an open file. False if it is locked already, or is not the one at ``path``."""
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Its holder may have deleted it between the opening and the locking.
        return os.path.samestat(os.fstat(file), path.lstat())
    except (BlockingIOError, FileNotFoundError):
        return False


def locks_work(folder: Path) -> bool:
    """Whether a lock on a file in ``folder`` keeps out all others: not on a network file system."""
    try:
        device = folder.stat().st_dev
        try:
            mounts = Path("/proc/self/mountinfo").read_text(errors="replace")
        except OSError:
            mounts = ""  # not Linux
        on_network = is_network_device(mounts, os.major(device), os.minor(device))
        return not on_network and _descriptors_exclude_each_other(folder)
    except OSError:
        return False


def is_network_device(mountinfo: str, major: int, minor: int) -> bool:
    """Whether a device is a network file system, by the text of ``/proc/self/mountinfo``.

    False if the device is not there: the subvolumes of btrfs have numbers of their own.
    """
    device = f"{major}:{minor}"
    for line in mountinfo.splitlines():
        # 36 35 98:0 /root /mount/point rw,noatime master:1 - ext3 /dev/root rw
        mount, _, system = line.partition(" - ")
        if mount.split(" ")[2:3] == [device]:
            kind = system.split(" ")[0]
            return kind in _NETWORK_FILE_SYSTEMS or kind.startswith("fuse.")
    return False


def _descriptors_exclude_each_other(folder: Path) -> bool:
    import fcntl

    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    first = os.open(folder, flags)
    try:
        second = os.open(folder, flags)
        try:
            # Shared: other processes may look at the same time.
            fcntl.flock(first, fcntl.LOCK_SH | fcntl.LOCK_NB)
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(second)
    finally:
        os.close(first)
    return False


_locks: Final[set[Lock]] = set()
"""The locks of this process. Not weak: a child must also close those that nobody refers to."""

_forking: Final = RLock()
"""Held by a fork, and while ``_locks`` differs from the descriptors that are open."""


def _leave_locks() -> None:
    _forking.release()
    for lock in list(_locks):
        with suppress(Exception):  # the other locks must be closed, too
            lock.leave()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_forking.acquire,
        after_in_parent=_forking.release,
        after_in_child=_leave_locks,
    )
