"""Delivery: order, retries, refusals and the balance, on virtual time against a strict API."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from itertools import pairwise

import anyio
import pytest
from harness import AGENT, FaultyApi, make_config, open_faulty_api, stored_run, stored_runs

from prefactor_core import PrefactorCoreClient, open_prefactor

pytestmark = pytest.mark.virtual_time

RUN = ["register", "start", "agent_spans", "finish", "finish"]


@pytest.fixture
async def api() -> AsyncGenerator[FaultyApi]:
    async with open_faulty_api() as api:
        yield api


async def record_one_run(client: PrefactorCoreClient) -> None:
    async with client.agent_instance(**AGENT) as instance, instance.span("agent:run"):
        pass


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.WARNING and record.name.startswith("prefactor_core")
    ]


async def test_everything_arrives_in_order_and_is_counted(api: FaultyApi) -> None:
    async with open_prefactor(make_config(), asgi_app=api) as client:
        await record_one_run(client)
    assert api.names() == RUN
    statistics = client.statistics()
    assert (statistics.accepted, statistics.delivered, statistics.requests) == (4, 4, 4)
    assert (statistics.pending, statistics.lost, statistics.retries) == (0, 0, 0)
    assert statistics.last_error is None


@pytest.mark.parametrize(
    "fault",
    [ConnectionResetError(), (503, {}, b"<html>busy</html>"), 500, 502, 504, 429, 408],
    ids=str,
)
async def test_what_passes_is_tried_again_in_order_with_the_same_keys(
    api: FaultyApi, fault: object
) -> None:
    config = make_config(drain_timeout=60, http={"retry_on_status_codes": (408,)})
    async with open_prefactor(config, asgi_app=api) as client:
        api.faults = {"agent_spans": [fault, fault], "start": [fault]}
        await record_one_run(client)
    assert api.names() == RUN
    statistics = client.statistics()
    assert (statistics.delivered, statistics.retries, statistics.requests) == (4, 3, 7)
    creates = [call.body["idempotency_key"] for call in api.calls if call.name == "agent_spans"]
    assert len(set(creates)) == 1


@pytest.mark.parametrize("lost", [1, 2, 3])
async def test_an_answer_that_is_lost_leads_to_one_effect(api: FaultyApi, lost: int) -> None:
    async with open_prefactor(make_config(drain_timeout=60), asgi_app=api) as client:
        async with client.agent_instance(**AGENT) as instance:
            api.lost_answers = lost
            async with instance.span("agent:run"):
                pass
    assert (await stored_run(api)).shape == ("complete", [("agent:run", "complete", [])])
    assert client.statistics().lost == 0


async def test_the_waits_grow_from_retry_delay_base(api: FaultyApi) -> None:
    config = make_config(drain_timeout=600, queue={"retry_delay_base": 0.2})
    async with open_prefactor(config, asgi_app=api) as client:
        api.faults["start"] = [ConnectionRefusedError()] * 5
        await record_one_run(client)
    times = [call.time for call in api.calls if call.name == "start"]
    for n, (before, after) in enumerate(pairwise(times)):
        assert 0.75 * 0.2 * 2**n <= after - before <= 1.25 * 0.2 * 2**n


async def test_the_wait_that_the_api_asks_for_is_kept(api: FaultyApi) -> None:
    async with open_prefactor(make_config(drain_timeout=60), asgi_app=api) as client:
        body = b'{"status":"error","code":"rate_limited","message":"slow","retry_after_ms":20000}'
        api.faults["start"] = [(429, {}, body), (503, {"Retry-After": "9"}, None)]
        await record_one_run(client)
    times = [call.time for call in api.calls if call.name == "start"]
    assert [after - before for before, after in pairwise(times)] == [20, 9]


@pytest.mark.parametrize("max_retries", [0, 3])
async def test_an_outage_costs_nothing_however_long_it_is(
    api: FaultyApi, caplog: pytest.LogCaptureFixture, max_retries: int
) -> None:
    caplog.set_level(logging.INFO, "prefactor_core")
    config = make_config(queue={"max_retries": max_retries}, drain_timeout=120)
    async with open_prefactor(config, asgi_app=api) as client:
        async with client.agent_instance(**AGENT) as instance:
            api.away = True
            for _ in range(20):
                async with instance.span("agent:run"):
                    await anyio.sleep(60)
            assert client.statistics().pending > 30
            api.away = False
    assert client.statistics().lost == 0
    assert (await stored_run(api)).shape == ("complete", [("agent:run", "complete", [])] * 20)
    messages = [
        r.getMessage() for r in caplog.records if r.name == "prefactor_core.delivery.sender"
    ]
    assert len(messages) == 2
    assert "does not take operations" in messages[0]
    assert "takes operations again" in messages[1]


async def test_an_outage_of_5xx_is_an_outage_too(
    api: FaultyApi, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_prefactor(make_config(drain_timeout=120), asgi_app=api) as client:
        async with client.agent_instance(**AGENT) as instance:
            api.faults["*"] = 500
            async with instance.span("agent:run") as span:
                await span.start()
                await anyio.sleep(3600)
            api.faults.clear()
    assert client.statistics().lost == 0
    assert (await stored_run(api)).status == "complete"
    assert len(warnings(caplog)) == 1


async def test_an_operation_that_the_api_fails_at_is_given_up_alone(
    api: FaultyApi, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_prefactor(make_config(drain_timeout=600), asgi_app=api) as client:
        async with client.agent_instance(**AGENT) as instance:
            api.faults["agent_spans"] = [500] * 4
            async with instance.span("agent:llm"):
                pass
            async with instance.span("agent:tool"):
                pass
    # The start is given up after one attempt and three retries; its finish is then refused.
    assert client.statistics().dropped == {"retries_exhausted": 1, "refused": 1}
    assert [call.name for call in api.calls].count("ping") == 1
    assert (await stored_run(api)).shape == ("complete", [("agent:tool", "complete", [])])
    given_up, balance = warnings(caplog)
    assert "CREATE_SPAN is given up (retries_exhausted)" in given_up
    assert "2 of 6 Prefactor operations were not delivered" in balance
    assert "(1 retries_exhausted, 1 refused)" in balance


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 418, 422])
async def test_what_the_api_refuses_is_given_up_at_once_and_alone(
    api: FaultyApi, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    async with open_prefactor(make_config(), asgi_app=api) as client:
        async with client.agent_instance(**AGENT) as instance:
            api.faults["agent_spans"] = [status]
            async with instance.span("agent:llm"):
                pass
            async with instance.span("agent:tool"):
                pass
    statistics = client.statistics()
    assert statistics.dropped == {"refused": 2}  # the start, and so the finish
    assert statistics.retries == 0
    assert (await stored_run(api)).shape == ("complete", [("agent:tool", "complete", [])])
    assert len(warnings(caplog)) == 2


async def test_a_finish_of_what_has_ended_already_is_settled(
    api: FaultyApi, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_prefactor(make_config(), asgi_app=api) as client:
        api.faults["finish"] = 409
        await record_one_run(client)
    assert client.statistics().delivered == 4
    assert warnings(caplog) == []


async def test_an_answer_in_another_form_is_tried_again_and_then_given_up(api: FaultyApi) -> None:
    async with open_prefactor(make_config(drain_timeout=600), asgi_app=api) as client:
        api.faults["start"] = [(200, {}, b"<html>Welcome to the hotel network</html>")] * 4
        await record_one_run(client)
    assert client.statistics().dropped["retries_exhausted"] == 1
    assert [call.name for call in api.calls].count("start") == 4


async def test_runs_do_not_wait_for_each_other(api: FaultyApi) -> None:
    config = make_config(queue={"num_workers": 20}, drain_timeout=600)
    async with open_prefactor(config, asgi_app=api) as client:
        api.faults["start"] = [ConnectionResetError()] + [None] * 100
        for _ in range(10):
            await record_one_run(client)
        await anyio.sleep(0.5)
        assert client.statistics().delivered >= 20
    assert [run.status for run in await stored_runs(api)] == ["complete"] * 10


async def test_every_run_arrives_in_its_order_from_many_tasks(api: FaultyApi) -> None:
    async def agent(client: PrefactorCoreClient) -> None:
        async with client.agent_instance(**AGENT) as instance:
            for _ in range(5):
                async with instance.span("agent:run"):
                    await anyio.sleep(0.01)
                    async with instance.span("agent:tool"):
                        await anyio.sleep(0.01)

    api.faults["*"] = [None, None, 503] * 100
    async with open_prefactor(make_config(drain_timeout=3600), asgi_app=api) as client:
        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(agent, client)
    assert client.statistics().lost == 0
    step = ("agent:run", "complete", [("agent:tool", "complete", [])])
    assert [run.shape for run in await stored_runs(api)] == [("complete", [step] * 5)] * 8
