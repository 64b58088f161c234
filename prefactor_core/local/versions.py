"""Versions: agent_versions and agent_schema_versions, which runs register. Synchronous."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec
from msgspec import Raw

from prefactor_core.local.errors import invalid
from prefactor_core.local.requests import check_schema_version, external_identifier_of
from prefactor_core.local.store import Row, Store
from prefactor_core.operations import identifiers
from prefactor_core.schema_registry.schema_check import SchemaCheck, nearest_name

if TYPE_CHECKING:
    from prefactor_core.local.summaries import Template

Version = dict[str, Any]

_MOST_CACHED: Final = 64


class Versions:
    """The versions in ``store``."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._cached = lru_cache(_MOST_CACHED)(self._load)

    def register_agent(self, agent_id: str, version: Version, now: str) -> Version:
        """Find or add an agent_version: by its external_identifier, or by its content without one.

        Raises :class:`ApiError` if the stored one has another name, description or
        runtime_environment. Fields that the request leaves out are not compared.
        """
        row = self._find(agent_id, "agent_version", version)
        if row is None:
            return self._add(agent_id, "agent_version", version, now)
        stored = _content(row)
        changed = [
            field
            for field in ("name", "description")
            if version.get(field) is not None and stored.get(field) != version[field]
        ]
        # Older clients send no runtime_environment: that alone does not make another version.
        environments = version.get("runtime_environment"), stored.get("runtime_environment")
        if None not in environments and environments[0] != environments[1]:
            changed.append("runtime_environment")
        return _same(row, stored, changed)

    def register_schema(self, agent_id: str, version: Version, now: str) -> Version:
        """Find or add an agent_schema_version, likewise; the whole content is compared."""
        check_schema_version(version)
        row = self._find(agent_id, "agent_schema_version", version)
        if row is None:
            return _by_name(self._add(agent_id, "agent_schema_version", version, now))
        stored = _content(row)
        fields = {**stored, **version}
        changed = sorted(name for name in fields if stored.get(name) != version.get(name))
        return _by_name(_same(row, stored, changed))

    def shown(self, row: Row) -> Version:
        """The version in ``row``, in the form that register answers."""
        version = _as_answered(row, _content(row))
        return version if row["kind"] == "agent_version" else _by_name(version)

    def stored(self, id: str) -> Version:
        """A version as it was registered."""
        row = self._store.one("SELECT * FROM agent_versions WHERE id = ?", id)
        assert row is not None
        return _content(row)

    def schema(self, id: str) -> SchemaVersion:
        """The agent_schema_version ``id``, which checks and shows spans; the last 64 are cached."""
        return self._cached(id)

    def _load(self, id: str) -> SchemaVersion:
        return SchemaVersion(self.stored(id))

    def _find(self, agent_id: str, kind: str, version: Version) -> Row | None:
        external_id = external_identifier_of(kind, version)
        if external_id is None:
            return self._store.one(
                "SELECT * FROM agent_versions WHERE agent_id = ? AND kind = ? "
                "AND external_identifier IS NULL AND content = ?",
                agent_id,
                kind,
                _encode(version),
            )
        return self._store.one(
            "SELECT * FROM agent_versions WHERE agent_id = ? AND kind = ? "
            "AND external_identifier = ?",
            agent_id,
            kind,
            external_id,
        )

    def _add(self, agent_id: str, kind: str, version: Version, now: str) -> Version:
        id = identifiers.generate_related(self._store.account_id)
        row = {
            "id": id,
            "agent_id": agent_id,
            "kind": kind,
            "external_identifier": external_identifier_of(kind, version),
            "content": _encode(version),
            "inserted_at": now,
        }
        self._store.insert("agent_versions", row)
        return {"type": kind, **version, "id": id, "agent_id": agent_id}


class SchemaVersion:
    """The span types and quality schemas of a stored agent_schema_version."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        self.check = SchemaCheck(content)
        self._span_types = _shown(content.get("span_type_schemas"))
        self._qualities = _shown(content.get("quality_schemas"))
        unnamed: object = content.get("quality_schema")
        fields = cast("dict[str, Any]", unnamed) if isinstance(unnamed, dict) else {}
        self.unnamed_quality = Shown({**fields, "name": "quality"})
        """How the one quality payload of older clients is shown."""

    def span_type(self, name: str) -> Shown:
        """How spans of this name are shown; the name may be unregistered."""
        return self._span_types.get(name) or Shown({"name": name})

    def quality(self, name: str) -> Shown:
        """How the quality payloads of this name are shown.

        Raises :class:`ApiError` for a name that the version does not have.
        """
        known = self._qualities.get(name)
        if known is None:
            hint = nearest_name(name, self._qualities)
            raise invalid("name", f"{name!r} is not one of the quality_schemas{hint}")
        return known


class Shown:
    """How a type is shown: its ``title``, its ``data_risk``, and summaries by its template."""

    def __init__(self, details: Mapping[str, Any]) -> None:
        self.title = details.get("title") or details["name"]
        self.data_risk: object = details.get("data_risk")
        self._text: object = details.get("template")
        self._template: Template | None = None

    def summary(self, *payloads: str | Raw | None) -> str | None:
        """The summary of JSON ``payloads``; see ``Template.render``. None without a template."""
        if self._text is None:
            return None
        if self._template is None:
            from prefactor_core.local.summaries import Template  # here: Liquid is slow to import

            self._template = Template(self._text)
        given = [payload for payload in payloads if payload is not None]
        return self._template.render(*map(msgspec.json.decode, given))


def _shown(types: list[dict[str, Any]] | None) -> dict[str, Shown]:
    return {details["name"]: Shown(details) for details in types or ()}


def _content(row: Row) -> Version:
    return msgspec.json.decode(row["content"], type=Version)


def _encode(version: Version) -> str:
    return msgspec.json.encode(version, order="sorted").decode()


def _same(row: Row, stored: Version, changed: list[str]) -> Version:
    if changed:
        raise invalid(
            row["kind"],
            f"{row['external_identifier']!r} already exists with different details "
            f"({', '.join(changed)}): give the changed one another external_identifier",
        )
    return _as_answered(row, stored)


def _as_answered(row: Row, content: Version) -> Version:
    return {"type": row["kind"], **content, "id": row["id"], "agent_id": row["agent_id"]}


def _by_name(version: Version) -> Version:
    """The version as register answers it: span_type_schemas is a map by name, and not the list
    that requests send."""
    types: list[dict[str, Any]] = version.get("span_type_schemas") or []
    return {**version, "span_type_schemas": {each["name"]: each for each in types}}
