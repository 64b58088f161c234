"""Old runs, which are deleted after some days."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import msgspec
import pytest
from support.local_api import REGISTRATION, opened

from prefactor_core.local.requests import (
    CreateSpanBody,
    FinishInstanceBody,
    RegisterBody,
    SpanDetails,
    StartBody,
    TerminateBody,
)
from prefactor_core.local.retention import Retention, keep
from prefactor_core.local.service import Service
from prefactor_core.local.store import Store

LONG_AGO = "2020-01-01T00:00:00.000000Z"
DAYS = 30


@pytest.fixture
def store() -> Generator[Store]:
    with closing(Store(":memory:")) as store:
        yield store


def started(service: Service, version: str = "v1") -> str:
    parts = {name: {"external_identifier": version, "name": "An agent"} for name in VERSIONS}
    body = msgspec.convert({**REGISTRATION, **parts}, RegisterBody)
    run = str(msgspec.json.decode(service.register(body))["details"]["id"])
    service.start(run, StartBody())
    return run


VERSIONS = ["agent_version", "agent_schema_version"]


def add_span(service: Service, run: str, parent: str | None = None, key: str | None = None) -> str:
    details = SpanDetails(
        agent_instance_id=run,
        schema_name="agent:llm_call",
        status="active",
        payload={"token_usage": {"total_tokens": 2}},
        parent_span_id=parent,
    )
    answer = service.create_span(CreateSpanBody(details=details, idempotency_key=key))
    return str(msgspec.json.decode(answer)["details"]["id"])


def make_old(store: Store, run: str) -> None:
    with store.transaction():
        store.update("agent_instances", run, {"updated_at": LONG_AGO, "last_activity_at": LONG_AGO})


def ids(store: Store, table: str) -> set[str]:
    return {row["id"] for row in store.all(f"SELECT id FROM {table}")}


def delete_old(store: Store) -> int:
    """Delete all that is old; the number of steps."""
    retention = Retention(store, DAYS)
    steps = 0
    while retention.step():
        steps += 1
        assert steps < 1_000
    return steps


def test_an_old_run_goes_with_its_spans_and_its_versions(store: Store) -> None:
    service = Service(store)
    old, new = started(service, "old"), started(service, "new")
    parent = add_span(service, old)
    for _ in range(3):
        parent = add_span(service, old, parent)
    kept = add_span(service, new)
    for run in (old, new):
        service.finish_instance(run, FinishInstanceBody())
    make_old(store, old)
    delete_old(store)
    assert ids(store, "agent_instances") == {new}
    assert ids(store, "agent_spans") == {kept}
    assert len(ids(store, "agent_versions")) == len(VERSIONS)
    assert ids(store, "agents") == {"a1"}
    service.finish_instance(started(service, "old"), FinishInstanceBody(status="cancelled"))


def test_a_version_that_another_run_has_is_kept(store: Store) -> None:
    service = Service(store)
    old, other = started(service), started(service)
    service.finish_instance(old, FinishInstanceBody())
    make_old(store, old)
    delete_old(store)
    assert ids(store, "agent_instances") == {other}
    assert len(ids(store, "agent_versions")) == len(VERSIONS)


def test_a_run_that_goes_on_is_kept(store: Store) -> None:
    service = Service(store)
    pending_or_active, terminated = started(service), started(service)
    service.terminate(terminated, TerminateBody(reason="enough"))
    for run in (pending_or_active, terminated):
        make_old(store, run)
    add_span(service, terminated)  # its agent did not hear yet
    delete_old(store)
    assert ids(store, "agent_instances") == {pending_or_active, terminated}


def test_a_step_deletes_few_rows_and_the_totals_are_right_after_each(store: Store) -> None:
    service = Service(store)
    run = started(service)
    for _ in range(250):
        add_span(service, run)
    service.finish_instance(run, FinishInstanceBody())
    make_old(store, run)
    retention = Retention(store, DAYS)
    before = 250
    while retention.step():
        left = len(ids(store, "agent_spans"))
        assert 0 <= before - left <= 100
        before = left
        stored = store.one("SELECT * FROM agent_instances WHERE id = ?", run)
        if stored is not None:
            assert (stored["active_spans"], stored["llm_calls"], stored["tokens"]) == (
                left,
                left,
                2 * left,
            )
            query = {"agent_id": "a1", "pagination[offset]": str(max(0, left - 2))}
            page: dict[str, Any] = msgspec.json.decode(service.list_spans(query))
            assert page["pagination"]["item_count"] == left
            assert len(page["summaries"]) == min(2, left)
    assert ids(store, "agent_instances") == ids(store, "agent_spans") == set()


def test_old_keys_are_forgotten_without_a_new_one(store: Store) -> None:
    service = Service(store)
    run = started(service)
    for number in range(250):
        add_span(service, run, key=f"key-{number}")
    with store.transaction():
        store.one("UPDATE idempotency_keys SET used_at = used_at - 100000 WHERE key != 'key-249'")
    delete_old(store)
    assert [row["key"] for row in store.all("SELECT key FROM idempotency_keys")] == ["key-249"]


async def test_a_file_is_kept_small_beside_the_api(tmp_path: Path) -> None:
    path = str(tmp_path / "prefactor.db")
    with anyio.fail_after(60):
        async with opened(path) as api, anyio.create_task_group() as group:
            old, new = await api.start(), await api.start()
            await api.created(old)
            await api.done(f"agent_instance/{old}/finish", {})
            with closing(Store(path)) as store:
                make_old(store, old)
            group.start_soon(keep, path, DAYS)
            while (await api.get(f"agent_instance/{old}")).status_code != 404:
                await api.created(new)
            group.cancel_scope.cancel()


async def test_a_file_that_fails_is_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="prefactor_core.local")
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(keep, str(tmp_path), DAYS)
            while not caplog.messages:
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
    (message,) = caplog.messages
    assert message.startswith("old runs cannot be deleted: ")
