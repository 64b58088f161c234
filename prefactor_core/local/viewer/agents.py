"""Agents: the list of all agents, with the number of their runs. Synchronous."""

from __future__ import annotations

from sqlite3 import Connection
from typing import Final

import msgspec

_AGENTS: Final = """
SELECT a.id, a.name, a.description, a.external_identifier,
    CASE WHEN a.retired THEN 'retired' WHEN r.newest IS NULL THEN 'pending' ELSE 'active' END
        AS status,
    coalesce(r.total, 0) AS total, coalesce(r.active, 0) AS active,
    coalesce(r.failed, 0) AS failed,
    n.id AS newest_id, n.status AS newest_status, n.started_at AS newest_started_at
FROM agents AS a
LEFT JOIN (
    SELECT agent_id, max(id) AS newest, count(*) AS total, sum(status = 'active') AS active,
        sum(status = 'failed') AS failed
    FROM agent_instances GROUP BY agent_id
) AS r ON r.agent_id = a.id
LEFT JOIN agent_instances AS n ON n.id = r.newest
ORDER BY r.newest DESC, a.name, a.id
"""


def list_agents(db: Connection) -> bytes:
    """All agents; the one with the newest run first."""
    agents = [
        {
            **{name: row[name] for name in row.keys()[:5]},
            "runs": {name: row[name] for name in ("total", "active", "failed")},
            "newest": None
            if row["newest_id"] is None
            else {name: row[f"newest_{name}"] for name in ("id", "status", "started_at")},
        }
        for row in db.execute(_AGENTS)
    ]
    return msgspec.json.encode({"agents": agents})
