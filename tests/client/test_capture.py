"""Capturing what a program records by clients of its own."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import anyio
import pytest
from support.harness import AGENT, make_config, open_faulty_api, stored_runs

from prefactor_core import (
    PrefactorCoreClient,
    PrefactorValueError,
    SchemaRegistry,
    open_prefactor,
    open_prefactor_sync,
)
from prefactor_core.testing import open_recording

OUTLINE = "complete\nagent:tool complete"


async def application(**options: Any) -> None:
    """A program that opens its own client."""
    options.setdefault("schema_registry", SchemaRegistry())
    async with open_prefactor(**options) as client:
        await record(client)


async def record(client: PrefactorCoreClient) -> None:
    async with client.agent_instance(**AGENT) as instance:
        async with instance.span("agent:tool"):
            pass


def synchronous_application() -> None:
    with open_prefactor_sync(schema_registry=SchemaRegistry()) as client:
        with client.agent_instance(**AGENT) as instance, instance.span("agent:tool"):
            pass


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"api_url": "https://prefactor.invalid"},
        {"api_url": "https://prefactor.invalid", "api_token": "secret"},
        {"config": make_config()},
    ],
    ids=["no address", "no token", "an address", "a configuration"],
)
async def test_a_client_records_in_the_capture_whatever_its_address(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFACTOR_API_URL", raising=False)
    monkeypatch.delenv("PREFACTOR_API_TOKEN", raising=False)
    with anyio.fail_after(10), open_recording() as recording:
        with recording.capture() as captured:
            await application(**options)
        assert captured is recording
        assert recording.run.outline == OUTLINE


async def test_a_client_that_was_made_before_is_captured_when_it_opens_in_the_block() -> None:
    client = open_prefactor(make_config())
    with anyio.fail_after(10), open_recording() as recording:
        with recording.capture():
            await client.initialize()
        await record(client)
        await client.close()
        assert recording.run.outline == OUTLINE


def test_clients_of_other_threads_are_captured() -> None:
    with open_recording() as recording:
        with recording.capture():
            threads = [threading.Thread(target=synchronous_application) for _ in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(20)
        assert [run.outline for run in recording.runs] == [OUTLINE] * 3


async def test_clients_outside_of_the_block_and_those_with_an_application_are_not_captured() -> (
    None
):
    with anyio.fail_after(10), open_recording() as recording, open_recording() as other:
        async with open_faulty_api() as api:
            async with open_prefactor(make_config(), asgi_app=api) as client:
                with recording.capture():
                    await record(client)
                    await application(config=make_config(), asgi_app=api)
                    async with other.open() as kit_client:
                        await record(kit_client)
            await application(config=make_config(), asgi_app=api)
            assert len(await stored_runs(api)) == 3
        assert (len(recording.runs), len(other.runs)) == (0, 1)
    with pytest.raises(PrefactorValueError, match="nothing says which Prefactor"):
        open_prefactor()


async def test_the_innermost_capture_counts() -> None:
    with anyio.fail_after(10), open_recording() as outer, open_recording() as inner:
        with outer.capture():
            with inner.capture():
                await application()
            await application()
        assert (len(outer.runs), len(inner.runs)) == (1, 1)


async def test_a_captured_client_leaves_the_journal_of_its_configuration_alone(
    tmp_path: Path,
) -> None:
    """It would deliver into the test what an agent in production has left there."""
    journal = str(tmp_path / "journal")
    with anyio.fail_after(10), open_recording() as recording:
        with recording.capture():
            await application(journal=journal)
            await application(config=make_config(journal=journal))
        assert [run.outline for run in recording.runs] == [OUTLINE] * 2
    assert not await anyio.Path(journal).exists()


async def test_a_disabled_client_records_nothing_in_a_capture() -> None:
    with anyio.fail_after(10), open_recording() as recording:
        with recording.capture():
            await application(enabled=False)
        assert recording.runs == []
