"""When the agent of a terminated run heard of it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import anyio
import httpx
import pytest
from support.local_api import Api, opened

from prefactor_core.local.store import Store

AGENT = {"X-Prefactor-SDK": "prefactor-core@1"}


def heard_at(store: Store, run: str) -> str | None:
    (row,) = store.all("SELECT heard_at FROM agent_instances WHERE id = ?", run)
    return None if row["heard_at"] is None else str(row["heard_at"])


async def ask(api: Api, run: str, headers: dict[str, str]) -> httpx.Response:
    return await api.http.get(f"agent_instance/{run}", headers=headers)


async def test_an_agent_hears_by_the_answer_to_a_span(api: Api, store: Store) -> None:
    run = await api.start()
    await api.created(run)
    assert heard_at(store, run) is None
    await api.terminate(run, "enough")
    assert heard_at(store, run) is None
    await api.created(run)
    first = heard_at(store, run)
    assert first is not None
    await api.created(run)
    assert heard_at(store, run) == first


async def test_an_agent_hears_when_it_asks_and_a_browser_does_not(api: Api, store: Store) -> None:
    run = await api.start()
    await ask(api, run, AGENT)  # not terminated yet
    await api.terminate(run, "enough")
    await ask(api, run, {})
    assert heard_at(store, run) is None
    answer = await ask(api, run, AGENT)
    assert answer.json()["details"]["status"] == "terminated"
    first = heard_at(store, run)
    assert first is not None
    await ask(api, run, AGENT)
    assert heard_at(store, run) == first


@pytest.mark.parametrize("headers", [{}, AGENT], ids=["browser", "agent"])
async def test_asking_does_not_wait_for_a_lock(tmp_path: Path, headers: dict[str, str]) -> None:
    path = str(tmp_path / "prefactor.db")
    with anyio.fail_after(60):
        async with opened(path, lock_timeout=1e6) as api:
            run = await api.start()
            await api.terminate(run, "enough")
            with closing(sqlite3.connect(path, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                assert (await ask(api, run, headers)).status_code == 200
            with closing(Store(path)) as store:
                assert heard_at(store, run) is None
            await ask(api, run, AGENT)
            with closing(Store(path)) as store:
                assert heard_at(store, run) is not None
