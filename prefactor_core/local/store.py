"""Store: the SQLite file of a local Prefactor. Synchronous; knows tables, not rules."""

from __future__ import annotations

import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from typing import Final, TypeVar

from prefactor_core.operations import identifiers

Row = sqlite3.Row
T = TypeVar("T")

MEMORY: Final = ":memory:"

_BUSY_TIMEOUT = 0.2
"""Seconds that a call waits for another process; its caller tries again."""

# How the tables came to be, step by step: a file says by its user_version how many it has behind
# it. Files of the first versions say 0 and have the first step.
_STEPS = (
    """
CREATE TABLE IF NOT EXISTS account (
    id TEXT PRIMARY KEY
);
CREATE TABLE IF NOT EXISTS agent_versions (
    id TEXT PRIMARY KEY,
    agent_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    external_identifier TEXT,
    content TEXT NOT NULL,
    inserted_at TEXT NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS agent_versions_by_name
    ON agent_versions (agent_id, kind, external_identifier);
CREATE TABLE IF NOT EXISTS agent_instances (
    id TEXT PRIMARY KEY,
    agent_id TEXT NOT NULL,
    agent_version_id TEXT NOT NULL,
    agent_schema_version_id TEXT NOT NULL,
    environment_id TEXT NOT NULL,
    external_identifier TEXT,
    purpose TEXT NOT NULL,
    status TEXT NOT NULL,
    termination_reason TEXT,
    inserted_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    started_at TEXT,
    finished_at TEXT
);
CREATE INDEX IF NOT EXISTS agent_instances_by_agent ON agent_instances (agent_id, id);
CREATE UNIQUE INDEX IF NOT EXISTS agent_instances_by_name
    ON agent_instances (agent_id, external_identifier);
CREATE TABLE IF NOT EXISTS agent_spans (
    id TEXT PRIMARY KEY,
    agent_instance_id TEXT NOT NULL REFERENCES agent_instances (id),
    parent_span_id TEXT REFERENCES agent_spans (id),
    schema_name TEXT NOT NULL,
    status TEXT NOT NULL,
    payload TEXT NOT NULL,
    result_payload TEXT,
    sensitive_encoding INTEGER,
    inserted_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    started_at TEXT,
    finished_at TEXT
);
CREATE INDEX IF NOT EXISTS agent_spans_by_instance ON agent_spans (agent_instance_id, id);
CREATE TABLE IF NOT EXISTS idempotency_keys (
    key TEXT PRIMARY KEY,
    request TEXT NOT NULL,
    answer TEXT NOT NULL
);
""",
    """
CREATE TABLE agents (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    description TEXT,
    external_identifier TEXT UNIQUE,
    owner_person_id TEXT,
    risk_profile_id TEXT,
    team_id TEXT,
    retired INTEGER NOT NULL DEFAULT 0,
    inserted_at TEXT NOT NULL,
    updated_at TEXT NOT NULL
);
INSERT INTO agents (id, name, inserted_at, updated_at)
    SELECT agent_id, agent_id, min(inserted_at), min(inserted_at)
    FROM agent_instances GROUP BY agent_id;
ALTER TABLE agent_instances ADD COLUMN quality TEXT NOT NULL DEFAULT '{}';
ALTER TABLE agent_spans ADD COLUMN flags TEXT NOT NULL DEFAULT '[]';
""",
    # Answers that were stored before count from now on.
    """
ALTER TABLE idempotency_keys ADD COLUMN used_at INTEGER NOT NULL DEFAULT :now;
""",
    # Whether the start was given by the client; of what was stored before, nobody knows.
    """
ALTER TABLE agent_instances ADD COLUMN start_given INTEGER NOT NULL DEFAULT 0;
ALTER TABLE agent_instances ADD COLUMN flags TEXT NOT NULL DEFAULT '[]';
ALTER TABLE agent_spans ADD COLUMN start_given INTEGER NOT NULL DEFAULT 0;
""",
)

_LONGEST_WAIT: Final = 1e6  # seconds: SQLite counts milliseconds in 32 bits

# SQLite's codes for "another process is in the way, try again".
_BUSY_CODES: Final = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)


def is_busy(error: Exception) -> bool:
    """Whether SQLite raised ``error`` because another process holds a lock on the file."""
    # The lowest byte is the code, the others say more about it.
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _BUSY_CODES


class Store:
    """One open database. Used by one thread at a time, whichever that is: in
    :meth:`transaction` they take turns.

    ``path`` is a file name, or ``:memory:`` for a database that is gone after
    :meth:`close`. Several processes may have the same file open. A file of an earlier version
    is brought up to date; one of a later version raises :class:`ValueError`.
    """

    def __init__(self, path: str, opening_timeout: float = 10.0) -> None:
        """``opening_timeout``: seconds to wait for other processes that write to the file while
        its tables have to be made or brought up to date. After that, and for a file that is
        no database, raises :class:`sqlite3.Error`; :class:`OSError` if it cannot be made."""
        self.path = path
        self._turn = threading.Lock()
        self._give_up_at = time.monotonic() + opening_timeout
        if path != MEMORY:
            _create_private(path)
        # autocommit: the only transactions are those of transaction().
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            self._connection.row_factory = sqlite3.Row
            # Only a file that is not up to date needs a lock to be opened.
            self.account_id = self.until_free(self._find_account) or self.until_free(self._make)
            self._connection.execute("PRAGMA synchronous = NORMAL")
            self._connection.execute("PRAGMA foreign_keys = ON")
        except BaseException:
            self._connection.close()
            raise

    def _find_account(self) -> str | None:
        """The id of the account, if the file is up to date."""
        (mode,) = self._connection.execute("PRAGMA journal_mode").fetchone()
        if self._steps_done() < len(_STEPS) or mode not in ("wal", "memory"):
            return None
        account = self.one("SELECT id FROM account")
        return None if account is None else str(account["id"])

    def _make(self) -> str:
        """Make the tables, or bring them up to date, and give the id of the account."""
        # Outside of a transaction, or SQLite does not do it.
        self._connection.execute("PRAGMA journal_mode = WAL")
        with self.transaction():
            # Read again: another process may have been faster.
            for step in _STEPS[self._steps_done() :]:
                for statement in step.replace(":now", str(int(time.time()))).split(";"):
                    self._connection.execute(statement)
            self._connection.execute(f"PRAGMA user_version = {len(_STEPS)}")
            account = self.one("SELECT id FROM account")
            if account is not None:
                return str(account["id"])
            account_id = identifiers.generate(random.randrange(1, identifiers.MAX_PARTITION))
            self.insert("account", {"id": account_id})
            return account_id

    def _steps_done(self) -> int:
        (done,) = self._connection.execute("PRAGMA user_version").fetchone()
        if done > len(_STEPS):
            raise ValueError("it was made by a later version of this package")
        return int(done)

    def until_free(self, call: Callable[[], T]) -> T:
        """What ``call()`` gives, tried again while another process is in its way, as long as
        the opening may take."""
        try:
            while True:
                left = self._give_up_at - time.monotonic()
                self._wait_for_locks(left)
                try:
                    return call()
                except sqlite3.OperationalError as error:
                    if left <= 0 or not is_busy(error):
                        raise
                # SQLite waits for most locks itself, but not for that of a change to WAL.
                time.sleep(random.uniform(0.001, 0.02))
        finally:
            self._wait_for_locks(_BUSY_TIMEOUT)

    def _wait_for_locks(self, seconds: float) -> None:
        milliseconds = max(0, round(min(seconds, _LONGEST_WAIT) * 1000))
        self._connection.execute(f"PRAGMA busy_timeout = {milliseconds}")

    def close(self) -> None:
        """Close the file."""
        with self._turn:
            self._connection.close()

    @contextmanager
    def transaction(self) -> Generator[None]:
        """All that is written inside, or nothing if it raises."""
        with self._turn:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                # A COMMIT that failed may have left the transaction open; on a full disk SQLite
                # has rolled back already.
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def one(self, query: str, *values: object) -> Row | None:
        """The first row, or None."""
        row: Row | None = self._connection.execute(query, values).fetchone()
        return row

    def all(self, query: str, *values: object) -> list[Row]:
        """All rows."""
        return self._connection.execute(query, values).fetchall()

    def insert(self, table: str, row: Mapping[str, object]) -> int:
        """Add a row and give its rowid. ``table`` and the keys are names from the code, never
        from a caller."""
        columns, marks = ", ".join(row), ", ".join("?" * len(row))
        cursor = self._connection.execute(
            f"INSERT INTO {table} ({columns}) VALUES ({marks})", tuple(row.values())
        )
        return cursor.lastrowid or 0

    def delete_oldest(self, table: str, most: int, where: str, *values: object) -> None:
        """Delete those of the ``most`` oldest rows for which ``where`` holds; names as for
        :meth:`insert`."""
        oldest = f"SELECT rowid FROM {table} ORDER BY rowid LIMIT {most}"
        query = f"DELETE FROM {table} WHERE rowid IN ({oldest}) AND ({where})"
        self._connection.execute(query, values)

    def update(self, table: str, id: str, changes: Mapping[str, object]) -> None:
        """Change a row; names as for :meth:`insert`."""
        columns = ", ".join(f"{column} = ?" for column in changes)
        self._connection.execute(
            f"UPDATE {table} SET {columns} WHERE id = ?", (*changes.values(), id)
        )


_creating = threading.Lock()


def _create_private(path: str) -> None:
    """Create the file, for its owner alone; SQLite gives those beside it the same mode.

    The mode of a file that is there stays.
    """
    # One at a time: to close any descriptor of a file takes the locks away that this process
    # has on it, by POSIX, and so must not happen after another thread opened it by SQLite.
    with _creating, suppress(FileExistsError):
        os.close(os.open(os.path.realpath(path), os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))


def _forget_creating() -> None:
    global _creating
    _creating = threading.Lock()


if hasattr(os, "register_at_fork"):
    # Another thread may have held it, which the child does not have.
    os.register_at_fork(after_in_child=_forget_creating)
