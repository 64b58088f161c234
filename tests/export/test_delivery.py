"""Delivery: order, retries, refusals and the balance, on virtual time against a strict API."""

from __future__ import annotations

import gc
import logging
from collections.abc import AsyncGenerator
from itertools import pairwise
from typing import Any

import anyio
import msgspec
import pytest
from support.harness import (
    AGENT,
    Call,
    FaultyApi,
    make_config,
    on_create_of,
    open_faulty_api,
    stored_run,
    stored_runs,
)

from prefactor_core import (
    PrefactorCoreClient,
    open_prefactor,
)
from prefactor_core.export.identity import RunIdentity
from prefactor_core.local import Faults, open_local_prefactor

pytestmark = pytest.mark.virtual_time

RUN = ["register", "start", "agent_spans", "finish"]
ONE_BY_ONE = {"max_batch_operations": 1}
HOTEL = (200, {}, b"<html>Welcome to the hotel network</html>")


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


@pytest.mark.parametrize(("size", "requests"), [(1, 3), (2, 2), (1000, 1)])
async def test_everything_arrives_in_order_and_is_counted(
    api: FaultyApi, size: int, requests: int
) -> None:
    config = make_config(queue={"max_batch_operations": size})
    async with open_prefactor(config, asgi_app=api) as client:
        await record_one_run(client)
    assert api.names() == RUN
    statistics = client.statistics()
    assert (statistics.accepted, statistics.delivered) == (4, 4)
    assert statistics.requests == len(api.calls) == 1 + requests
    assert (statistics.pending, statistics.lost, statistics.retries) == (0, 0, 0)
    assert statistics.last_error is None


async def test_what_is_recorded_within_the_batch_window_travels_in_one_request(
    api: FaultyApi,
) -> None:
    async with open_prefactor(make_config(), asgi_app=api) as client:
        async with client.agent_instance(**AGENT) as instance:
            began = anyio.current_time()
            for _ in range(5):
                async with instance.span("agent:tool"):
                    await anyio.sleep(0.01)
            await anyio.sleep(10)
            async with instance.span("agent:llm"):
                pass
            await anyio.sleep(10)
    sent = [([item.name for item in call.items], call.time - began) for call in api.calls[1:-1]]
    assert sent == [
        (["start"] + ["agent_spans"] * 5, pytest.approx(0.1)),
        ([], pytest.approx(10.15)),  # one operation alone goes by its own endpoint
    ]
    assert api.calls[2].name == "agent_spans"
    assert api.calls[-1].path.endswith(f"agent_instance/{instance.id}/finish")


@pytest.mark.parametrize(
    "fault",
    [ConnectionResetError(), (503, {}, b"<html>busy</html>"), 500, 502, 504, 429, 408],
    ids=str,
)
async def test_what_passes_is_tried_again_in_order_with_the_same_keys(
    api: FaultyApi, fault: object
) -> None:
    http: dict[str, object] = {"retry_on_status_codes": (408,)}
    config = make_config(drain_timeout=60, http=http, queue=ONE_BY_ONE)
    async with open_prefactor(config, asgi_app=api) as client:
        api.faults = {"agent_spans": [fault, fault], "start": [fault]}
        await record_one_run(client)
    assert list(dict.fromkeys(api.names())) == RUN
    statistics = client.statistics()
    assert (statistics.delivered, statistics.retries) == (4, 3)
    assert statistics.requests == len(api.calls)
    creates = [call.body for call in api.calls if call.name == "agent_spans"]
    assert creates == creates[:1] * len(creates)
    assert len(creates) >= 3


@pytest.mark.parametrize("where", ["bulk", "start", "agent_spans"])
@pytest.mark.parametrize("fault", [ConnectionResetError(), 503, 429], ids=str)
async def test_a_bulk_request_that_fails_is_sent_again_as_it_was(
    api: FaultyApi, fault: object, where: str
) -> None:
    async with open_prefactor(make_config(drain_timeout=60), asgi_app=api) as client:
        api.faults = {where: [fault]}
        await record_one_run(client)
    assert api.names() == RUN
    statistics = client.statistics()
    assert (statistics.delivered, statistics.retries) == (4, 1)
    requests = [call.body for call in api.calls if call.name == "bulk"]
    assert requests == requests[:1] * 2


@pytest.mark.parametrize("fault", [ConnectionResetError(), 503, 429], ids=str)
async def test_after_failures_in_a_row_one_operation_shows_whether_the_api_is_back(
    api: FaultyApi, fault: object
) -> None:
    async with open_prefactor(make_config(drain_timeout=60), asgi_app=api) as client:
        async with client.agent_instance(**AGENT) as instance:
            await client.flush()
            api.faults["*"] = fault
            for _ in range(5):
                with instance.span("agent:tool"):
                    pass
            await anyio.sleep(30)
            api.faults.clear()
            await client.flush()
            sizes = [len(call.items) or 1 for call in api.calls[2:]]
            # The batch and once more as it was; one operation at a time; then all the rest.
            assert sizes == [5, 5, *[1] * (len(sizes) - 3), 4]
            assert 5 < len(sizes) < 20
    assert client.statistics().lost == 0


@pytest.mark.parametrize("size", [1, 1000])
@pytest.mark.parametrize("lost", [1, 2, 3])
async def test_an_answer_that_is_lost_leads_to_one_effect(
    api: FaultyApi, lost: int, size: int
) -> None:
    config = make_config(drain_timeout=60, queue={"max_batch_operations": size})
    async with open_prefactor(config, asgi_app=api) as client:
        async with client.agent_instance(**AGENT) as instance:
            api.lost_answers = lost
            async with instance.span("agent:run"):
                pass
    assert (await stored_run(api)).shape == ("complete", [("agent:run", "complete", [])])
    assert client.statistics().lost == 0


def check_waits(times: list[float], first: float, factor: float) -> None:
    """A tenth of retry_delay_base passes before the second attempt, and then longer and longer."""
    assert len(times) > 5
    for n, (before, after) in enumerate(pairwise(times[1:6]), start=1):
        # The worker that has just asked lets the others go first.
        assert 0.75 * first * factor**n <= after - before <= 1.25 * 1.06 * first * factor**n


async def test_the_waits_grow_from_retry_delay_base(api: FaultyApi) -> None:
    config = make_config(drain_timeout=600, queue={"retry_delay_base": 0.2, **ONE_BY_ONE})
    async with open_prefactor(config, asgi_app=api) as client:
        instance = await client.create_agent_instance(**AGENT)
        api.away = True
        await instance.start()
        await anyio.sleep(8)
        api.away = False
        await instance.finish()
    check_waits([call.time for call in api.calls if call.name == "start"], 0.02, 2)


async def test_the_waits_grow_by_retry_multiplier(api: FaultyApi) -> None:
    http: dict[str, object] = {"retry_multiplier": 4.0}
    queue = {"retry_delay_base": 0.2, **ONE_BY_ONE}
    async with open_prefactor(make_config(http=http, queue=queue), asgi_app=api) as client:
        instance = await client.create_agent_instance(**AGENT)
        api.away = True
        await instance.start()
        await anyio.sleep(60)
        api.away = False
    check_waits([call.time for call in api.calls if call.name == "start"], 0.02, 4)


async def test_many_refusals_are_one_warning_and_the_balance(
    api: FaultyApi, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_prefactor(make_config(), asgi_app=api) as client:
        api.faults["agent_spans"] = 422
        for _ in range(3):
            await record_one_run(client)
    given_up, balance = warnings(caplog)
    assert "operations are dropped (refused): CREATE_SPAN of the 'agent:run' span" in given_up
    assert "3 of 12 Prefactor operations were not delivered (3 refused)" in balance


async def test_in_the_drain_no_time_is_spent_on_waits_of_our_own(api: FaultyApi) -> None:
    async with open_prefactor(make_config(drain_timeout=1), asgi_app=api) as client:
        async with client.agent_instance(**AGENT) as instance, instance.span("agent:run"):
            api.away = True
            await anyio.sleep(3600)  # long after the waits have grown to a minute
            api.away = False
        before = anyio.current_time()
    assert anyio.current_time() == before
    assert client.statistics().lost == 0


async def test_the_wait_that_the_api_asks_for_is_kept(api: FaultyApi) -> None:
    config = make_config(drain_timeout=60, queue=ONE_BY_ONE)
    async with open_prefactor(config, asgi_app=api) as client:
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
    config = make_config(queue={"max_retries": max_retries, "report_after": 1}, drain_timeout=120)
    async with open_prefactor(config, asgi_app=api) as client:
        async with client.agent_instance(**AGENT) as instance:
            api.away = True
            for _ in range(20):
                async with instance.span("agent:run"):
                    await anyio.sleep(60)
            # The registration of the run is done: its start, and two operations a long span.
            assert client.statistics().pending == 41
            api.away = False
    assert client.statistics().lost == 0
    assert (await stored_run(api)).shape == ("complete", [("agent:run", "complete", [])] * 20)
    messages = [r.getMessage() for r in caplog.records if r.name == "prefactor_core.export.sender"]
    assert len(messages) == 2
    assert "does not take operations" in messages[0]
    assert "accepts operations again" in messages[1]


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


@pytest.mark.parametrize(
    "fault", [500, HOTEL, ConnectionResetError()], ids=["500", "another form", "no answer"]
)
@pytest.mark.parametrize("size", [1, 1000])
async def test_an_operation_that_the_api_fails_at_while_it_accepts_others_is_given_up_alone(
    api: FaultyApi, caplog: pytest.LogCaptureFixture, size: int, fault: object
) -> None:
    queue = {"max_batch_operations": size, "report_after": 1}
    config = make_config(drain_timeout=600, queue=queue)
    async with open_prefactor(config, asgi_app=api) as client:
        async with client.agent_instance(**AGENT) as instance:
            api.faults["agent_spans"] = on_create_of("agent:llm", fault)
            async with instance.span("agent:llm") as span:
                await span.start()
                await anyio.sleep(0.2)
                async with instance.span("agent:run"):
                    pass
            for _ in range(60):
                async with instance.span("agent:tool"):
                    await anyio.sleep(60)
            # Long before the scope ends; the attempts are one and three retries at least.
            assert client.statistics().dropped == {"retries_exhausted": 2}
    attempts = [
        place
        for place, call in enumerate(api.operations)
        if call.name == "agent_spans" and call.body["details"]["schema_name"] == "agent:llm"
    ]
    assert len(attempts) >= 4
    # Its start is given up; its finish is then dropped, and its child hangs on its parent.
    assert client.statistics().dropped == {"retries_exhausted": 2}
    assert (await stored_run(api)).shape == (
        "complete",
        [("agent:run", "complete", [])] + [("agent:tool", "complete", [])] * 60,
    )
    later = api.operations[attempts[-1] :]
    assert not [call for call in later if span.id in call.path]
    assert "ping" not in [call.name for call in api.calls]
    given_up, *_, balance = [text for text in warnings(caplog) if "does not take" not in text]
    assert "operations are dropped (retries_exhausted): CREATE_SPAN of the 'agent:llm' span" in (
        given_up
    )
    assert "2 of 126 Prefactor operations were not delivered (2 retries_exhausted)" in balance


@pytest.mark.parametrize("fault", [500, HOTEL], ids=str)
async def test_a_bulk_at_which_the_api_fails_while_it_accepts_others_is_sent_in_parts(
    api: FaultyApi, fault: object
) -> None:
    async with open_prefactor(make_config(), asgi_app=api) as client:
        async with client.agent_instance(**AGENT) as instance:
            api.faults["bulk"] = fault
            before = anyio.current_time()
            for _ in range(300):
                async with instance.span("agent:run"):
                    pass
            await client.flush()
            # No wait: each time the API shows that it is there.
            assert anyio.current_time() - before < 1
    assert client.statistics().lost == 0
    assert (await stored_run(api)).shape == ("complete", [("agent:run", "complete", [])] * 300)
    # After a few failures in a row it is bulk that does not work.
    assert [call.name for call in api.calls].count("bulk") < 25
    assert len(api.calls) < 400


@pytest.mark.parametrize("max_retries", [0, 1, 3])
async def test_an_operation_that_fails_alone_is_tried_again_as_often_as_max_retries_says(
    api: FaultyApi, max_retries: int
) -> None:
    config = make_config(drain_timeout=600, queue={"max_retries": max_retries, **ONE_BY_ONE})
    async with open_prefactor(config, asgi_app=api) as client:
        api.faults["agent_spans"] = on_create_of("agent:llm", 500)
        async with client.agent_instance(**AGENT) as instance:
            async with instance.span("agent:llm"):
                pass
            for _ in range(60):
                async with instance.span("agent:tool"):
                    await anyio.sleep(60)
    failed = [call for call in api.calls if call.status == 500]
    # Only failures before and after others were taken count; while there was nothing else, it was
    # the one thing to see by whether the API is back.
    assert 1 + max_retries <= len(failed) <= 20 * (1 + max_retries) + 20
    assert client.statistics().dropped == {"retries_exhausted": 1}


async def test_a_start_at_which_the_api_fails_costs_no_more_than_itself(api: FaultyApi) -> None:
    config = make_config(drain_timeout=600, queue=ONE_BY_ONE)
    async with open_prefactor(config, asgi_app=api) as client:
        api.faults["start"] = 500
        async with client.agent_instance(**AGENT) as instance, instance.span("agent:run"):
            await anyio.sleep(3600)
            # It may be the API: nothing else was there to be taken, for all depends on it.
            assert client.statistics().lost == 0
    assert client.statistics().dropped == {"retries_exhausted": 1}
    assert [span.name for span in (await stored_run(api)).spans.values()] == ["agent:run"]


@pytest.mark.parametrize("max_retries", [0, 3])
async def test_an_operation_that_fails_is_kept_as_long_as_nothing_is_accepted(
    api: FaultyApi, max_retries: int
) -> None:
    config = make_config(drain_timeout=600, queue={"max_retries": max_retries})
    async with open_prefactor(config, asgi_app=api) as client:
        async with client.agent_instance(**AGENT) as instance, instance.span("agent:run"):
            api.faults["*"] = 500
            await anyio.sleep(3600)
            assert client.statistics().lost == 0
            api.faults.clear()
    assert client.statistics().lost == 0
    assert (await stored_run(api)).shape == ("complete", [("agent:run", "complete", [])])


@pytest.mark.parametrize("size", [1, 1000])
@pytest.mark.parametrize("status", [400, 404, 409, 418, 422])
async def test_what_the_api_refuses_is_given_up_at_once_and_alone(
    api: FaultyApi, caplog: pytest.LogCaptureFixture, status: int, size: int
) -> None:
    config = make_config(queue={"max_batch_operations": size})
    async with open_prefactor(config, asgi_app=api) as client:
        async with client.agent_instance(**AGENT) as instance:
            api.faults["agent_spans"] = on_create_of("agent:llm", status)
            async with instance.span("agent:run"):
                async with instance.span("agent:llm") as span:
                    await span.start()
                    async with instance.span("agent:tool"):
                        await anyio.sleep(30)
    statistics = client.statistics()
    assert statistics.dropped == {"refused": 2}  # the start, and so the finish
    assert (statistics.retries, statistics.outage_since) == (0, None)
    # What hangs on it hangs on its parent instead.
    assert (await stored_run(api)).shape == (
        "complete",
        [("agent:run", "complete", [("agent:tool", "complete", [])])],
    )
    refused = [call.status for call in api.operations if call.status >= 400]
    # In bulk, which tells it from the others, and alone, which tells why; a 404 may be about the
    # parent: once more without it.
    assert refused == [status] * (2 + (status == 404))
    assert not [call for call in api.operations if span.id in call.path]
    assert len(warnings(caplog)) == 2


async def test_a_span_that_is_refused_as_a_whole_counts_for_all_that_was_merged_in_it(
    api: FaultyApi,
) -> None:
    async with open_prefactor(make_config(), asgi_app=api) as client:
        async with client.agent_instance(**AGENT) as instance:
            api.faults["agent_spans"] = 422
            async with instance.span("agent:llm") as span:
                await span.start()
    statistics = client.statistics()
    assert (statistics.accepted, statistics.delivered, statistics.merged) == (5, 3, 1)
    assert statistics.dropped == {"refused": 2}
    assert statistics.pending_bytes == 0


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refused_token_costs_nothing_and_is_one_error_in_the_log(
    api: FaultyApi, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    config = make_config(drain_timeout=120, http={"max_retry_delay": 100.0})
    async with open_prefactor(config, asgi_app=api) as client:
        async with client.agent_instance(**AGENT) as instance:
            api.faults["*"] = status
            async with instance.span("agent:run") as span:
                await span.start()
                await anyio.sleep(3600)
            assert client.statistics().lost == 0
            api.faults.clear()
    assert client.statistics().lost == 0
    assert (await stored_run(api)).shape == ("complete", [("agent:run", "complete", [])])
    denied = [call.time for call in api.calls if call.status == status]
    # The waits grow to the longest one.
    assert 60 < denied[-1] - denied[-2] < 140
    assert len(denied) < 50
    (record,) = [r for r in caplog.records if r.name.startswith("prefactor_core.export")]
    assert record.levelno == logging.ERROR
    assert "is the API token right" in record.getMessage()


async def test_one_request_that_fails_is_not_reported_as_an_outage(
    api: FaultyApi, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "prefactor_core.export")
    async with open_prefactor(make_config(drain_timeout=60), asgi_app=api) as client:
        for failures in (1, 3, 5):
            api.faults["*"] = [ConnectionResetError()] * failures
            await record_one_run(client)
            await anyio.sleep(60)
            assert len(caplog.records) == (0 if failures < 4 else 2)
    assert [record.levelno for record in caplog.records] == [logging.WARNING, logging.INFO]
    assert client.statistics().lost == 0


@pytest.mark.parametrize("status", [404, 405, 501])
async def test_an_api_without_bulk_is_asked_for_it_once(
    api: FaultyApi, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    async with open_prefactor(make_config(), asgi_app=api) as client:
        api.faults["bulk"] = status
        for _ in range(3):
            await record_one_run(client)
            before = anyio.current_time()
            await client.flush()
            assert anyio.current_time() == before
    assert sorted(api.names()) == sorted(RUN * 3)
    assert len([call for call in api.calls if call.name == "bulk"]) <= 3  # one for each worker
    assert client.statistics().lost == 0
    assert warnings(caplog) == []


async def test_of_a_bulk_request_that_is_refused_as_a_whole_only_the_culprit_is_lost(
    api: FaultyApi,
) -> None:
    def refuse(call: Call) -> int | None:
        names = [
            item.body["details"]["schema_name"] for item in call.items if "details" in item.body
        ]
        return 400 if "agent:llm" in names else None

    async with open_prefactor(make_config(), asgi_app=api) as client:
        api.faults = {"bulk": refuse, "agent_spans": on_create_of("agent:llm", 400)}
        async with client.agent_instance(**AGENT) as instance:
            for n in range(20):
                async with instance.span("agent:llm" if n == 13 else "agent:tool"):
                    pass
    assert client.statistics().dropped == {"refused": 1}
    assert client.statistics().retries == 0
    tool = ("agent:tool", "complete", [])
    assert (await stored_run(api)).shape == ("complete", [tool] * 19)


async def test_a_bulk_request_that_is_too_large_is_sent_in_parts(api: FaultyApi) -> None:
    async with open_prefactor(make_config(), asgi_app=api) as client:
        api.faults["bulk"] = lambda call: 413 if len(call.items) > 4 else None
        async with client.agent_instance(**AGENT) as instance:
            for _ in range(20):
                async with instance.span("agent:tool", payload={"text": "x" * 1000}):
                    pass
    assert client.statistics().lost == 0
    assert len((await stored_run(api)).spans) == 20


async def test_a_finish_of_a_span_that_has_ended_already_counts_as_delivered(
    api: FaultyApi, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_prefactor(make_config(), asgi_app=api) as client:
        api.faults["finish"] = 409
        await record_one_run(client)
    assert client.statistics().delivered == 4
    assert warnings(caplog) == []


async def test_runs_do_not_wait_for_each_other(api: FaultyApi) -> None:
    app, slow = api.app, anyio.Event()

    async def first_is_slow(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"].endswith("bulk") and not slow.is_set():
            slow.set()
            await anyio.sleep(20)
        await app(scope, receive, send)

    api.app = first_is_slow
    config = make_config(queue={"num_workers": 20}, drain_timeout=600)
    async with open_prefactor(config, asgi_app=api) as client:
        runs = [await client.create_agent_instance(**AGENT) for _ in range(10)]
        for run in runs:
            with run.span("agent:run"):
                pass
            run.finish_nowait()
        await anyio.sleep(0.5)
        # All but those of the one worker that waits for its answer.
        assert slow.is_set()
        assert 25 <= client.statistics().delivered < 40
    api.app = app
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


async def test_what_failed_alone_stays_alone(api: FaultyApi) -> None:
    async with open_prefactor(make_config(), asgi_app=api) as client:
        async with client.agent_instance(**AGENT) as instance:
            api.faults["agent_spans"] = on_create_of("agent:llm", 500)
            for name in (*["agent:tool"] * 3, "agent:llm"):
                async with instance.span(name):
                    pass
            for _ in range(200):
                async with instance.span("agent:tool"):
                    await anyio.sleep(5)
    assert client.statistics().dropped == {"retries_exhausted": 1}
    attempts = [
        call.name
        for call in api.calls
        for part in call.items or [call]
        if part.body.get("details", {}).get("schema_name") == "agent:llm"
    ]
    alone = attempts.index("agent_spans")
    assert set(attempts[:alone]) == {"bulk"}
    assert set(attempts[alone:]) == {"agent_spans"}


@pytest.mark.parametrize("size", [1, 1000])
@pytest.mark.parametrize(
    "fault", [500, HOTEL, ConnectionResetError()], ids=["500", "another form", "no answer"]
)
async def test_an_operation_that_the_api_fails_at_is_kept_until_it_accepts_another(
    api: FaultyApi, size: int, fault: object
) -> None:
    config = make_config(queue={"max_batch_operations": size})
    async with open_prefactor(config, asgi_app=api) as client:
        async with client.agent_instance(**AGENT) as instance:
            async with instance.span("agent:tool"):
                pass
            await client.flush()
            seen = len(api.calls)
            api.faults["agent_spans"] = on_create_of("agent:llm", fault)
            async with instance.span("agent:llm"):
                pass
            await anyio.sleep(3600)
            assert client.statistics().lost == 0
            # The waits grow to a minute: that is all that it costs.
            assert len(api.calls) - seen < 120
            for _ in range(20):
                async with instance.span("agent:tool"):
                    await anyio.sleep(60)
            assert client.statistics().dropped == {"retries_exhausted": 1}
    assert "ping" not in [call.name for call in api.calls]
    tools = [("agent:tool", "complete", [])] * 21
    assert (await stored_run(api)).shape == ("complete", tools)


@pytest.mark.parametrize("fault", [500, HOTEL, ConnectionResetError()], ids=str)
async def test_what_fails_like_everything_else_is_kept(api: FaultyApi, fault: object) -> None:
    async with open_prefactor(make_config(drain_timeout=120), asgi_app=api) as client:
        async with client.agent_instance(**AGENT) as instance:
            async with instance.span("agent:tool"):
                pass
            await client.flush()
            api.faults["*"] = fault
            async with instance.span("agent:llm"):
                pass
            await anyio.sleep(36_000)
            assert client.statistics().lost == 0
            api.faults.clear()
    assert client.statistics().lost == 0
    assert len((await stored_run(api)).roots) == 2


@pytest.mark.parametrize("status", [429])
async def test_an_operation_that_the_api_cannot_accept_yet_is_kept_although_it_accepts_others(
    api: FaultyApi, status: int
) -> None:
    config = make_config(queue={"num_workers": 20}, drain_timeout=600)
    async with open_prefactor(config, asgi_app=api) as client:
        async with client.agent_instance(**AGENT) as instance:
            await client.flush()
            api.faults["agent_spans"] = on_create_of("agent:llm", status)
            async with instance.span("agent:llm"):
                pass
            for _ in range(50):
                await record_one_run(client)
                await anyio.sleep(60)
            assert client.statistics().lost == 0
            assert client.statistics().delivered > 100
            api.faults.clear()
    assert client.statistics().lost == 0


async def test_after_a_refusal_was_found_requests_are_as_large_as_before(api: FaultyApi) -> None:
    async def record(spans: int) -> None:
        for _ in range(spans):
            async with instance.span("agent:tool"):
                pass
        await client.flush()

    async with open_prefactor(make_config(), asgi_app=api) as client:
        async with client.agent_instance(**AGENT) as instance:
            api.faults["bulk"] = [400]
            await record(20)
            seen = len(api.calls)
            await record(100)
            # Twice as large each time, until they are.
            assert len(api.calls) <= seen + 3
            await record(100)
            assert len(api.calls) <= seen + 4
    assert (client.statistics().lost, client.statistics().retries) == (0, 0)


async def test_a_batch_that_is_full_does_not_wait_for_more(api: FaultyApi) -> None:
    config = make_config(queue={"batch_window": 3600.0, "max_batch_operations": 4})
    async with open_prefactor(config, asgi_app=api) as client:
        async with client.agent_instance(**AGENT) as instance:
            await client.flush()
            for spans, pending in ((3, 3), (4, 0)):
                await anyio.sleep(1)
                for _ in range(spans):
                    with instance.span("agent:tool"):  # the worker has no turn in between
                        pass
                await anyio.sleep(1)
                assert client.statistics().pending == pending
                await client.flush()


ID_REFUSED = msgspec.json.encode(
    {
        "status": "error",
        "code": "validation_errors",
        "message": "no",
        "errors": {"id": {"status": "error", "code": "invalid_value", "message": "no"}},
    }
)


async def test_one_id_that_is_refused_after_others_were_accepted_is_that_spans_own_fault(
    api: FaultyApi,
) -> None:
    async with open_prefactor(make_config(queue=ONE_BY_ONE), asgi_app=api) as client:
        async with client.agent_instance(**AGENT) as instance:
            api.faults["agent_spans"] = on_create_of("agent:llm", (422, {}, ID_REFUSED))
            for name in ("agent:tool", "agent:llm", "agent:run"):
                async with instance.span(name) as span:
                    span_id = span.id
    assert client.statistics().dropped == {"refused": 1}
    run = await stored_run(api)
    assert [root.name for root in run.roots] == ["agent:tool", "agent:run"]
    # All ids are still ours.
    assert run.named("agent:run").id == span_id


async def test_an_id_that_is_refused_although_none_was_given_is_no_reason_to_go_on(
    api: FaultyApi,
) -> None:
    async with open_prefactor(make_config(queue=ONE_BY_ONE), asgi_app=api) as client:
        async with client.agent_instance(**AGENT) as instance:
            api.faults["agent_spans"] = [(422, {}, ID_REFUSED)] * 10
            async with instance.span("agent:llm"):
                pass
    assert client.statistics().dropped == {"refused": 1}
    assert len([call for call in api.calls if call.status == 422]) < 10


async def test_a_type_that_bulk_has_accepted_stays_in_bulk_whatever_it_answers_to_one(
    api: FaultyApi,
) -> None:
    async with open_prefactor(make_config(), asgi_app=api) as client:
        async with client.agent_instance(**AGENT) as instance:
            for faults in ([], [422], [422], [422], []):
                api.faults["agent_spans"] = [None, *faults]
                seen = len(api.calls)
                for _ in range(5):
                    async with instance.span("agent:tool"):
                        pass
                await client.flush()
    assert [call.name for call in api.calls[seen:-1]] == ["bulk"]
    assert client.statistics().lost == 0


async def test_that_bulk_refuses_the_first_of_a_type_says_nothing_of_the_type(
    api: FaultyApi,
) -> None:
    async with open_prefactor(make_config(), asgi_app=api) as client:
        async with client.agent_instance(**AGENT) as instance:
            api.faults["agent_spans"] = [422]
            for _ in range(5):
                async with instance.span("agent:tool"):
                    pass
            await client.flush()
    assert [call.name for call in api.calls[1:4]] == ["bulk", "agent_spans", "bulk"]
    assert client.statistics().lost == 0


async def test_an_answer_that_refuses_ends_an_outage(api: FaultyApi) -> None:
    async with open_prefactor(make_config(), asgi_app=api) as client:
        async with client.agent_instance(**AGENT) as instance:
            await client.flush()
            api.away = True
            async with instance.span("agent:tool"):
                pass
            await anyio.sleep(1)
            assert client.statistics().outage_since is not None
            api.away, api.faults["agent_spans"] = False, 422
            await client.flush()
            assert client.statistics().dropped == {"refused": 1}
            assert client.statistics().outage_since is None


@pytest.mark.parametrize("status", [None, 404], ids=["delivered", "refused"])
async def test_nothing_is_kept_of_runs_that_have_ended(api: FaultyApi, status: int | None) -> None:
    def runs_known() -> int:
        gc.collect()
        return sum(type(thing) is RunIdentity for thing in gc.get_objects())

    async with open_prefactor(make_config(), asgi_app=api) as client:
        await record_one_run(client)
        api.faults["finish"] = status
        before = runs_known()
        for _ in range(20):
            await record_one_run(client)
        await client.flush()
        assert runs_known() <= before + 1  # the last one may still be in somebody's hands


async def test_spans_of_a_run_that_another_client_registered_are_called_what_the_api_made_them(
    api: FaultyApi,
) -> None:
    faults = Faults(given_ids=False)
    async with open_local_prefactor(":memory:", faults=faults) as app:
        async with (
            open_prefactor(make_config(), asgi_app=app) as owner,
            owner.agent_instance(**AGENT) as instance,
        ):
            await owner.flush()
            async with open_prefactor(make_config(), asgi_app=app) as client:
                async with client.span(instance.id, "agent:run") as outer:
                    await outer.start()
                    await client.flush()
                    async with client.span(instance.id, "agent:tool"):
                        pass
            assert client.statistics().lost == 0
        tree = [("agent:run", "complete", [("agent:tool", "complete", [])])]
        assert (await stored_run(app)).shape == ("complete", tree)


async def test_a_span_that_is_refused_in_a_run_of_another_client_takes_its_finish_along(
    api: FaultyApi,
) -> None:
    async with (
        open_prefactor(make_config(), asgi_app=api) as owner,
        owner.agent_instance(**AGENT) as instance,
    ):
        await owner.flush()
        api.faults["agent_spans"] = on_create_of("agent:llm", 422)
        async with open_prefactor(make_config(), asgi_app=api) as client:
            async with client.span(instance.id, "agent:run"):
                async with client.span(instance.id, "agent:llm") as lost:
                    await lost.start()
                    await client.flush()
                    async with client.span(instance.id, "agent:tool"):
                        pass
        assert client.statistics().dropped == {"refused": 2}
    assert not [call for call in api.operations if lost.id in call.path]
    tree = [("agent:run", "complete", [("agent:tool", "complete", [])])]
    assert (await stored_run(api)).shape == ("complete", tree)


async def test_one_request_that_fails_keeps_no_run_from_being_registered(api: FaultyApi) -> None:
    async with open_prefactor(make_config(), asgi_app=api) as client:
        async with client.agent_instance(**AGENT) as instance:
            api.away = True
            async with instance.span("agent:tool"):
                pass
            await anyio.sleep(0.2)
            assert client.statistics().outage_since is not None
            api.away = False
            await client.create_agent_instance(**AGENT)
            assert api.names().count("register") == 2
