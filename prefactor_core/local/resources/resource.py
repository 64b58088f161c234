"""Resource: what all kinds of objects with a row each share. Synchronous."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import ClassVar

import msgspec
from msgspec import UNSET, Struct

from prefactor_core.local.errors import ApiError, not_found
from prefactor_core.local.faults import Faults
from prefactor_core.local.idempotency import IdempotentCalls
from prefactor_core.local.pagination import Answer, page_of
from prefactor_core.local.requests import check_id
from prefactor_core.local.store import Row, Store
from prefactor_core.operations import identifiers


class Resource:
    """The objects of one kind: ``type`` in their details, ``table`` in the file."""

    type: ClassVar[str]
    table: ClassVar[str]
    filters: ClassVar[Collection[str]] = ()
    """The columns that a list is filtered by."""
    sorted_by: ClassVar[Collection[str]] = ("id",)

    def __init__(self, store: Store, faults: Faults | None = None) -> None:
        self._store = store
        self._calls = IdempotentCalls(store, faults or Faults())

    def get(self, id: str) -> bytes:
        """GET {type}/{id}."""
        return msgspec.json.encode(self._answer(id))

    def list(self, query: Mapping[str, str]) -> bytes:
        """GET {type}."""
        check_account_id(self._store, query.get("account_id"))
        where = {f"{name} = ?": query[name] for name in self.filters if name in query}
        page = page_of(self._store, self.table, where, query, self._details, self.sorted_by)
        return msgspec.json.encode(page)

    def _details(self, row: Row) -> Answer:
        return {"type": self.type, "account_id": self._store.account_id, **dict(row)}

    def _row(self, id: str) -> Row:
        row = self._store.one(f"SELECT * FROM {self.table} WHERE id = ?", id)
        if row is None:
            raise not_found(self.type.replace("_", " "), id)
        return row

    def _answer(self, id: str) -> Answer:
        return {"status": "success", "details": self._details(self._row(id))}

    def _delete(self, id: str) -> Answer:
        """Delete a row; the answer shows it for the last time."""
        answer = self._answer(id)
        self._store.delete(self.table, {"id": id})
        return answer

    def _new_id(self, given: str | None) -> str:
        """The id of a new row: ``given`` by the caller, who may leave it out."""
        if given is None:
            return identifiers.generate_related(self._store.account_id)
        check_id(given, identifiers.partition_of(self._store.account_id))
        if self._store.one(f"SELECT id FROM {self.table} WHERE id = ?", given):
            raise ApiError(409, "already_exists", f"{self.type.replace('_', ' ')} {given!r} exists")
        return given


def given_of(details: Struct) -> Answer:
    """The fields of ``details`` that the request has; the others are UNSET."""
    fields = msgspec.structs.asdict(details)
    return {name: value for name, value in fields.items() if value is not UNSET}


def check_account_id(store: Store, account_id: str | None) -> None:
    """Raise :class:`ApiError` (404) for another account; None is the caller's own."""
    if account_id not in (None, store.account_id):
        raise not_found("account", str(account_id))
