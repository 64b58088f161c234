"""Reader: a connection that only reads, on a thread of its own."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final, TypeVar

import anyio

from prefactor_core.exceptions import PrefactorValueError
from prefactor_core.local.migrations import MIGRATIONS
from prefactor_core.queue.daemon_thread import DaemonThread

T = TypeVar("T")

_BUSY_TIMEOUT: Final = 1.0
"""Seconds to wait for the locks that other processes hold while they open or close the file."""

_CLOSE_TIMEOUT: Final = 1.0
"""Seconds to wait for a query that runs; after that the thread closes the file alone."""


class Reader:
    """Queries on the database file ``path``, one at a time; see :func:`open_reader`.

    A long query delays neither the event loop nor a writer, but the queries after it.
    """

    def __init__(self, path: str, name: str) -> None:
        self._path = path
        self._thread = DaemonThread(name)
        self._connection: sqlite3.Connection | None = None

    async def read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """Call ``query`` in the thread, inside one transaction: all its statements see the same
        state of the file. Raises :class:`sqlite3.Error` if the file cannot be read."""
        waiting = [query]
        try:
            return await self._thread.call(lambda: self._query(waiting.pop()))
        finally:
            # A query whose caller left before it began is not made: pop() fails, unseen.
            waiting.clear()

    def _query(self, query: Callable[[sqlite3.Connection], T]) -> T:
        if self._connection is None:
            self._connection = connect(self._path)
        self._connection.execute("BEGIN")
        try:
            return query(self._connection)
        finally:
            if self._connection.in_transaction:  # some errors have ended it
                self._connection.execute("ROLLBACK")

    async def aclose(self) -> None:
        """Close the file after the query that runs, and end the thread."""
        with suppress(RuntimeError), anyio.move_on_after(_CLOSE_TIMEOUT, shield=True):
            try:
                await self._thread.call(self._close)
            finally:
                self._thread.end()

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()


@asynccontextmanager
async def open_reader(path: str, name: str) -> AsyncGenerator[Reader]:
    """Open the database file ``path`` for reading; ``name`` is the name of the thread.

    Raises :class:`PrefactorValueError` for a file that is missing, is no database of this package,
    or has tables of another version: reading migrates nothing.
    """
    reader = Reader(path, name)
    try:
        try:
            await reader.read(_check_version)
        except (sqlite3.Error, ValueError) as error:
            raise PrefactorValueError(f"cannot read the database {path!r}: {error}") from None
        yield reader
    finally:
        await reader.aclose()


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


def _check_version(db: sqlite3.Connection) -> None:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version > len(MIGRATIONS):
        raise ValueError("it was made by a later version of this package")
    if version < len(MIGRATIONS):
        raise ValueError(
            "its tables are of an earlier version of this package, or of another program; "
            "`python -m prefactor_core serve --db FILE` brings a file of this package up to date"
        )
