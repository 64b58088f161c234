"""The stored versions that runs refer to. Synchronous."""

from __future__ import annotations

from functools import lru_cache
from sqlite3 import Connection
from typing import Any, Final

import msgspec

from prefactor_core.local.versions import SchemaVersion

_MOST_CACHED: Final = 64


class SchemaDetails(SchemaVersion):
    """An agent schema version, which shows spans and quality payloads, with its JSON Schemas."""

    def __init__(self, content: dict[str, Any]) -> None:
        super().__init__(content)
        self._content = content

    def json_schemas(self, name: str) -> tuple[object, object]:
        """The JSON Schemas of the payload and of the result of the span type ``name``; None for
        one that was not registered."""
        types = self._content.get("span_type_schemas")
        if types is not None:
            known = {each["name"]: each for each in types}.get(name, {})
            return known.get("params_schema"), known.get("result_schema")
        payloads: dict[str, object] = self._content.get("span_schemas") or {}
        results: dict[str, object] = self._content.get("span_result_schemas") or {}
        return payloads.get(name), results.get(name)


def agent_version(db: Connection, version_id: str) -> dict[str, Any]:
    """An agent version as it was registered."""
    content: dict[str, Any] = msgspec.json.decode(_content(db, version_id))
    return {"id": version_id, **content}


def schema_version(db: Connection, version_id: str) -> SchemaDetails:
    """An agent schema version; the last 64 are cached."""
    return _details(_content(db, version_id))


@lru_cache(_MOST_CACHED)
def _details(content: str) -> SchemaDetails:
    return SchemaDetails(msgspec.json.decode(content))


def _content(db: Connection, version_id: str) -> str:
    query = "SELECT content FROM agent_versions WHERE id = ?"
    row = db.execute(query, (version_id,)).fetchone()
    return "{}" if row is None else str(row["content"])
