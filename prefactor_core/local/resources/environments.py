"""Environments: where agents run, such as production. Synchronous."""

from __future__ import annotations

from msgspec import UNSET, Struct, UnsetType

from prefactor_core.local.errors import check_filled, invalid_action
from prefactor_core.local.forms import Key, NewId, Text
from prefactor_core.local.pagination import Answer
from prefactor_core.local.requests import ActBody, stored_now
from prefactor_core.local.resources.resource import (
    Resource,
    check_account_id,
    given_of,
)


class NewEnvironment(Struct, kw_only=True):
    """``details`` of POST environment."""

    name: Text
    id: NewId | None = None
    account_id: str | None = None


class CreateEnvironmentBody(Struct, kw_only=True):
    """POST environment."""

    details: NewEnvironment
    idempotency_key: Key | None = None


class EnvironmentChanges(Struct, kw_only=True):
    """``details`` of PUT environment/{id}."""

    name: Text | UnsetType = UNSET


class UpdateEnvironmentBody(Struct, kw_only=True):
    """PUT environment/{id}."""

    details: EnvironmentChanges
    idempotency_key: Key | None = None


class Environments(Resource):
    """The environments. The id of the default one is that of the account.

    A run may also be registered in an environment that was not created: it is added then, with its
    id for its name.
    """

    type = "environment"
    table = "environments"
    sorted_by = ("id", "name")

    def create(self, body: CreateEnvironmentBody) -> bytes:
        """POST environment."""

        def act() -> Answer:
            details, now = body.details, stored_now()
            check_account_id(self._store, details.account_id)
            check_filled("name", details.name)
            id = self._new_id(details.id)
            times = {"inserted_at": now, "updated_at": now}
            self._store.insert("environments", {"id": id, "name": details.name, **times})
            return self._answer(id)

        return self._calls.run("create_environment", body, body.idempotency_key, act)

    def update(self, id: str, body: UpdateEnvironmentBody) -> bytes:
        """PUT environment/{id}."""

        def act() -> Answer:
            changes = {"name": self._row(id)["name"], **given_of(body.details)}
            check_filled("name", str(changes["name"]))
            self._store.update("environments", id, {**changes, "updated_at": stored_now()})
            return self._answer(id)

        return self._calls.run(f"update_environment {id}", body, body.idempotency_key, act)

    def delete(self, id: str, body: ActBody) -> bytes:
        """DELETE environment/{id}.

        Raises :class:`ApiError` (409) for the default one, and while it has deployments.
        """

        def act() -> Answer:
            self._row(id)
            if id == self._store.account_id:
                raise invalid_action("the default environment cannot be deleted")
            if self._store.one("SELECT id FROM agent_deployments WHERE environment_id = ?", id):
                raise invalid_action(f"environment {id!r} has deployments: delete them first")
            return self._delete(id)

        return self._calls.run(f"delete_environment {id}", body, body.idempotency_key, act)
