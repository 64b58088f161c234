"""AgentVersions: the calls about agent_versions and agent_schema_versions. Synchronous."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec
from msgspec import Struct

from prefactor_core.local.errors import not_found
from prefactor_core.local.faults import Faults
from prefactor_core.local.forms import Key
from prefactor_core.local.idempotency import IdempotentCalls
from prefactor_core.local.pagination import Answer, page_of
from prefactor_core.local.requests import stored_now
from prefactor_core.local.store import Row, Store
from prefactor_core.local.versions import Versions

Kind = Literal["agent_version", "agent_schema_version"]


class NewVersion(Struct, kw_only=True):
    """``details`` of POST agent_version."""

    agent_id: str
    external_identifier: str | None = None
    name: str | None = None
    description: str | None = None
    runtime_environment: dict[str, Any] | None = None


class NewSchemaVersion(Struct, kw_only=True):
    """``details`` of POST agent_schema_version."""

    agent_id: str
    external_identifier: str | None = None
    span_schemas: dict[str, Any] | None = None
    span_type_schemas: list[dict[str, Any]] | None = None
    span_result_schemas: dict[str, Any] | None = None
    quality_schemas: list[dict[str, Any]] | None = None
    quality_schema: dict[str, Any] | None = None


class CreateVersionBody(Struct, kw_only=True):
    """POST agent_version."""

    details: NewVersion
    idempotency_key: Key | None = None


class CreateSchemaVersionBody(Struct, kw_only=True):
    """POST agent_schema_version."""

    details: NewSchemaVersion
    idempotency_key: Key | None = None


class AgentVersions:
    """The versions of one ``kind``, which runs register, or these calls create."""

    def __init__(
        self, kind: Kind, store: Store, versions: Versions, faults: Faults | None = None
    ) -> None:
        self._kind: Kind = kind
        self._store = store
        self._versions = versions
        self._calls = IdempotentCalls(store, faults or Faults())

    def create(self, body: CreateVersionBody | CreateSchemaVersionBody) -> bytes:
        """POST {kind}; a version that is there already, with the same content, is answered.

        Raises :class:`ApiError` (422) if another content has this external_identifier.
        """

        def act() -> Answer:
            fields = msgspec.structs.asdict(body.details)
            agent_id = fields.pop("agent_id")
            if self._store.one("SELECT id FROM agents WHERE id = ?", agent_id) is None:
                raise not_found("agent", agent_id)
            content = {name: value for name, value in fields.items() if value is not None}
            if self._kind == "agent_version":
                version = self._versions.register_agent(agent_id, content, stored_now())
            else:
                version = self._versions.register_schema(agent_id, content, stored_now())
            return self._answer(version["id"])

        return self._calls.run(f"create_{self._kind}", body, body.idempotency_key, act)

    def get(self, id: str) -> bytes:
        """GET {kind}/{id}."""
        return msgspec.json.encode(self._answer(id))

    def list(self, query: Mapping[str, str]) -> bytes:
        """GET {kind}?agent_id=…"""
        where = {"kind = ?": str(self._kind)}
        if "agent_id" in query:
            where["agent_id = ?"] = query["agent_id"]
        page = page_of(self._store, "agent_versions", where, query, self._details)
        return msgspec.json.encode(page)

    def _answer(self, id: str) -> Answer:
        query = "SELECT * FROM agent_versions WHERE id = ? AND kind = ?"
        row = self._store.one(query, id, self._kind)
        if row is None:
            raise not_found(self._kind.replace("_", " "), id)
        return {"status": "success", "details": self._details(row)}

    def _details(self, row: Row) -> Answer:
        return {
            **self._versions.shown(row),
            "account_id": self._store.account_id,
            "inserted_at": row["inserted_at"],
            "updated_at": row["inserted_at"],
        }
