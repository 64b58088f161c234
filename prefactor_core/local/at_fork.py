"""The database files of this process are closed while it forks.

A child inherits the connection of its parent, and with it SQLite's notes of the locks of this
process, but not the locks: by POSIX they belong to the parent. If a transaction went on at the
fork, the file would be busy for the child for ever. Else the child would take the parent's locks
for its own, and another process might delete what the child has written.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import Final, Protocol
from weakref import WeakSet

from prefactor_core.exceptions.log import log

logger = logging.getLogger("prefactor_core.local")

_PATIENCE: Final = 1.0
"""Seconds that a fork waits for the transactions of other threads; then it goes on all the same."""


class Database(Protocol):
    """What is closed: :class:`~prefactor_core.local.store.Store`."""

    path: str

    def rest(self, seconds: float) -> bool: ...
    def wake(self) -> None: ...


_open: WeakSet[Database] = WeakSet()
_forking = threading.RLock()
"""Held by a fork, and while ``_open`` changes."""

_resting: list[list[Database]] = []
"""The databases of each fork that goes on: a signal handler may fork in the hooks of another."""


def opened(database: Database) -> None:
    """Close ``database`` while this process forks, from now on."""
    with _forking:
        _open.add(database)


def closed(database: Database) -> None:
    """Leave ``database`` alone."""
    with _forking:
        _open.discard(database)


def _before() -> None:
    _forking.acquire()
    _resting.append(list(_open))
    until = time.monotonic() + _PATIENCE
    for database in _resting[-1]:
        if not database.rest(max(0.0, until - time.monotonic())):
            message = "this process forks in the middle of a transaction: a child may find %s busy"
            log(logger, logging.WARNING, message, database.path)


def _after() -> None:
    # The child has the thread that forked, and nothing else: this thread holds all of these. Ctrl-C
    # may come at any of these lines.
    try:
        _wake(_resting[-1])
    finally:
        try:
            _wake(_resting.pop())
        finally:
            _forking.release()


def _wake(resting: list[Database]) -> None:
    while resting:
        resting.pop().wake()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_after)
