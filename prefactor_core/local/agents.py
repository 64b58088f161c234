"""Agents: the calls below /api/v1/agent, and the agents that exist. Synchronous."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import msgspec
from msgspec import UNSET

from prefactor_core.local.errors import ApiError, check_filled, invalid, invalid_action, not_found
from prefactor_core.local.faults import Faults
from prefactor_core.local.idempotency import IdempotentCalls
from prefactor_core.local.pagination import Answer, page_of
from prefactor_core.local.requests import (
    ActBody,
    CreateAgentBody,
    UpdateAgentBody,
    check_id,
    stored_now,
)
from prefactor_core.local.store import Row, Store
from prefactor_core.operations import identifiers

_STATUSES = ("pending", "active", "complete", "failed", "cancelled", "terminated")
_FILTERS = ("risk_profile_id", "team_id", "owner_person_id")


class Agents:
    """The agents in ``store``. ``given``: ids of agents that exist without being created; None:
    an agent exists once it registers a run."""

    def __init__(
        self, store: Store, given: Collection[str] | None = None, faults: Faults | None = None
    ) -> None:
        self._store = store
        self._calls = IdempotentCalls(store, faults or Faults())
        self._adds_unknown = given is None
        # A file that has all of them is not written to, and needs no lock.
        if given and store.until_free(lambda: any(self._row(id) is None for id in given)):
            store.until_free(lambda: self._add_given(given))

    def use(self, agent_id: str) -> None:
        """Check that the agent may register a run; call it in the transaction that registers.

        Raises :class:`ApiError` if the agent is unknown (404) or retired (409).
        """
        row = self._row(agent_id)
        if row is None:
            if not self._adds_unknown:
                raise not_found("agent", agent_id)
            self._add_unknown(agent_id)
        elif row["retired"]:
            # The API does not document this case. An agent is retired so that it runs no more.
            raise invalid_action(f"agent {agent_id!r} is retired: reinstate it for another run")

    def create(self, body: CreateAgentBody) -> bytes:
        """POST agent. Raises :class:`ApiError` for an id or external_identifier in use."""

        def act() -> Answer:
            details, now = body.details, stored_now()
            check_filled("name", details.name)
            if details.id is None:
                id = identifiers.generate_related(self._store.account_id)
            else:
                id = check_id(details.id, identifiers.partition_of(self._store.account_id))
                if self._row(id):
                    raise ApiError(409, "already_exists", f"agent {id!r} exists")
            external_id = details.external_identifier
            if external_id is not None and self._named(external_id):
                raise invalid("external_identifier", "has already been taken")
            times = {"inserted_at": now, "updated_at": now}
            self._store.insert("agents", {**msgspec.structs.asdict(details), "id": id, **times})
            return self._answer(id)

        return self._calls.run("create_agent", body, body.idempotency_key, act)

    def update(self, agent_id: str, body: UpdateAgentBody) -> bytes:
        """PUT agent/{id}. The external_identifier is fixed."""

        def act() -> Answer:
            stored = self._existing(agent_id)
            given = msgspec.structs.asdict(body.details)
            changes = {name: value for name, value in given.items() if value is not UNSET}
            check_filled("name", changes.get("name", stored["name"]))
            external_id = stored["external_identifier"]
            if changes.pop("external_identifier", external_id) != external_id:
                raise invalid("external_identifier", f"is fixed: it is {external_id!r}")
            self._store.update("agents", agent_id, {**changes, "updated_at": stored_now()})
            return self._answer(agent_id)

        return self._calls.run(f"update_agent {agent_id}", body, body.idempotency_key, act)

    def retire(self, agent_id: str, body: ActBody) -> bytes:
        """POST agent/{id}/retire."""
        return self._move(agent_id, "retire", body)

    def reinstate(self, agent_id: str, body: ActBody) -> bytes:
        """POST agent/{id}/reinstate."""
        return self._move(agent_id, "reinstate", body)

    def delete(self, agent_id: str, body: ActBody) -> bytes:
        """DELETE agent/{id}, with its versions, deployments and tokens.

        Raises :class:`ApiError` (409) for an agent that has runs: what was recorded is not deleted
        with it. Retire such an agent.
        """

        def act() -> Answer:
            answer = self._answer(agent_id)
            if self._store.one("SELECT id FROM agent_instances WHERE agent_id = ?", agent_id):
                raise invalid_action(f"agent {agent_id!r} has runs: retire it, or keep it")
            for table in ("api_tokens", "agent_deployments", "agent_versions"):
                self._store.delete(table, {"agent_id": agent_id})
            self._store.delete("agents", {"id": agent_id})
            return answer

        return self._calls.run(f"delete_agent {agent_id}", body, body.idempotency_key, act)

    def get(self, agent_id: str) -> bytes:
        """GET agent/{id}."""
        return msgspec.json.encode(self._answer(agent_id))

    def show(self, query: Mapping[str, str]) -> bytes:
        """GET agent/show?agent_id=… or external_identifier=…"""
        names = [name for name in ("agent_id", "external_identifier") if name in query]
        if len(names) != 1:
            raise invalid("agent_id", "is required, or else external_identifier", "required")
        if names == ["agent_id"]:
            return self.get(query["agent_id"])
        row = self._named(query["external_identifier"])
        if row is None:
            raise not_found("agent", query["external_identifier"])
        return self.get(row["id"])

    def list(self, query: Mapping[str, str]) -> bytes:
        """GET agent."""
        where = {f"{name} = ?": query[name] for name in _FILTERS if name in query}
        page = page_of(self._store, "agents", where, query, self._details, ("id", "name"))
        return msgspec.json.encode(page)

    def _move(self, agent_id: str, action: str, body: ActBody) -> bytes:
        def act() -> Answer:
            retired = action == "retire"
            if bool(self._existing(agent_id)["retired"]) == retired:
                state = "retired already" if retired else "not retired"
                raise invalid_action(f"agent {agent_id!r} is {state}")
            changes = {"retired": retired, "updated_at": stored_now()}
            self._store.update("agents", agent_id, changes)
            return self._answer(agent_id)

        return self._calls.run(f"{action} {agent_id}", body, body.idempotency_key, act)

    def _add_given(self, agent_ids: Collection[str]) -> None:
        with self._store.transaction():
            for agent_id in agent_ids:
                self._add_unknown(agent_id)

    def _add_unknown(self, agent_id: str) -> None:
        if self._row(agent_id) is None:
            now = stored_now()
            row = {"id": agent_id, "name": agent_id, "inserted_at": now, "updated_at": now}
            self._store.insert("agents", row)

    def _row(self, agent_id: str) -> Row | None:
        return self._store.one("SELECT * FROM agents WHERE id = ?", agent_id)

    def _named(self, external_identifier: str) -> Row | None:
        query = "SELECT * FROM agents WHERE external_identifier = ?"
        return self._store.one(query, external_identifier)

    def _existing(self, agent_id: str) -> Row:
        row = self._row(agent_id)
        if row is None:
            raise not_found("agent", agent_id)
        return row

    def _answer(self, agent_id: str) -> Answer:
        return {"status": "success", "details": self._details(self._existing(agent_id))}

    def _details(self, row: Row) -> Answer:
        counts = dict.fromkeys(_STATUSES, 0)
        for count in self._store.all(
            "SELECT status, count(*) AS runs FROM agent_instances WHERE agent_id = ? "
            "GROUP BY status",
            row["id"],
        ):
            counts[count["status"]] = count["runs"]
        total = sum(counts.values())
        retired = bool(row["retired"])
        status = "retired" if retired else "active" if total else "pending"
        answer: Answer = {"type": "agent", "account_id": self._store.account_id, **dict(row)}
        del answer["retired"]
        return {
            **answer,
            "status": status,
            "available_actions": {
                "update": True,
                "retire": not retired,
                "reinstate": retired,
                "delete": not total,
            },
            "instance_counts": {
                "total": total,
                **counts,
                "finished": total - counts["pending"] - counts["active"],
            },
        }
