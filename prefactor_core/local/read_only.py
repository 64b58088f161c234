"""Read only: a connection to a database file that never writes to it, nor migrates it."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Final

from prefactor_core.local.migrations import MIGRATIONS

_BUSY_TIMEOUT: Final = 1.0
"""Seconds to wait for the locks that other processes hold while they open or close the file."""

# SQLite's codes where it cannot make the files beside a database that it needs even to read it.
_NOTHING_BESIDE: Final = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)


class _Unlocked(sqlite3.Connection):
    """Reads a file as if it never changed: without locks, and without files beside it."""


def connect(path: str) -> sqlite3.Connection:
    """A connection to ``path`` that cannot write, also where the folder may not be written.

    Raises :class:`sqlite3.Error`, also where changes lie beside the file and cannot be read from
    there, and :class:`ValueError` for a path that is no file.
    """
    if not Path(path).is_file():
        raise ValueError("there is no such file")
    connection = _open(path, "mode=ro", sqlite3.Connection)
    try:
        connection.execute("PRAGMA schema_version")
    except sqlite3.Error as error:
        connection.close()
        if error.sqlite_errorcode & 0xFF not in _NOTHING_BESIDE:
            raise
        if _has_changes(path):
            folder, name = os.path.split(os.path.realpath(path))
            raise sqlite3.OperationalError(
                f"its newest changes are in '{name}-wal', and to read them SQLite must write to "
                f"the folder '{folder}', which it may not: copy '{name}' and '{name}-wal' to a "
                "folder of your own"
            ) from None
        connection = _open(path, "mode=ro&immutable=1", _Unlocked)
    return connection


def is_overtaken(connection: sqlite3.Connection, path: str) -> bool:
    """Whether ``connection`` to ``path`` misses what another process has begun to write."""
    return isinstance(connection, _Unlocked) and _has_changes(path)


def _open(path: str, options: str, kind: type[sqlite3.Connection]) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"{Path(path).absolute().as_uri()}?{options}",
        uri=True,
        timeout=_BUSY_TIMEOUT,
        isolation_level=None,
        check_same_thread=False,
        factory=kind,
    )
    connection.row_factory = sqlite3.Row
    return connection


def _has_changes(path: str) -> bool:
    """Whether changes to the file ``path`` are in the one beside it."""
    wal = Path(f"{os.path.realpath(path)}-wal")
    return wal.exists() and wal.stat().st_size > 0


def check_version(db: sqlite3.Connection) -> None:
    """Raise :class:`ValueError` for tables of another version than this package's."""
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version > len(MIGRATIONS):
        raise ValueError("it was made by a later version of this package")
    if version < len(MIGRATIONS):
        raise ValueError(
            "its tables are of an earlier version of this package, or of another program; "
            "`python -m prefactor_core serve --db FILE` brings a file of this package up to date"
        )
