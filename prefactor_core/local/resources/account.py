"""Account: the one account of a file. Synchronous."""

from __future__ import annotations

from datetime import UTC, datetime

from msgspec import Struct

from prefactor_core.local.errors import check_filled
from prefactor_core.local.forms import Key, Text
from prefactor_core.local.pagination import Answer
from prefactor_core.local.requests import stored_now, stored_time
from prefactor_core.local.resources.resource import Resource
from prefactor_core.local.store import Row
from prefactor_core.operations import identifiers


class AccountChanges(Struct, kw_only=True):
    """``details`` of PUT account/{id}; None leaves the name as it is."""

    name: Text | None = None


class UpdateAccountBody(Struct, kw_only=True):
    """PUT account/{id}."""

    details: AccountChanges
    idempotency_key: Key | None = None


class Account(Resource):
    """The account: a list of one."""

    type = "account"
    table = "account"

    def update(self, id: str, body: UpdateAccountBody) -> bytes:
        """PUT account/{id}."""

        def act() -> Answer:
            name = self._row(id)["name"] if body.details.name is None else body.details.name
            check_filled("name", name)
            self._store.update("account", id, {"name": name, "updated_at": stored_now()})
            return self._answer(id)

        return self._calls.run(f"update_account {id}", body, body.idempotency_key, act)

    def _details(self, row: Row) -> Answer:
        milliseconds = identifiers.milliseconds_of(row["id"])
        created = stored_time(datetime.fromtimestamp(milliseconds / 1000, UTC))
        return {
            "type": "account",
            "id": row["id"],
            "name": row["name"],
            "status": "active",
            "inserted_at": created,
            "updated_at": row["updated_at"] or created,
        }
