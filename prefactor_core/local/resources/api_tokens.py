"""ApiTokens: tokens that this server makes. Synchronous."""

from __future__ import annotations

import hashlib
import secrets
import sqlite3
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from prefactor_core.exceptions import in_message
from prefactor_core.local.errors import ApiError, invalid, invalid_action, not_found
from prefactor_core.local.faults import Faults
from prefactor_core.local.forms import Key, Time
from prefactor_core.local.pagination import Answer
from prefactor_core.local.requests import ActBody, parse_time, stored_now, stored_time
from prefactor_core.local.resources.deployments import Deployments
from prefactor_core.local.resources.resource import Resource, check_account_id
from prefactor_core.local.store import Row, Store
from prefactor_core.local.tokens import TOKEN_PREFIX, Deployment

_SCOPES: Final = ("account", "agent_deployment")

# The states that each call leads from, and to.
_MOVES: Final = {
    "suspend": (("active",), "suspended"),
    "activate": (("suspended",), "active"),
    "revoke": (("active", "suspended"), "revoked"),
}

_NOTE_EVERY: Final = timedelta(minutes=1)
"""last_used_at is exact to this time, so that not every request writes."""


class NewToken(Struct, kw_only=True):
    """``details`` of POST api_token; without ``expires_at`` it does not expire."""

    token_scope: Annotated[str, Meta(extra_json_schema={"enum": list(_SCOPES)})]
    account_id: str | None = None
    agent_id: str | None = None
    environment_id: str | None = None
    expires_at: Time | None = None


class CreateTokenBody(Struct, kw_only=True):
    """POST api_token."""

    details: NewToken
    idempotency_key: Key | None = None


class ApiTokens(Resource):
    """The tokens. The file has the hash of each, never the token."""

    type = "api_token"
    table = "api_tokens"

    def __init__(self, store: Store, faults: Faults | None = None) -> None:
        super().__init__(store, faults)
        self._deployments = Deployments(store)

    def create(self, body: CreateTokenBody) -> bytes:
        """POST api_token. The answer has the token beside ``details``, this once: it is null when
        the same idempotency key is answered again."""
        secret: str | None = None

        def act() -> Answer:
            nonlocal secret
            row = self._new_row(body.details)
            secret = TOKEN_PREFIX + secrets.token_urlsafe(32)
            self._store.insert("api_tokens", {**row, "token_hash": _hash(secret)})
            return self._answer(str(row["id"]))

        # This answer is stored with the idempotency key, so it does not have the token.
        answer = self._calls.run("create_token", body, body.idempotency_key, act)
        return msgspec.json.encode({**msgspec.json.decode(answer, type=Answer), "token": secret})

    def suspend(self, id: str, body: ActBody) -> bytes:
        """POST api_token/{id}/suspend."""
        return self._move(id, "suspend", body)

    def activate(self, id: str, body: ActBody) -> bytes:
        """POST api_token/{id}/activate."""
        return self._move(id, "activate", body)

    def revoke(self, id: str, body: ActBody) -> bytes:
        """POST api_token/{id}/revoke, which cannot be undone."""
        return self._move(id, "revoke", body)

    def delete(self, id: str, body: ActBody) -> bytes:
        """DELETE api_token/{id}."""
        act = lambda: self._delete(id)  # noqa: E731
        return self._calls.run(f"delete_token {id}", body, body.idempotency_key, act)

    def caller(self, token: str) -> Deployment | UnsetType | None:
        """Who calls with ``token``: a deployment, the account (None), or UNSET if it is unknown.

        Raises :class:`ApiError` (401) for a token that is known, but not in use.
        """
        row = self._store.one("SELECT * FROM api_tokens WHERE token_hash = ?", _hash(token))
        if row is None:
            return UNSET
        now = datetime.now(UTC)
        if row["status"] != "active":
            raise ApiError(401, "bad_authtoken", f"the token is {row['status']}")
        if (row["expires_at"] or "9") <= stored_time(now):
            raise ApiError(401, "bad_authtoken", "the token has expired")
        if (row["last_used_at"] or "") < stored_time(now - _NOTE_EVERY):
            # A file that cannot be written, or is locked, can be read.
            with suppress(sqlite3.OperationalError), self._store.transaction():
                self._store.update("api_tokens", row["id"], {"last_used_at": stored_time(now)})
        if row["token_scope"] == "account":
            return None
        return Deployment(agent_id=row["agent_id"], environment_id=row["environment_id"])

    def _new_row(self, details: NewToken) -> Answer:
        now, agent_id = stored_now(), details.agent_id
        check_account_id(self._store, details.account_id)
        environment_id = deployment_id = None
        if details.token_scope not in _SCOPES:
            given = in_message(details.token_scope)
            raise invalid("token_scope", f"must be {' or '.join(_SCOPES)}, got {given}")
        if details.token_scope == "agent_deployment":
            if not agent_id:
                raise invalid("agent_id", "is required", "required")
            if self._store.one("SELECT id FROM agents WHERE id = ?", agent_id) is None:
                raise not_found("agent", agent_id)
            environment_id = details.environment_id or self._store.account_id
            deployment_id = self._deployments.use(agent_id, environment_id)
        return {
            "id": self._new_id(None),
            "token_scope": details.token_scope,
            "agent_id": None if deployment_id is None else agent_id,
            "environment_id": environment_id,
            "agent_deployment_id": deployment_id,
            "status": "active",
            "expires_at": parse_time("expires_at", details.expires_at, "") or None,
            "inserted_at": now,
            "updated_at": now,
        }

    def _move(self, id: str, action: str, body: ActBody) -> bytes:
        def act() -> Answer:
            before, after = _MOVES[action]
            status = self._row(id)["status"]
            if status not in before:
                raise invalid_action(f"a token that is {status} cannot become {after}")
            changes = {"status": after, "updated_at": stored_now()}
            self._store.update("api_tokens", id, changes)
            return self._answer(id)

        return self._calls.run(f"{action}_token {id}", body, body.idempotency_key, act)

    def _details(self, row: Row) -> Answer:
        details = super()._details(row)
        del details["token_hash"]
        return details


def _hash(token: str) -> str:
    # 256 random bits: neither salt nor a slow hash makes them harder to guess.
    return hashlib.sha256(token.encode()).hexdigest()
