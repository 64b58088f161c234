"""The API tokens that a local Prefactor makes."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from support.cases import case
from support.local_api import NOON, REGISTRATION, Api, calling, invalid, item, refused

from prefactor_core.local import LocalPrefactor, open_local_prefactor
from prefactor_core.local.requests import stored_time

ANONYMOUS = {name: part for name, part in REGISTRATION.items() if name != "agent_id"}
OF_ACCOUNT = {"token_scope": "account"}


@asynccontextmanager
async def asking(app: LocalPrefactor, token: str) -> AsyncGenerator[Api]:
    # No header arrives with a space at its end.
    async with calling(app, Authorization=f"Bearer {token}".rstrip()) as api:
        yield api


async def made(api: Api, **details: object) -> tuple[str, Any]:
    """A new token, and its details."""
    answer = await api.post("api_token", {"details": details})
    assert answer.status_code == 200, answer.text
    return answer.json()["token"], answer.json()["details"]


async def test_a_token_is_shown_once_and_only_its_hash_is_stored(tmp_path: Path) -> None:
    path = tmp_path / "prefactor.db"
    async with open_local_prefactor(str(path), api_token="right") as app:
        async with asking(app, "right") as api:
            body = {"details": OF_ACCOUNT, "idempotency_key": "token-1"}
            first = (await api.post("api_token", body)).json()
            again = (await api.post("api_token", body)).json()
            token, details = first["token"], first["details"]
            assert again == {**first, "token": None}
            for answer in (
                (await api.get(f"api_token/{details['id']}")).json()["details"],
                *(await api.get("api_token")).json()["summaries"],
            ):
                assert answer == details
    assert (details["status"], details["last_used_at"]) == ("active", None)
    assert token.startswith("pflocal_")
    with closing(sqlite3.connect(path)) as file:
        content = "\n".join(file.iterdump())
    assert details["id"] in content
    assert token not in content
    assert token.removeprefix("pflocal_") not in content


@pytest.mark.parametrize("options", [{}, {"api_token": "right"}], ids=["open", "asking"])
async def test_a_token_has_the_scope_that_it_was_made_with(options: dict[str, Any]) -> None:
    async with open_local_prefactor(":memory:", **options) as app:
        async with asking(app, "right") as api:
            await api.register()
            of_account, _ = await made(api, **OF_ACCOUNT)
            scope = {"token_scope": "agent_deployment", "agent_id": "a1"}
            of_default, default = await made(api, **scope)
            of_staging, staging = await made(api, **scope, environment_id="staging")
            deployments = (await api.get("agent_deployment", agent_id="a1")).json()["summaries"]
            assert [each["id"] for each in deployments] == [
                default["agent_deployment_id"],
                staging["agent_deployment_id"],
            ]
        async with asking(app, of_account) as api:
            assert (await api.get("ping")).json()["details"] == {"token_type": "account"}
            await api.register(agent_id="a2")
            assert (await api.get("agent")).status_code == 200
            token_id = default["id"]
            assert (await api.get(f"api_token/{token_id}")).json()["details"] == default
        for token, details in ((of_default, default), (of_staging, staging)):
            async with asking(app, token) as api:
                pong = (await api.get("ping")).json()["details"]
                assert pong == {"token_type": "agent_deployment"}
                run = await api.done("agent_instance/register", ANONYMOUS)
                for name in ("agent_id", "environment_id", "agent_deployment_id"):
                    assert run[name] == details[name]
                refused(await api.get("agent"), 401, "unauthorized")
                refused(await api.post("api_token", {"details": OF_ACCOUNT}), 401, "unauthorized")
                items = [item("environments/list", "list-0001")]
                outputs = (await api.post("bulk", {"items": items})).json()["outputs"]
                assert outputs["list-0001"]["code"] == "unauthorized"


async def test_an_open_server_takes_any_other_token() -> None:
    async with open_local_prefactor(":memory:") as app:
        for token in ("", "anything", "pflocal_", "pflocal_of_another_server"):
            async with asking(app, token) as api:
                assert (await api.get("ping")).status_code == 200
    async with open_local_prefactor(":memory:", api_token="right") as app:
        for token in ("", "anything", "pflocal_", "pflocal_of_another_server"):
            async with asking(app, token) as api:
                refused(await api.get("ping"), 401, "bad_authtoken")


STATES = {
    "active": ["suspend", "revoke"],
    "suspended": ["activate", "revoke"],
    "revoked": [],
}
AFTER = {"suspend": "suspended", "activate": "active", "revoke": "revoked"}


@pytest.mark.parametrize("options", [{}, {"api_token": "right"}], ids=["open", "asking"])
async def test_only_an_active_token_is_taken(options: dict[str, Any]) -> None:
    async with open_local_prefactor(":memory:", **options) as app, asking(app, "right") as api:
        for before, allowed in STATES.items():
            for action, after in AFTER.items():
                with case(before, action):
                    token, details = await made(api, **OF_ACCOUNT)
                    path = f"api_token/{details['id']}"
                    for step in {"suspended": ["suspend"], "revoked": ["revoke"]}.get(before, []):
                        await api.done(f"{path}/{step}", {})
                    answer = await api.post(f"{path}/{action}", {})
                    if action in allowed:
                        assert answer.json()["details"]["status"] == after
                    else:
                        refused(answer, 409, "invalid_action")
                    status = (await api.get(path)).json()["details"]["status"]
                    assert status == (after if action in allowed else before)
                    async with asking(app, token) as other:
                        pong = await other.get("ping")
                    assert pong.status_code == (200 if status == "active" else 401)


async def test_a_token_ends_when_it_expires_or_is_deleted() -> None:
    async with open_local_prefactor(":memory:", api_token="right") as app:
        async with asking(app, "right") as api:
            later = stored_time(datetime.now(UTC) + timedelta(hours=1))
            expired, _ = await made(api, **OF_ACCOUNT, expires_at=NOON)
            deleted, gone = await made(api, **OF_ACCOUNT)
            valid, details = await made(api, **OF_ACCOUNT, expires_at=later)
            assert details["expires_at"] == later
            path = f"api_token/{gone['id']}"
            assert (await api.http.delete(path)).json()["details"] == gone
            refused(await api.get(path), 404, "not_found")
            invalid(
                await api.post("api_token", {"details": {**OF_ACCOUNT, "expires_at": "soon"}}),
                "expires_at",
            )
        for token in (expired, deleted):
            async with asking(app, token) as api:
                refused(await api.get("ping"), 401, "bad_authtoken")
        async with asking(app, valid) as api:
            assert (await api.get("ping")).status_code == 200


async def test_a_token_ends_with_its_deployment() -> None:
    async with open_local_prefactor(":memory:", api_token="right") as app:
        async with asking(app, "right") as api:
            await api.done("agent", {"details": {"name": "A"}})
            await api.register()
            token, details = await made(api, token_scope="agent_deployment", agent_id="a1")
            await api.http.delete(f"agent_deployment/{details['agent_deployment_id']}")
        async with asking(app, token) as api:
            refused(await api.get("ping"), 401, "bad_authtoken")


async def test_a_token_says_when_it_was_last_used() -> None:
    before = stored_time(datetime.now(UTC))
    async with open_local_prefactor(":memory:") as app, calling(app) as api:
        token, details = await made(api, **OF_ACCOUNT)
        async with asking(app, token) as other:
            for _ in range(2):
                await other.get("ping")
        used = (await api.get(f"api_token/{details['id']}")).json()["details"]["last_used_at"]
        assert before <= used <= stored_time(datetime.now(UTC))


async def test_what_cannot_be_a_token_is_refused() -> None:
    async with open_local_prefactor(":memory:") as app, calling(app) as api:
        deployment = {"token_scope": "agent_deployment"}
        invalid(await api.post("api_token", {"details": {}}), "token_scope", "required")
        invalid(await api.post("api_token", {"details": {"token_scope": "all"}}), "token_scope")
        invalid(await api.post("api_token", {"details": deployment}), "agent_id", "required")
        nobody = {**deployment, "agent_id": "nobody"}
        refused(await api.post("api_token", {"details": nobody}), 404, "not_found")
        elsewhere = {**OF_ACCOUNT, "account_id": "another"}
        refused(await api.post("api_token", {"details": elsewhere}), 404, "not_found")
        refused(await api.get("api_token", account_id="another"), 404, "not_found")


async def test_a_token_is_taken_from_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "prefactor.db"
    async with open_local_prefactor(str(path), api_token="right", lock_timeout=0.1) as app:
        async with asking(app, "right") as api:
            token, _ = await made(api, **OF_ACCOUNT)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            async with asking(app, token) as api:
                assert (await api.get("ping")).status_code == 200
