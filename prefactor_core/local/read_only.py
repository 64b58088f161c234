"""Read only: a connection to a database file that never writes to it, nor migrates it."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

from prefactor_core.local.migrations import MIGRATIONS

_BUSY_TIMEOUT: Final = 1.0
"""Seconds to wait for the locks that other processes hold while they open or close the file."""


def connect(path: str) -> sqlite3.Connection:
    """A connection to ``path`` that cannot write. Raises :class:`sqlite3.Error`, and
    :class:`ValueError` for a path that is no file."""
    if not Path(path).is_file():
        raise ValueError("there is no such file")
    connection = sqlite3.connect(
        f"{Path(path).absolute().as_uri()}?mode=ro",
        uri=True,
        timeout=_BUSY_TIMEOUT,
        isolation_level=None,
        check_same_thread=False,
    )
    connection.row_factory = sqlite3.Row
    return connection


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
