"""Deployments: an agent in an environment, with its current version. Synchronous."""

from __future__ import annotations

from msgspec import UNSET, Struct, UnsetType

from prefactor_core.local.errors import ApiError, invalid, not_found
from prefactor_core.local.forms import Key, NewId
from prefactor_core.local.pagination import Answer
from prefactor_core.local.requests import ActBody, stored_now
from prefactor_core.local.resources.resource import Resource, given_of
from prefactor_core.local.store import Row


class NewDeployment(Struct, kw_only=True):
    """``details`` of POST agent_deployment."""

    agent_id: str
    environment_id: str
    id: NewId | None = None
    current_version_id: str | None = None


class CreateDeploymentBody(Struct, kw_only=True):
    """POST agent_deployment."""

    details: NewDeployment
    idempotency_key: Key | None = None


class DeploymentChanges(Struct, kw_only=True):
    """``details`` of PUT agent_deployment/{id}; None takes the current version away."""

    current_version_id: str | UnsetType | None = UNSET


class UpdateDeploymentBody(Struct, kw_only=True):
    """PUT agent_deployment/{id}."""

    details: DeploymentChanges
    idempotency_key: Key | None = None


class Deployments(Resource):
    """The deployments: at most one of an agent in an environment."""

    type = "agent_deployment"
    table = "agent_deployments"
    filters = ("agent_id", "environment_id")

    def use(self, agent_id: str, environment_id: str, version_id: str | None = None) -> str:
        """The id of the deployment of an agent in an environment; both are added if missing.

        ``version_id`` becomes the current version; None leaves it as it is. Call it in the
        transaction that needs the deployment.
        """
        found = self._find(agent_id, environment_id)
        now = stored_now()
        if found is None:
            if not self._environment_exists(environment_id):
                row = {"id": environment_id, "name": environment_id}
                self._store.insert("environments", {**row, "inserted_at": now, "updated_at": now})
            return self._add(None, agent_id, environment_id, version_id)
        if version_id not in (None, found["current_version_id"]):
            changes = {"current_version_id": version_id, "updated_at": now}
            self._store.update("agent_deployments", found["id"], changes)
        return str(found["id"])

    def create(self, body: CreateDeploymentBody) -> bytes:
        """POST agent_deployment. Raises :class:`ApiError` (409) if the agent is deployed there."""

        def act() -> Answer:
            details = body.details
            agent_id, environment_id = details.agent_id, details.environment_id
            if self._store.one("SELECT id FROM agents WHERE id = ?", agent_id) is None:
                raise not_found("agent", agent_id)
            if not self._environment_exists(environment_id):
                raise not_found("environment", environment_id)
            if self._find(agent_id, environment_id):
                message = f"agent {agent_id!r} is deployed in environment {environment_id!r}"
                raise ApiError(409, "already_exists", message)
            self._check_version(agent_id, details.current_version_id)
            version_id = details.current_version_id
            return self._answer(self._add(details.id, agent_id, environment_id, version_id))

        return self._calls.run("create_deployment", body, body.idempotency_key, act)

    def update(self, id: str, body: UpdateDeploymentBody) -> bytes:
        """PUT agent_deployment/{id}."""

        def act() -> Answer:
            row, changes = self._row(id), given_of(body.details)
            self._check_version(row["agent_id"], changes.get("current_version_id"))
            self._store.update("agent_deployments", id, {**changes, "updated_at": stored_now()})
            return self._answer(id)

        return self._calls.run(f"update_deployment {id}", body, body.idempotency_key, act)

    def delete(self, id: str, body: ActBody) -> bytes:
        """DELETE agent_deployment/{id}, and its tokens. Its runs stay, and keep its id."""

        def act() -> Answer:
            answer = self._delete(id)
            self._store.delete("api_tokens", {"agent_deployment_id": id})
            return answer

        return self._calls.run(f"delete_deployment {id}", body, body.idempotency_key, act)

    def _find(self, agent_id: str, environment_id: str) -> Row | None:
        return self._store.one(
            "SELECT * FROM agent_deployments WHERE agent_id = ? AND environment_id = ?",
            agent_id,
            environment_id,
        )

    def _add(
        self, given_id: str | None, agent_id: str, environment_id: str, version_id: str | None
    ) -> str:
        id, now = self._new_id(given_id), stored_now()
        row = {
            "id": id,
            "agent_id": agent_id,
            "environment_id": environment_id,
            "current_version_id": version_id,
            "inserted_at": now,
            "updated_at": now,
        }
        self._store.insert("agent_deployments", row)
        return id

    def _environment_exists(self, id: str) -> bool:
        return self._store.one("SELECT id FROM environments WHERE id = ?", id) is not None

    def _check_version(self, agent_id: str, version_id: object) -> None:
        if version_id is not None and not self._store.one(
            "SELECT id FROM agent_versions WHERE id = ? AND agent_id = ? AND kind = ?",
            version_id,
            agent_id,
            "agent_version",
        ):
            raise invalid("current_version_id", f"{version_id!r} is no version of this agent")
