"""The database files of this process are closed while it forks.

A child inherits the connection of its parent, and with it SQLite's notes of the locks of this
process, but not the locks: by POSIX they belong to the parent. If a transaction went on at the
fork, the file would be busy for the child for ever. Else the child would take the parent's locks
for its own, and another process might delete what the child has written.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Final, Protocol
from weakref import WeakSet

_PATIENCE: Final = 1.0
"""Seconds that a fork waits for the transactions of other threads; then it goes on all the same."""


class Database(Protocol):
    """What is closed: :class:`~prefactor_core.local.store.Store`."""

    def rest(self, seconds: float) -> bool: ...
    def wake(self) -> None: ...


_open: WeakSet[Database] = WeakSet()
_forking = threading.Lock()
_resting: list[Database] = []


def opened(database: Database) -> None:
    """Close ``database`` while this process forks, from now on."""
    _open.add(database)


def closed(database: Database) -> None:
    """Leave ``database`` alone."""
    _open.discard(database)


def _before() -> None:
    _forking.acquire()
    until = time.monotonic() + _PATIENCE
    _resting.extend(each for each in list(_open) if each.rest(max(0.0, until - time.monotonic())))


def _after() -> None:
    # The child has the thread that forked, and nothing else: this thread holds all of these.
    while _resting:
        _resting.pop().wake()
    _forking.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_after)
