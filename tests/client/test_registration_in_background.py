"""create_agent_instance_nowait(): a run without a wait, in any thread."""

from __future__ import annotations

import logging

import anyio
import anyio.to_thread
import pytest
from support.harness import AGENT, make_config, open_faulty_api, stored_run, stored_runs

from prefactor_core import (
    AgentInstanceHandle,
    ClientNotInitializedError,
    PrefactorCoreClient,
    PrefactorValueError,
    open_prefactor,
)

TOOL = ("agent:tool", "complete", [])


def record(client: PrefactorCoreClient) -> AgentInstanceHandle:
    instance = client.create_agent_instance_nowait(**AGENT)
    instance.start_nowait()
    with instance.span("agent:tool"):
        pass
    instance.finish_nowait()
    return instance


async def test_a_run_is_registered_in_the_background() -> None:
    async with open_faulty_api() as api:
        async with open_prefactor(make_config(), asgi_app=api) as client:
            instance = record(client)
            assert api.calls == []
            provisional = instance.id
            await client.flush()
            assert instance.id != provisional
        run = await stored_run(api)
    assert (run.id, run.shape) == (instance.id, ("complete", [TOOL]))
    assert client.statistics().lost == 0


async def test_runs_are_registered_in_any_thread() -> None:
    async with open_faulty_api() as api:
        async with open_prefactor(make_config(), asgi_app=api) as client:
            with anyio.fail_after(10):
                async with anyio.create_task_group() as group:
                    for _ in range(10):
                        group.start_soon(anyio.to_thread.run_sync, record, client)
        assert [run.shape for run in await stored_runs(api)] == 10 * [("complete", [TOOL])]
    assert client.statistics().lost == 0


async def test_a_run_in_an_outage_is_registered_after_it() -> None:
    async with open_faulty_api() as api:
        api.away = True
        async with open_prefactor(make_config(), asgi_app=api) as client:
            record(client)
            api.away = False
        assert (await stored_run(api)).shape == ("complete", [TOOL])


async def test_a_refused_run_goes_on_unrecorded_and_that_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with open_faulty_api() as api:
        api.faults["register"] = 422
        async with open_prefactor(make_config(), asgi_app=api) as client:
            instance = record(client)
            await client.flush()
            assert not instance.recorded
    assert client.statistics().dropped["refused"] == 4
    assert any(record.levelno >= logging.WARNING for record in caplog.records)


async def test_a_disabled_client_gives_a_run_that_is_not_recorded() -> None:
    async with open_prefactor(make_config(enabled=False)) as client:
        assert record(client).ended


async def test_what_cannot_be_sent_is_refused_at_once() -> None:
    client = open_prefactor(make_config())
    with pytest.raises(ClientNotInitializedError):
        client.create_agent_instance_nowait(**AGENT)
    async with open_faulty_api() as api, open_prefactor(make_config(), asgi_app=api) as client:
        with pytest.raises(PrefactorValueError, match="agent_version is required"):
            client.create_agent_instance_nowait("a")
        with pytest.raises(PrefactorValueError, match="purpose must be one of"):
            client.create_agent_instance_nowait(**AGENT, purpose="fun")
        assert client.instance_manager.open_instances() == []
