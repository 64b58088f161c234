"""Runs: what is shown of one run, in a list and by itself. Synchronous."""

from __future__ import annotations

from sqlite3 import Connection, Row
from typing import Any, NamedTuple

import msgspec
from msgspec import Raw, Struct

from prefactor_core.local.errors import not_found
from prefactor_core.local.quality import Quality
from prefactor_core.local.spans import COUNTED
from prefactor_core.local.viewer.schema_versions import agent_version, schema_version
from prefactor_core.operations.cause import cause_in

# A terminated run stopped when the last of its spans ended: one of those that were changed last,
# which an index has at hand.
RUNS = """
SELECT r.id, r.agent_id, coalesce(a.name, r.agent_id) AS agent_name, r.external_identifier,
    r.purpose, r.status, r.started_at, r.finished_at, r.inserted_at, r.last_activity_at,
    r.termination_reason, r.heard_at,
    CASE WHEN r.status = 'terminated' AND r.active_spans = 0 THEN max(r.finished_at, coalesce((
        SELECT max(finished_at) FROM (
            SELECT finished_at FROM agent_spans WHERE agent_instance_id = r.id
            ORDER BY revision DESC LIMIT 100)), '')) END AS stopped_at,
    r.pending_spans, r.active_spans, r.complete_spans, r.failed_spans, r.cancelled_spans,
    r.flagged_spans AS flagged, r.llm_calls, r.tokens, r.cost, r.revision
FROM agent_instances AS r LEFT JOIN agents AS a ON a.id = r.agent_id
"""
"""The query for :class:`RunRow`, without a condition."""


class RunRow(Struct, kw_only=True):
    """A run as the list shows it. ``stopped_at``: when a terminated run ended its last span;
    ``spans``: their number by status, and ``total``."""

    id: str
    agent_id: str
    agent_name: str
    external_identifier: str | None
    purpose: str
    status: str
    started_at: str | None
    finished_at: str | None
    inserted_at: str
    last_activity_at: str | None
    termination_reason: str | None
    heard_at: str | None
    stopped_at: str | None
    spans: dict[str, int]
    flagged: int
    llm_calls: int
    tokens: int
    cost: float
    revision: int


def revision(db: Connection) -> int:
    """The revision of the newest change in the file."""
    (value,) = db.execute("SELECT value FROM revision").fetchone()
    return int(value)


def run_row(db: Connection, run_id: str) -> RunRow:
    """The row of one run. Raises :class:`ApiError` (404) if it is unknown."""
    row = db.execute(f"{RUNS} WHERE r.id = ?", (run_id,)).fetchone()
    if row is None:
        raise not_found("agent instance", run_id)
    return to_run_row(row)


def changed_runs(db: Connection, after: int, most: int) -> list[RunRow]:
    """About ``most`` runs that changed after the revision ``after``, in the order of the changes;
    all runs of the last revision among them."""
    query = f"{RUNS} WHERE r.revision > ? ORDER BY r.revision, r.id LIMIT ?"
    rows = list(map(to_run_row, db.execute(query, (after, most))))
    if len(rows) == most:
        query = f"{RUNS} WHERE r.revision = ? AND r.id > ? ORDER BY r.id"
        rows += map(to_run_row, db.execute(query, (rows[-1].revision, rows[-1].id)))
    return rows


class RunCount(NamedTuple):
    """The number of all runs in the file, and the rowid of the newest one, which SQLite counts
    up."""

    total: int
    newest: int

    def has_lost(self, later: RunCount) -> bool:
        """Whether runs were deleted between this count and a ``later`` one."""
        added = later.newest - self.newest
        return added < 0 or later.total < self.total + added


def count_runs(db: Connection) -> RunCount:
    """Count the runs in the file."""
    query = "SELECT count(*), coalesce(max(rowid), 0) FROM agent_instances"
    return RunCount(*db.execute(query).fetchone())


def run_details(db: Connection, run_id: str) -> bytes:
    """A run with its version, its flags, its quality payloads, and the step that caused it."""
    shown = msgspec.structs.asdict(run_row(db, run_id))
    row = db.execute("SELECT * FROM agent_instances WHERE id = ?", (run_id,)).fetchone()
    schema = schema_version(db, row["agent_schema_version_id"])
    recorded = msgspec.json.decode(row["quality"], type=dict[str, Quality])
    details = {
        **shown,
        "flags": Raw(row["flags"].encode()),
        "environment_id": row["environment_id"],
        "agent_version": agent_version(db, row["agent_version_id"]),
        "quality": [
            {
                "name": name,
                "payload_text": bytes(quality.payload).decode(),
                "flags": quality.flags,
                "summary": schema.quality(name).summary(quality.payload),
            }
            for name, quality in recorded.items()
        ],
        "caused_by": _caused_by(db, run_id),
    }
    return msgspec.json.encode({"run": details})


def _caused_by(db: Connection, run_id: str) -> dict[str, object] | None:
    """The step that the first span of a run names as its cause, and whether it is in this file."""
    query = (
        "SELECT payload FROM agent_spans WHERE agent_instance_id = ? AND parent_span_id IS NULL "
        "ORDER BY id LIMIT 1"
    )
    row = db.execute(query, (run_id,)).fetchone()
    cause = None if row is None else cause_in(Raw(row["payload"].encode()))
    if cause is None:
        return None
    query = "SELECT 1 FROM agent_instances WHERE id = ?"
    return {
        "run_id": cause.run_id,
        "span_id": cause.span_id,
        "traceparent": cause.traceparent,
        "is_stored": db.execute(query, (cause.run_id,)).fetchone() is not None,
    }


def to_run_row(row: Row) -> RunRow:
    """The row of a run, from a row of :data:`RUNS`."""
    values: dict[str, Any] = dict(row)
    counts = {status: values.pop(f"{status}_spans") for status in COUNTED}
    return RunRow(spans={"total": sum(counts.values()), **counts}, **values)
