"""Store: the SQLite file of a local Prefactor. Synchronous; knows tables, not rules."""

from __future__ import annotations

import random
import sqlite3
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager

from prefactor_core import identifiers

Row = sqlite3.Row

_BUSY_TIMEOUT = 0.2
"""Seconds that a call waits for another process; its caller tries again. A thread in here
cannot be interrupted, so this is also what a client may overrun its drain by."""

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
)


class Store:
    """One open database. Used by one thread at a time, whichever that is: in
    :meth:`transaction` they take turns.

    ``path`` is a file name, or ``:memory:`` for a database that is gone after
    :meth:`close`. Several processes may have the same file open. A file of an earlier version
    is brought up to date; one of a later version raises :class:`ValueError`.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._turn = threading.Lock()
        # autocommit: the only transactions are those of transaction().
        self._connection = sqlite3.connect(
            path, timeout=_BUSY_TIMEOUT, isolation_level=None, check_same_thread=False
        )
        try:
            self._connection.row_factory = sqlite3.Row
            self._use_wal()
            self._connection.execute("PRAGMA synchronous = NORMAL")
            self._connection.execute("PRAGMA foreign_keys = ON")
            with self.transaction():
                self._make_tables()
                account = self.one("SELECT id FROM account")
                if account is None:
                    partition = random.randrange(1, identifiers.MAX_PARTITION)
                    self.account_id = identifiers.generate(partition)
                    self.insert("account", {"id": self.account_id})
                else:
                    self.account_id = str(account["id"])
        except BaseException:
            self._connection.close()
            raise

    def _make_tables(self) -> None:
        (done,) = self._connection.execute("PRAGMA user_version").fetchone()
        if done > len(_STEPS):
            raise ValueError("it was made by a later version of this package")
        for step in _STEPS[done:]:
            for statement in step.split(";"):
                self._connection.execute(statement)
        self._connection.execute(f"PRAGMA user_version = {len(_STEPS)}")

    def _use_wal(self) -> None:
        # While another process is just making the file, this is refused at once and not, as
        # everything else, after the time-out of the connection.
        for attempts_left in reversed(range(500)):
            try:
                self._connection.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError:
                if not attempts_left:
                    raise
                time.sleep(0.01)

    def close(self) -> None:
        """Close the file."""
        with self._turn:
            self._connection.close()

    @contextmanager
    def transaction(self) -> Generator[None]:
        """All that is written inside, or nothing if it raises."""
        with self._turn:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def one(self, query: str, *values: object) -> Row | None:
        """The first row, or None."""
        row: Row | None = self._connection.execute(query, values).fetchone()
        return row

    def all(self, query: str, *values: object) -> list[Row]:
        """All rows."""
        return self._connection.execute(query, values).fetchall()

    def insert(self, table: str, row: Mapping[str, object]) -> None:
        """Add a row. ``table`` and the keys are names from the code, never from a caller."""
        columns, marks = ", ".join(row), ", ".join("?" * len(row))
        self._connection.execute(
            f"INSERT INTO {table} ({columns}) VALUES ({marks})", tuple(row.values())
        )

    def update(self, table: str, id: str, changes: Mapping[str, object]) -> None:
        """Change a row; names as for :meth:`insert`."""
        columns = ", ".join(f"{column} = ?" for column in changes)
        self._connection.execute(
            f"UPDATE {table} SET {columns} WHERE id = ?", (*changes.values(), id)
        )
