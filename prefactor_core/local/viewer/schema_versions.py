"""The stored versions that runs refer to. Synchronous."""

from __future__ import annotations

from sqlite3 import Connection
from typing import Any

import msgspec

from prefactor_core.local.versions import SchemaVersion


def agent_version(db: Connection, version_id: str) -> dict[str, Any]:
    """An agent version, or an agent schema version, as it was registered."""
    query = "SELECT content FROM agent_versions WHERE id = ?"
    row = db.execute(query, (version_id,)).fetchone()
    content: dict[str, Any] = {} if row is None else msgspec.json.decode(row["content"])
    return {"id": version_id, **content}


def schema_version(db: Connection, version_id: str) -> SchemaVersion:
    """An agent schema version, which shows spans and quality payloads."""
    return SchemaVersion(agent_version(db, version_id))


def span_schemas(content: dict[str, Any], name: str) -> tuple[object, object]:
    """The JSON Schemas of the payload and of the result of the span type ``name``; None for one
    that was not registered."""
    types = content.get("span_type_schemas")
    if types is not None:
        known = {each["name"]: each for each in types}.get(name, {})
        return known.get("params_schema"), known.get("result_schema")
    payloads: dict[str, object] = content.get("span_schemas") or {}
    results: dict[str, object] = content.get("span_result_schemas") or {}
    return payloads.get(name), results.get(name)
