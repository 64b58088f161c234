"""Retention: a local file keeps runs for some days after they ended.

Run :func:`keep` as a task of the server: ``group.start_soon(keep, path, days)``. It goes on until
it is cancelled, has a thread and a connection of its own, and needs nothing else of the server.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Final

import anyio

from prefactor_core.exceptions.log import log
from prefactor_core.local.idempotency import KEPT_SECONDS
from prefactor_core.local.requests import stored_time
from prefactor_core.local.spans import Spans
from prefactor_core.local.store import Row, Store
from prefactor_core.queue.daemon_thread import DaemonThread

logger = logging.getLogger("prefactor_core.local")

_EVERY: Final = 600.0
"""Seconds from one look for old runs to the next."""

_PAUSE: Final = 0.02
"""Seconds between two steps, in which others write."""

_MOST_ROWS: Final = 100
"""Rows that a step deletes: it holds the file for some 10 ms."""

_CLOSE_TIMEOUT: Final = 1.0

_OLD: Final = """
SELECT * FROM agent_instances INDEXED BY agent_instances_by_update
WHERE updated_at < ?1 AND last_activity_at < ?1
    AND status IN ('complete', 'failed', 'cancelled', 'terminated')
ORDER BY updated_at LIMIT 1
"""


async def keep(path: str, days: float) -> None:
    """Delete from the file ``path`` the runs that ended, and had no write, for ``days`` days.

    With them go their spans, the versions that no other run and no deployment has, and old
    idempotency keys. A run that did not end is kept. By the clock of the server, as a client's may
    be wrong. The file does not shrink: SQLite writes new rows to the freed pages.

    A file that is locked, or fails, is logged once and tried again.
    """
    thread = DaemonThread("prefactor retention")
    store: Store | None = None
    failed = False
    try:
        while True:
            try:
                if store is None:
                    store = await thread.call(lambda: Store(path))
                retention = Retention(store, days)
                goes_on = True
                while goes_on:
                    goes_on = await thread.call(retention.step)
                    await anyio.sleep(_PAUSE)
                failed = False
            except (sqlite3.Error, OSError, ValueError) as error:
                if not failed:
                    log(logger, logging.WARNING, "old runs cannot be deleted: %s", error)
                failed = True
            await anyio.sleep(_EVERY)
    finally:
        with suppress(RuntimeError), anyio.move_on_after(_CLOSE_TIMEOUT, shield=True):
            if store is not None:
                await thread.call(store.close)
        thread.end()


class Retention:
    """Deletes old runs from ``store``, which nothing else uses, a few rows with each step."""

    def __init__(self, store: Store, days: float) -> None:
        self._store = store
        self._days = days
        self._spans = Spans(store)
        # Spans refer to their parents. All spans of a run go, but not at once.
        store.ignore_references()

    def step(self) -> bool:
        """Delete a few rows in one transaction; False if no row is old."""
        before = stored_time(datetime.now(UTC) - timedelta(days=self._days))
        oldest_key = int(time.time()) - KEPT_SECONDS
        run = self._store.one(_OLD, before)
        key = self._store.one("SELECT used_at FROM idempotency_keys ORDER BY rowid LIMIT 1")
        old_keys = key is not None and key["used_at"] < oldest_key
        if run is None and not old_keys:
            return False
        with self._store.transaction():
            if old_keys:
                self._store.delete_oldest("idempotency_keys", _MOST_ROWS, "used_at < ?", oldest_key)
            # Another process may have deleted the run, or written to it.
            elif run := self._store.one(_OLD, before):
                self._delete_from(run)
        return True

    def _delete_from(self, run: Row) -> None:
        if self._spans.remove(run["id"], _MOST_ROWS) == _MOST_ROWS:
            return
        self._store.delete("agent_instances", {"id": run["id"]})
        self._store.revision()  # a new one: pages look for changes by it
        for column in ("agent_version_id", "agent_schema_version_id"):
            others = f"SELECT id FROM agent_instances WHERE agent_id = ? AND {column} = ? LIMIT 1"
            current = "SELECT id FROM agent_deployments WHERE current_version_id = ?"
            if not (
                self._store.one(others, run["agent_id"], run[column])
                or self._store.one(current, run[column])
            ):
                self._store.delete("agent_versions", {"id": run[column]})
