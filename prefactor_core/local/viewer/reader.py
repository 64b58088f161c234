"""Reader: a connection that only reads, on a thread of its own."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final, TypeVar

import anyio

from prefactor_core.exceptions import PrefactorValueError
from prefactor_core.local.read_only import check_version, connect, is_overtaken
from prefactor_core.queue.daemon_thread import DaemonThread

T = TypeVar("T")

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
        if self._connection is not None and is_overtaken(self._connection, self._path):
            self._close()
            self._connection = None
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
            await reader.read(check_version)
        except (sqlite3.Error, ValueError) as error:
            raise PrefactorValueError(f"cannot read the database {path!r}: {error}") from None
        yield reader
    finally:
        await reader.aclose()
