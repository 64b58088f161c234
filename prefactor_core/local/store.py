"""Store: the SQLite file of a local Prefactor. Synchronous; has the tables, not the rules."""

from __future__ import annotations

import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from functools import cache, lru_cache
from pathlib import Path
from typing import Final, TypeVar

from prefactor_core.local import at_fork
from prefactor_core.local.migrations import (
    ADD_DEFAULT_ENVIRONMENT,
    MIGRATIONS,
    empty_database,
    migrate,
)
from prefactor_core.local.read_only import check_version, connect
from prefactor_core.operations import identifiers

Row = sqlite3.Row
T = TypeVar("T")

MEMORY: Final = ":memory:"

_NOTHING: Final[Mapping[str, float]] = {}

LOCK_TIMEOUT: Final = 20.0
"""Seconds that a call waits for the locks of other processes; then the client tries again. Long
enough for many writers on a machine that has much else to do, and less than a client waits."""

_ATTEMPT: Final = 10
"""Milliseconds in which SQLite itself tries to get a lock. It waits longer and longer between two
attempts, up to 0.1 s: beside other processes that write all the time it would hardly get one."""

# SQLite's codes for a lock that another process holds.
_BUSY_CODES: Final = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)


def is_busy(error: Exception) -> bool:
    """Whether SQLite raised ``error`` because another process holds a lock on the file."""
    # The lowest byte is the primary code; the others are its details.
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _BUSY_CODES


class Store:
    """One open database. Any thread may use it inside :meth:`transaction`, one at a time.

    ``path`` is a file name, or ``:memory:`` for a database that is gone after :meth:`close`.
    Several processes may have the same file open, forks of this one too. A file of an earlier
    version is migrated; a file of a later version raises :class:`ValueError`.
    """

    def __init__(
        self,
        path: str,
        opening_timeout: float = 10.0,
        lock_timeout: float = LOCK_TIMEOUT,
        *,
        read_only: bool = False,
    ) -> None:
        """Open the file, create or migrate its tables.

        ``lock_timeout``: seconds that a call waits for the lock of another process.
        ``opening_timeout``: seconds to wait for other processes that write to a file whose tables
        must be created or migrated. Raises :class:`sqlite3.Error` after that, and for a file that
        is no database; :class:`OSError` if the file cannot be created.
        ``read_only``: every write raises :class:`sqlite3.Error`; a file that is missing, or has
        tables of an earlier version, raises :class:`ValueError`.
        """
        self.path = path
        # The working directory may be another one when it is opened again.
        self._file = None if path == MEMORY else Path(path).absolute()
        self._read_only = read_only
        self._turn = threading.RLock()
        self._revision: int | None = None
        self._lock_timeout = lock_timeout
        self._opened_by = time.monotonic() + opening_timeout
        self._is_opening = False
        self._checks_references = True
        self._opened: sqlite3.Connection | None = None
        self._rests = 0
        self._is_closed = False
        if self._file is not None:
            if not read_only:
                _create_private(path)
            at_fork.opened(self)
        with self._turn:
            self._opened = self._connect()
            try:
                if read_only:
                    check_version(self._opened)
                # A file that is up to date is opened without a lock.
                self.account_id = self.until_free(self._find_account) or self.until_free(
                    self._migrate
                )
                self._configure(self._opened)
            except BaseException:
                self.close()
                raise

    def _connect(self) -> sqlite3.Connection:
        if self._read_only:
            connection = connect(str(self._file or MEMORY))
        else:
            # isolation_level=None: only transaction() opens transactions.
            connection = sqlite3.connect(
                MEMORY if self._file is None else f"{self._file.as_uri()}?mode=rw",
                uri=self._file is not None,
                isolation_level=None,
                check_same_thread=False,
            )
        connection.row_factory = sqlite3.Row
        connection.execute(f"PRAGMA busy_timeout = {_ATTEMPT}")
        return connection

    def _configure(self, connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(f"PRAGMA foreign_keys = {'ON' if self._checks_references else 'OFF'}")

    @property
    def _connection(self) -> sqlite3.Connection:
        """The connection, which is opened again after a fork."""
        if self._opened is None:
            if self._is_closed:
                raise sqlite3.ProgrammingError("the database is closed")
            connection = self._connect()
            try:
                self._configure(connection)
            except BaseException:
                connection.close()
                raise
            self._opened = connection
        return self._opened

    @property
    def _in_transaction(self) -> bool:
        return self._opened is not None and self._opened.in_transaction

    def rest(self, seconds: float) -> bool:
        """Close the connection to the file, and let no thread use it until :meth:`wake`.

        ``seconds``: the longest wait for the transaction of another thread. Returns False, having
        done nothing, after that.
        """
        if not self._turn.acquire(timeout=seconds):
            return False
        self._rests += 1
        # The thread itself may be in a transaction.
        if not self._in_transaction:
            connection, self._opened = self._opened, None
            if connection is not None:
                with suppress(sqlite3.Error):
                    connection.close()
        return True

    def wake(self) -> None:
        """Undo :meth:`rest`, if it has done anything, in the same thread: the next use opens the
        file again."""
        if self._rests:
            self._rests -= 1
            self._turn.release()

    def _find_account(self) -> str | None:
        """The id of the account, or None for a file that needs :meth:`_migrate`."""
        (mode,) = self._execute("PRAGMA journal_mode").fetchone()
        is_ready = self._read_only or mode in ("wal", "memory")
        if self._migrations_done() < len(MIGRATIONS) or not is_ready:
            return None
        account = self.one("SELECT id FROM account")
        return None if account is None else str(account["id"])

    def _migrate(self) -> str:
        """Create or migrate the tables, and return the id of the account."""
        if self.path == MEMORY:
            empty_database().backup(self._connection)
        # SQLite changes the journal mode only outside of a transaction.
        self._execute("PRAGMA journal_mode = WAL")
        with self.transaction():
            # It counts again: another process may have been faster.
            migrate(self._connection)
            account = self.one("SELECT id FROM account")
            if account is not None:
                return str(account["id"])
            account_id = identifiers.generate(random.randrange(1, identifiers.MAX_PARTITION))
            self.insert("account", {"id": account_id})
            self._connection.execute(ADD_DEFAULT_ENVIRONMENT)
            return account_id

    def _migrations_done(self) -> int:
        (done,) = self._execute("PRAGMA user_version").fetchone()
        if done > len(MIGRATIONS):
            raise ValueError("it was made by a later version of this package")
        return int(done)

    def until_free(self, call: Callable[[], T]) -> T:
        """Call ``call``, which may wait for locks until ``opening_timeout`` has passed since the
        opening began."""
        self._is_opening = True
        try:
            return call()
        finally:
            self._is_opening = False

    def ignore_references(self) -> None:
        """Let rows be deleted that others refer to. SQLite has no index to find those others."""
        with self._turn:
            self._checks_references = False
            self._configure(self._connection)

    def close(self) -> None:
        """Close the file."""
        at_fork.closed(self)
        with self._turn:
            self._is_closed = True
            connection, self._opened = self._opened, None
            if connection is not None:
                connection.close()

    @contextmanager
    def transaction(self, *, waits: bool = True, part: bool = True) -> Generator[None]:
        """Commit the writes of the block, or roll them back if it raises.

        ``part``: inside of another transaction, the block can be rolled back alone.
        ``waits``: for the lock of another process, up to ``lock_timeout``.
        """
        with self._turn:
            if not self._in_transaction:
                with self._whole(waits):
                    yield
            elif part:
                with self._part():
                    yield
            else:
                yield

    @contextmanager
    def _whole(self, waits: bool) -> Generator[None]:
        self._execute("BEGIN IMMEDIATE", waits=waits)
        self._revision = None
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            # A failed COMMIT may leave the transaction open; on a full disk SQLite has already
            # rolled it back.
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    @contextmanager
    def _part(self) -> Generator[None]:
        revision = self._revision
        self._connection.execute("SAVEPOINT part")
        try:
            yield
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK TO part")
                self._connection.execute("RELEASE part")
                self._revision = revision
            raise
        self._connection.execute("RELEASE part")

    def _execute(
        self, query: str, values: tuple[object, ...] = (), *, waits: bool = True
    ) -> sqlite3.Cursor:
        """Execute ``query``, again while another process holds a lock."""
        give_up_at: float | None = None
        while True:
            try:
                return self._connection.execute(query, values)
            except sqlite3.OperationalError as error:
                if not waits or not is_busy(error):
                    raise
                now = time.monotonic()
                if give_up_at is None:
                    give_up_at = self._opened_by if self._is_opening else now + self._lock_timeout
                if now >= give_up_at:
                    raise
                # SQLite waits for most locks itself, but not for the one of the change to WAL.
                self._pause(random.uniform(0, 0.002))

    def _pause(self, seconds: float) -> None:
        if self._in_transaction:
            time.sleep(seconds)
            return
        # A fork need not wait until another process gives up its lock.
        self._turn.release()
        try:
            time.sleep(seconds)
        finally:
            self._turn.acquire()

    @contextmanager
    def snapshot(self) -> Generator[None]:
        """Read one state of the file in the block, whatever other processes write meanwhile."""
        with self._turn:
            if self._in_transaction:
                yield
                return
            self._execute("BEGIN")
            try:
                yield
            finally:
                self._connection.execute("ROLLBACK")

    def revision(self) -> int:
        """The number of this transaction; every row of a run or span that it writes has it."""
        if self._revision is None:
            self._connection.execute("UPDATE revision SET value = value + 1")
            (value,) = self._connection.execute("SELECT value FROM revision").fetchone()
            self._revision = int(value)
        return self._revision

    def one(self, query: str, *values: object) -> Row | None:
        """The first row, or None."""
        with self._turn:
            row: Row | None = self._execute(query, values).fetchone()
            return row

    def all(self, query: str, *values: object) -> list[Row]:
        """All rows."""
        with self._turn:
            return self._execute(query, values).fetchall()

    def insert(self, table: str, row: Mapping[str, object]) -> int:
        """Insert a row and return its rowid. ``table`` and the keys must come from the code, never
        from a caller."""
        query = _insert(table, tuple(row))
        return self._connection.execute(query, tuple(row.values())).lastrowid or 0

    def delete_oldest(self, table: str, most: int, where: str, *values: object) -> None:
        """Delete the rows that match ``where`` among the ``most`` oldest; names as for
        :meth:`insert`."""
        oldest = f"SELECT rowid FROM {table} ORDER BY rowid LIMIT {most}"
        query = f"DELETE FROM {table} WHERE rowid IN ({oldest}) AND ({where})"
        self._connection.execute(query, values)

    def delete(self, table: str, where: Mapping[str, object]) -> None:
        """Delete the rows with these values; names as for :meth:`insert`."""
        query = f"DELETE FROM {table} WHERE {' AND '.join(f'{name} = ?' for name in where)}"
        self._connection.execute(query, tuple(where.values()))

    def update(
        self,
        table: str,
        id: str,
        changes: Mapping[str, object],
        added: Mapping[str, float] = _NOTHING,
    ) -> None:
        """Update a row: ``changes`` are new values, ``added`` are added to the values it has; names
        as for :meth:`insert`."""
        query = _update(table, tuple(changes), tuple(added))
        self._connection.execute(query, (*changes.values(), *added.values(), id))


@cache
def _insert(table: str, columns: tuple[str, ...]) -> str:
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"


@lru_cache(1_000)
def _update(table: str, changed: tuple[str, ...], added: tuple[str, ...]) -> str:
    columns = [f"{column} = ?" for column in changed]
    columns += [f"{column} = {column} + ?" for column in added]
    return f"UPDATE {table} SET {', '.join(columns)} WHERE id = ?"


_creating = threading.Lock()


def _create_private(path: str) -> None:
    """Create the file for its owner alone; SQLite gives the files beside it the same mode.

    An existing file keeps its mode.
    """
    # One thread at a time: by POSIX, closing any descriptor of a file drops all locks that this
    # process has on it, so it must not happen after another thread opened the file by SQLite.
    with _creating, suppress(FileExistsError):
        os.close(os.open(os.path.realpath(path), os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))


def _forget_creating() -> None:
    global _creating
    _creating = threading.Lock()


if hasattr(os, "register_at_fork"):
    # A thread that does not exist in the child may have held the lock.
    os.register_at_fork(after_in_child=_forget_creating)
