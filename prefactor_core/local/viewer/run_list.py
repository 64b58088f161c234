"""The list of runs: its filters and its pages. Synchronous."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from sqlite3 import Connection
from typing import Final

import msgspec

from prefactor_core.exceptions import in_message
from prefactor_core.local.errors import invalid
from prefactor_core.local.forms import PURPOSES
from prefactor_core.local.requests import parse_time
from prefactor_core.local.viewer.runs import RUNS, RunRow, revision, to_run_row
from prefactor_core.local.viewer.search import RUN_HAS_TEXT, text_values
from prefactor_core.models.lifecycle import InstanceStatus
from prefactor_core.operations import identifiers

_STATUSES: Final = tuple(status.value for status in InstanceStatus)

_MOST_AGENTS: Final = 500
"""The most agents that the list offers as a filter."""

_SCAN_SECONDS: Final = 0.5
"""Seconds after which a search answers with the runs found so far, and where to go on."""

_AGO: Final = re.compile(r"(\d{1,6})([mhd])")
_SECONDS: Final = {"m": 60, "h": 3_600, "d": 86_400}

Conditions = dict[str, tuple[object, ...]]
"""SQL conditions from the code, each with its values from the caller."""


def list_runs(db: Connection, query: Mapping[str, str]) -> bytes:
    """A page of the runs that match ``query``, newest first.

    A search by text (``q``) stops after half a second. ``next`` then continues it, also if the
    page is not full.
    """
    conditions = _conditions(db, query)
    text = query.get("q", "").strip()
    rows, next_id = _page(db, conditions, text, query.get("before"), _limit(query))
    matched: int | None = None
    if not text:
        matched = _count(db, conditions)
    elif next_id is None and "before" not in query:
        matched = len(rows)
    by_status = "SELECT status, count(*) FROM agent_instances GROUP BY status"
    statuses = dict.fromkeys(_STATUSES, 0) | dict(map(tuple, db.execute(by_status)))
    agents = db.execute("SELECT id, name FROM agents ORDER BY name, id LIMIT ?", (_MOST_AGENTS,))
    return msgspec.json.encode(
        {
            "runs": rows,
            "next": next_id,
            "total": sum(statuses.values()),
            "matched": matched,
            "revision": revision(db),
            "agents": [dict(agent) for agent in agents],
            "statuses": statuses,
            "purposes": [purpose for purpose in PURPOSES if _has_run(db, purpose)],
        }
    )


def _conditions(db: Connection, query: Mapping[str, str]) -> Conditions:
    conditions: Conditions = {}
    if agent := query.get("agent"):
        known = db.execute("SELECT id FROM agents WHERE id = ? OR name = ?", (agent, agent))
        ids = [row["id"] for row in known] or [agent]
        conditions[f"r.agent_id IN ({_marks(ids)})"] = tuple(ids)
    if statuses := [status for status in query.get("status", "").split(",") if status]:
        if not set(statuses) <= set(_STATUSES):
            raise invalid("status", f"must be a list of {', '.join(_STATUSES)}, divided by commas")
        conditions[f"r.status IN ({_marks(statuses)})"] = tuple(statuses)
    if purpose := query.get("purpose"):
        conditions["r.purpose = ?"] = (purpose,)
    if since := query.get("since"):
        # The order of the ids is the order of time.
        conditions["r.id >= ?"] = (_id_of_time(since),)
    return conditions


def _page(
    db: Connection, conditions: Conditions, text: str, before: str | None, limit: int
) -> tuple[list[RunRow], str | None]:
    if before is not None:
        conditions = {**conditions, "r.id < ?": (before,)}
    where, values = _where(conditions)
    if text:
        ids, next_id = _search(db, where, values, limit, text)
    else:
        ids, next_id = _newest(db, where, values, limit)
    query = f"{RUNS} WHERE r.id IN ({_marks(ids)}) ORDER BY r.id DESC"
    return list(map(to_run_row, db.execute(query, ids))), next_id


def _newest(
    db: Connection, where: str, values: list[object], limit: int
) -> tuple[list[str], str | None]:
    """The ids of a page, and where the next one begins. Indexes alone tell which these are."""
    query = f"SELECT r.id FROM agent_instances AS r {where} ORDER BY r.id DESC LIMIT ?"
    ids = [id for (id,) in db.execute(query, (*values, limit + 1))]
    return ids[:limit], ids[limit - 1] if len(ids) > limit else None


def _search(
    db: Connection, where: str, values: list[object], limit: int, text: str
) -> tuple[list[str], str | None]:
    """Likewise, of the runs that have ``text``."""
    query = (
        f"SELECT r.id, {RUN_HAS_TEXT} FROM agent_instances AS r "
        f"LEFT JOIN agents AS a ON a.id = r.agent_id {where} ORDER BY r.id DESC"
    )
    found: list[str] = []
    until = time.monotonic() + _SCAN_SECONDS
    for id, has_text in db.execute(query, (*text_values(text), *values)):
        if has_text:
            found.append(id)
        if len(found) == limit or time.monotonic() > until:
            return found, id
    return found, None


def _has_run(db: Connection, purpose: str) -> bool:
    query = "SELECT 1 FROM agent_instances WHERE purpose = ? LIMIT 1"
    return db.execute(query, (purpose,)).fetchone() is not None


def _count(db: Connection, conditions: Conditions) -> int:
    where, values = _where(conditions)
    (count,) = db.execute(f"SELECT count(*) FROM agent_instances AS r {where}", values).fetchone()
    return int(count)


def _where(conditions: Conditions) -> tuple[str, list[object]]:
    values = [value for given in conditions.values() for value in given]
    return f"WHERE {' AND '.join(conditions) or '1'}", values


def _marks(values: Iterable[object]) -> str:
    return ", ".join("?" for _ in values)


def _limit(query: Mapping[str, str]) -> int:
    text = query.get("limit", "50")
    if not text.isdecimal() or len(text) > 3 or not 1 <= int(text) <= 200:
        raise invalid("limit", f"must be a whole number from 1 to 200, got {in_message(text)}")
    return int(text)


def _id_of_time(since: str) -> str:
    """The beginning of the ids that are made at ``since``: an ISO 8601 time, or an age: 30m, 24h,
    7d."""
    if ago := _AGO.fullmatch(since):
        seconds = time.time() - int(ago[1]) * _SECONDS[ago[2]]
    else:
        seconds = datetime.fromisoformat(parse_time("since", since, "")).timestamp()
    return identifiers.generate(0, max(0, int(seconds * 1000)))[:10]
