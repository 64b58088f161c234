"""The balance of a client, what waits for it, and what becomes of what does not fit."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import pytest
from support.harness import (
    AGENT,
    FaultyApi,
    make_config,
    make_registry,
    on_create_of,
    open_faulty_api,
    stored_run,
    stored_runs,
)

from prefactor_core import (
    AgentInstanceHandle,
    ClientNotInitializedError,
    InMemoryQueue,
    Operation,
    PrefactorCoreClient,
    PrefactorCoreError,
    PrefactorTelemetryFailureError,
    Statistics,
    open_prefactor,
)

pytestmark = pytest.mark.virtual_time

# What is recorded stays where it is until somebody flushes, or the scope ends.
HELD: dict[str, object] = {"batch_window": 3600.0}
TOOL = ("agent:tool", "complete", [])


@pytest.fixture
async def api() -> AsyncGenerator[FaultyApi]:
    async with open_faulty_api() as api:
        yield api


def open_client(
    api: FaultyApi, *, queue: dict[str, object] | None = None, **options: Any
) -> PrefactorCoreClient:
    return open_prefactor(make_config(queue=queue, **options), asgi_app=api)


async def record(instance: AgentInstanceHandle, spans: int = 1, **payload: object) -> None:
    for _ in range(spans):
        async with instance.span("agent:tool", payload=payload):
            pass


def assert_balanced(statistics: Statistics) -> None:
    assert statistics.accepted == statistics.delivered + statistics.pending + statistics.lost


def assert_all_completed(statistics: Statistics) -> None:
    assert_balanced(statistics)
    completed = (statistics.pending, statistics.pending_bytes, statistics.in_flight)
    assert completed == (0, 0, 0)


# --- flush


async def test_flush_delivers_what_was_recorded_before_and_waits_for_no_batch_window(
    api: FaultyApi,
) -> None:
    async with open_client(api, queue=HELD) as client:
        async with client.agent_instance(**AGENT) as instance:
            await record(instance, 3)
            await anyio.sleep(60)
            assert api.names() == ["register"]
            before = anyio.current_time()
            with anyio.fail_after(5):
                await client.flush()
            assert anyio.current_time() == before
            assert api.names() == ["register", "start", *["agent_spans"] * 3]
            assert_all_completed(client.statistics())


async def test_flush_waits_for_every_worker_queue(api: FaultyApi) -> None:
    async with open_client(api, queue={**HELD, "num_workers": 20}) as client:
        runs = [await client.create_agent_instance(**AGENT) for _ in range(40)]
        for run in runs:
            await record(run, 2)
        before = anyio.current_time()
        with anyio.fail_after(5):
            await client.flush()
        assert anyio.current_time() == before
        assert client.statistics().delivered == 160
        assert_all_completed(client.statistics())


async def test_flush_takes_as_many_requests_as_it_needs(api: FaultyApi) -> None:
    async with open_client(api, queue={**HELD, "max_batch_operations": 2}) as client:
        async with client.agent_instance(**AGENT) as instance:
            await record(instance, 9)
            with anyio.fail_after(5):
                await client.flush()
            assert client.statistics().delivered == 11
            # Alone: the registration; on trio perhaps the start, if a worker was there before the
            # first span. The others go in pairs.
            assert client.statistics().requests in (6, 7)


async def test_flush_does_not_wait_for_what_is_recorded_after_it_was_called(
    api: FaultyApi,
) -> None:
    app = api.app

    asked, recorded = anyio.Event(), anyio.Event()

    async def record_meanwhile() -> None:
        await asked.wait()
        await record(instance)
        recorded.set()

    async def answer_late(scope: Any, receive: Any, send: Any) -> None:
        asked.set()
        await recorded.wait()
        await app(scope, receive, send)

    async with open_client(api, queue=HELD) as client:
        async with client.agent_instance(**AGENT) as instance, anyio.create_task_group() as group:
            await record(instance, 5)
            api.app = answer_late
            group.start_soon(record_meanwhile)
            with anyio.fail_after(5):
                await client.flush()
            api.app = app
            assert (client.statistics().delivered, client.statistics().pending) == (7, 1)


async def test_flush_waits_while_the_api_is_away_and_returns_when_it_is_back(
    api: FaultyApi,
) -> None:
    async with open_client(api) as client:
        async with client.agent_instance(**AGENT) as instance:
            api.away = True
            await record(instance)
            with anyio.move_on_after(600) as scope:
                await client.flush()
            assert scope.cancelled_caught
            assert client.statistics().pending == 2
            api.away = False
            with anyio.fail_after(120):
                await client.flush()
            assert_all_completed(client.statistics())
            assert client.statistics().delivered == 3


async def test_flush_returns_also_for_what_is_given_up(api: FaultyApi) -> None:
    async with open_client(api, queue=HELD) as client:
        async with client.agent_instance(**AGENT) as instance:
            api.faults["agent_spans"] = 422
            await record(instance, 3)
            with anyio.fail_after(5):
                await client.flush()
            assert client.statistics().dropped == {"refused": 3}
            assert_all_completed(client.statistics())


async def test_flush_with_nothing_recorded_returns(api: FaultyApi) -> None:
    async with open_client(api) as client:
        with anyio.fail_after(5):
            await client.flush()
    assert api.calls == []
    with pytest.raises(ClientNotInitializedError):
        await client.flush()


async def test_a_flush_that_is_cancelled_leaves_the_batch_window_as_it_was(
    api: FaultyApi,
) -> None:
    async with open_client(api, queue=HELD, drain_timeout=120) as client:
        async with client.agent_instance(**AGENT) as instance:
            api.away = True
            with anyio.move_on_after(60):
                await client.flush()
            api.away = False
            await anyio.sleep(120)
            requests = len(api.calls)
            await record(instance, 5)
            await anyio.sleep(60)
            assert len(api.calls) == requests
            assert client.statistics().pending == 5


async def test_many_tasks_may_flush_at_once(api: FaultyApi) -> None:
    async with open_client(api, queue=HELD) as client:
        async with client.agent_instance(**AGENT) as instance:
            await record(instance, 5)
            with anyio.fail_after(5):
                async with anyio.create_task_group() as tasks:
                    for _ in range(10):
                        tasks.start_soon(client.flush)
            assert client.statistics().requests == 2  # the other registers the run


async def test_a_client_that_closes_releases_those_who_flush(api: FaultyApi) -> None:
    flushed = False

    async def flush() -> None:
        nonlocal flushed
        await client.flush()
        flushed = True

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            async with open_client(api, drain_timeout=5) as client:
                async with client.agent_instance(**AGENT) as instance:
                    api.hanging = True
                    await record(instance)
                    tasks.start_soon(flush)
                    await anyio.sleep(1)
                    assert not flushed
            assert client.statistics().dropped == {"drain_timeout": 3}
    assert flushed


async def test_operations_that_were_in_a_queue_of_ones_own_before_are_counted_and_flushed(
    api: FaultyApi,
) -> None:
    class Kept(InMemoryQueue[Operation]):
        """Takes operations as any queue, and hands out ``kept`` first."""

        def __init__(self, kept: list[Operation]) -> None:
            super().__init__()
            for operation in kept:
                self.put_nowait(operation)

    class Keeping(InMemoryQueue[Operation]):
        def __init__(self) -> None:
            super().__init__()
            self.kept: list[Operation] = []

        def put_nowait(self, item: Operation) -> None:
            self.kept.append(item)

    # An earlier process ended before it could deliver.
    earlier = Keeping()
    async with open_prefactor(make_config(), queue=earlier, asgi_app=api) as client:
        async with client.agent_instance(**AGENT) as instance:
            await record(instance)
    queue = Kept(earlier.kept)
    async with open_prefactor(make_config(), queue=queue, asgi_app=api) as client:
        with anyio.fail_after(5):
            await anyio.sleep(1)
            assert api.names().count("agent_spans") == 1
            async with client.agent_instance(**AGENT) as instance:
                await record(instance)
                await client.flush()
                assert api.names().count("agent_spans") == 2
    statistics = client.statistics()
    assert (statistics.accepted, statistics.delivered, statistics.lost) == (8, 8, 0)
    assert_all_completed(statistics)


# --- statistics


async def test_in_flight_is_what_is_in_requests_without_an_answer(api: FaultyApi) -> None:
    queue: dict[str, object] = {"max_batch_operations": 4}
    async with open_client(api, queue=queue, drain_timeout=5) as client:
        async with client.agent_instance(**AGENT) as instance:
            assert client.statistics().in_flight == 0
            api.hanging = True
            await record(instance, 9)
            assert client.statistics().in_flight == 0
            await anyio.sleep(1)
            statistics = client.statistics()
            assert (statistics.in_flight, statistics.pending) == (4, 10)
            assert_balanced(statistics)
    assert_all_completed(client.statistics())


async def test_in_flight_counts_both_steps_of_a_span_that_travel_as_one(api: FaultyApi) -> None:
    async with open_client(api, drain_timeout=5) as client:
        async with client.agent_instance(**AGENT) as instance:
            await client.flush()
            api.hanging = True
            async with instance.span("agent:tool") as span:
                await span.start()
            await anyio.sleep(1)
            assert (client.statistics().in_flight, client.statistics().merged) == (2, 1)


async def test_merged_counts_the_finishes_that_travelled_with_their_start(
    api: FaultyApi,
) -> None:
    async with open_client(api, queue=HELD) as client:
        async with client.agent_instance(**AGENT) as instance:
            for way in ("complete", "fail", "cancel"):
                async with instance.span("agent:tool", payload={"way": way}) as span:
                    await span.start()
                    span.set_result({"ended": way})
                    await getattr(span, way)()
            await client.flush()
            # A cancelled span keeps its two steps.
            assert client.statistics().merged == 2
            async with instance.span("agent:run") as span:
                await span.start()
                await client.flush()
            await client.flush()
            # The start was on its way before its finish was recorded.
            assert client.statistics().merged == 2
    statistics = client.statistics()
    assert (statistics.accepted, statistics.delivered) == (11, 11)
    assert_all_completed(statistics)
    stored = {s.payload["way"]: s for s in (await stored_run(api)).roots if s.payload}
    assert {way: span.status for way, span in stored.items()} == {
        "complete": "complete",
        "fail": "failed",
        "cancel": "cancelled",
    }
    assert {way: span.result for way, span in stored.items()} == {
        way: {"ended": way} for way in stored
    }


async def test_outage_since_is_the_time_of_the_first_failure_until_an_answer_comes(
    api: FaultyApi,
) -> None:
    async with open_client(api) as client:
        async with client.agent_instance(**AGENT) as instance:
            await client.flush()
            assert client.statistics().outage_since is None
            api.away = True
            before = datetime.now(UTC)
            await record(instance)
            await anyio.sleep(1)
            since = client.statistics().outage_since
            assert since is not None
            assert since.utcoffset() == timedelta(0)
            assert before <= since <= datetime.now(UTC)
            await anyio.sleep(600)
            assert client.statistics().outage_since == since
            api.away = False
            await client.flush()
            assert client.statistics().outage_since is None


@pytest.mark.parametrize("fault", [None, 422, 413, ConnectionResetError()], ids=str)
@pytest.mark.parametrize("size", [1, 1000])
async def test_pending_bytes_grow_with_the_payloads_and_are_zero_when_all_is_completed(
    api: FaultyApi, fault: object, size: int
) -> None:
    queue = {**HELD, "max_batch_operations": size}
    async with open_client(api, queue=queue, drain_timeout=60) as client:
        async with client.agent_instance(**AGENT) as instance:
            api.away = True  # nothing is completed meanwhile
            empty = client.statistics().pending_bytes
            async with instance.span("agent:tool", payload={"text": "x" * 10_000}) as span:
                await span.start()
                started = client.statistics().pending_bytes
                assert 10_000 < started - empty < 12_000
                span.set_result({"text": "y" * 5_000})
            assert 5_000 < client.statistics().pending_bytes - started < 7_000
            await record(instance, 5, text="z" * 1_000)
            assert_balanced(client.statistics())
            api.away = False
            api.faults["agent_spans"] = fault if isinstance(fault, int) else [fault] * 2
    assert_all_completed(client.statistics())


@pytest.mark.parametrize("trouble", ["away", "hanging"])
async def test_what_a_scope_leaves_behind_is_pending_no_more(api: FaultyApi, trouble: str) -> None:
    async with open_client(api, drain_timeout=5) as client:
        async with client.agent_instance(**AGENT) as instance:
            setattr(api, trouble, True)
            await record(instance, 5, text="x" * 1_000)
    assert client.statistics().dropped == {"drain_timeout": 7}
    assert_all_completed(client.statistics())


async def test_the_counts_balance_at_any_time_whatever_the_api_does(api: FaultyApi) -> None:
    api.faults = {
        "bulk": [None, 503, None, ConnectionResetError(), None, 429] * 30,
        "finish": [None, 404, None, 503, 409] * 30,
        "agent_spans": on_create_of("agent:llm", 422),
    }
    queue: dict[str, object] = {"max_batch_operations": 7, "max_pending_operations": 15}
    async with open_client(api, queue=queue, drain_timeout=3600) as client:

        async def agent() -> None:
            async with client.agent_instance(**AGENT) as instance:
                for n in range(20):
                    async with instance.span("agent:run" if n % 3 else "agent:llm") as span:
                        await span.start()
                        assert_balanced(client.statistics())
                        await record(instance, 3)
                        await anyio.sleep(0.3)

        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(agent)
    statistics = client.statistics()
    assert_all_completed(statistics)
    assert statistics.dropped.keys() == {"refused", "full"}


# --- a loss that raises


async def lose(client: PrefactorCoreClient, api: FaultyApi) -> None:
    async with client.agent_instance(**AGENT) as instance:
        api.faults["agent_spans"] = 422
        await record(instance)


async def test_a_loss_raises_after_everything_is_closed_if_it_shall(
    api: FaultyApi, caplog: pytest.LogCaptureFixture
) -> None:
    client = open_client(api, raise_on_loss=True)
    for _ in range(2):  # closed well enough to be opened again
        with pytest.raises(PrefactorTelemetryFailureError, match="1 of 4 .*1 refused") as caught:
            async with client:
                await lose(client, api)
        assert caught.value.statistics == client.statistics()
        assert caught.value.dropped_operations == 1
        assert_all_completed(client.statistics())
        with pytest.raises(ClientNotInitializedError):
            _ = client.span_manager
    balances = [r for r in caplog.records if r.name == "prefactor_core.client"]
    assert [record.levelno for record in balances] == [logging.WARNING] * 2


async def test_a_loss_raises_from_close_too(api: FaultyApi) -> None:
    client = open_client(api, raise_on_loss=True)
    await client.initialize()
    await lose(client, api)
    with pytest.raises(PrefactorTelemetryFailureError):
        await client.close()
    await client.close()


async def test_a_loss_raises_also_if_the_span_types_are_given_apart(api: FaultyApi) -> None:
    config = make_config(raise_on_loss=True)
    with pytest.raises(PrefactorTelemetryFailureError):
        async with open_prefactor(config, schema_registry=make_registry(), asgi_app=api) as client:
            await lose(client, api)


@pytest.mark.parametrize("raise_on_loss", [False, True])
async def test_without_a_loss_or_without_being_asked_nothing_is_raised(
    api: FaultyApi, raise_on_loss: bool
) -> None:
    async with open_client(api, raise_on_loss=raise_on_loss) as client:
        if raise_on_loss:
            async with client.agent_instance(**AGENT) as instance:
                await record(instance)
        else:
            await lose(client, api)
    assert client.statistics().lost == (0 if raise_on_loss else 1)


async def test_the_bodys_exception_goes_before_a_loss(api: FaultyApi) -> None:
    error = ValueError("mine")
    with pytest.raises(ValueError, match="mine") as caught:
        async with open_client(api, raise_on_loss=True) as client:
            await lose(client, api)
            raise error
    assert caught.value is error
    assert (error.__context__, error.__cause__) == (None, None)
    assert client.statistics().lost == 1


async def test_a_cancellation_goes_before_a_loss(api: FaultyApi) -> None:
    with anyio.CancelScope() as scope:
        async with open_client(api, raise_on_loss=True) as client:
            await lose(client, api)
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert client.statistics().lost == 1


# --- what does not fit


async def test_new_spans_are_dropped_when_too_many_operations_wait(
    api: FaultyApi, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_client(api, queue={**HELD, "max_pending_operations": 5}) as client:
        async with client.agent_instance(**AGENT) as instance:
            await record(instance, 10)
            assert client.statistics().pending == 5
            assert client.statistics().dropped == {"full": 6}
            await client.flush()
            await record(instance, 2)
            assert client.statistics().dropped == {"full": 6}
    assert (await stored_run(api)).shape == ("complete", [TOOL] * 6)
    assert_all_completed(client.statistics())
    reported = [r for r in caplog.records if r.name == "prefactor_core.export.loss_report"]
    assert [record.levelno for record in reported] == [logging.WARNING]


async def test_new_spans_are_dropped_when_too_many_bytes_wait(api: FaultyApi) -> None:
    async with open_client(api, queue={**HELD, "max_pending_bytes": 25_000}) as client:
        async with client.agent_instance(**AGENT) as instance:
            await record(instance, 5, text="x" * 10_000)
            # The one that crosses the bound is taken.
            assert client.statistics().dropped == {"full": 2}
            assert 30_000 < client.statistics().pending_bytes < 35_000
            await client.flush()
            await record(instance)
    assert (await stored_run(api)).shape == ("complete", [TOOL] * 4)
    assert_all_completed(client.statistics())


async def test_finishes_and_operations_of_runs_always_get_in(api: FaultyApi) -> None:
    async with open_client(api, queue={**HELD, "max_pending_operations": 1}) as client:
        async with client.agent_instance(**AGENT) as instance:
            await client.flush()
            others = [await client.create_agent_instance(**AGENT) for _ in range(3)]
            async with instance.span("agent:run") as span:
                await span.start()
                span.set_result({"found": 1})
            # Its start was all that fits.
            assert client.statistics().pending == 2
            await record(instance)
            for other in others:
                await other.start()
                await other.finish("failed")
    assert client.statistics().dropped == {"full": 1}
    first, *rest = await stored_runs(api)
    assert first.shape == ("complete", [("agent:run", "complete", [])])
    assert first.named("agent:run").result == {"found": 1}
    assert [run.status for run in rest] == ["failed"] * 3


async def test_a_dropped_span_is_one_loss_and_its_finish_is_none(api: FaultyApi) -> None:
    async with open_client(api, queue={**HELD, "max_pending_operations": 1}) as client:
        async with client.agent_instance(**AGENT) as instance:
            for way in ("complete", "fail", "cancel"):
                async with instance.span("agent:tool") as span:
                    await span.start()
                    await getattr(span, way)()
            async with instance.span("agent:tool") as span:
                await span.cancel()
    assert client.statistics().dropped == {"full": 4}
    assert (await stored_run(api)).shape == ("complete", [])


@pytest.mark.parametrize("explicit", [False, True], ids=["by context", "by id"])
@pytest.mark.parametrize("dropped", [1, 3])
async def test_children_of_dropped_spans_hang_on_the_nearest_ancestor_that_was_recorded(
    api: FaultyApi, dropped: int, explicit: bool
) -> None:
    async with open_client(api, queue={**HELD, "max_pending_operations": 2}) as client:
        async with client.agent_instance(**AGENT) as instance:
            innermost = await instance.create_span("agent:run")
            opened = [innermost]
            for _ in range(dropped):
                innermost = await instance.create_span(
                    "agent:llm", parent_span_id=innermost if explicit else None
                )
                opened.append(innermost)
            await client.flush()
            assert client.statistics().dropped == {"full": dropped}
            parent = innermost if explicit else None
            async with instance.span("agent:tool", parent_span_id=parent):
                pass
            for span_id in reversed(opened):
                await instance.finish_span(span_id)
    assert client.statistics().dropped == {"full": dropped}
    assert (await stored_run(api)).shape == ("complete", [("agent:run", "complete", [TOOL])])


async def test_children_of_a_dropped_root_are_roots(api: FaultyApi) -> None:
    async with open_client(api, queue={**HELD, "max_pending_operations": 1}) as client:
        async with client.agent_instance(**AGENT) as instance:
            async with instance.span("agent:run") as span:
                await span.start()
                await client.flush()
                await record(instance)
    assert client.statistics().dropped == {"full": 1}
    assert (await stored_run(api)).shape == ("complete", [TOOL])


async def test_a_span_that_names_a_dropped_one_as_parent_after_its_end_is_recorded(
    api: FaultyApi,
) -> None:
    async with open_client(api, queue={**HELD, "max_pending_operations": 2}) as client:
        async with client.agent_instance(**AGENT) as instance:
            async with instance.span("agent:run") as run:
                await run.start()
                async with instance.span("agent:llm") as dropped:
                    await dropped.start()
                assert client.statistics().dropped == {"full": 1}
                await client.flush()
                async with instance.span("agent:tool", parent_span_id=dropped.id):
                    pass
    assert client.statistics().dropped == {"full": 1}
    assert (await stored_run(api)).shape == ("complete", [("agent:run", "complete", [TOOL])])


WAITING: dict[str, object] = {"max_pending_operations": 4, "when_full": "wait"}


@pytest.mark.parametrize("bound", [{"max_pending_operations": 4}, {"max_pending_bytes": 4_000}])
async def test_a_task_that_waits_for_a_place_loses_nothing(
    api: FaultyApi, bound: dict[str, object]
) -> None:
    most = 0

    async def agent(instance: AgentInstanceHandle) -> None:
        nonlocal most
        for _ in range(10):
            async with instance.span("agent:run") as span:
                await span.start()
                span_id = await instance.create_span("agent:tool")
                await instance.finish_span(span_id)
                most = max(most, client.statistics().pending)

    async with open_client(api, queue={"when_full": "wait", **bound}) as client:
        async with client.agent_instance(**AGENT) as instance:
            with anyio.fail_after(600):
                async with anyio.create_task_group() as tasks:
                    for _ in range(5):
                        tasks.start_soon(agent, instance)
            # All of them may find the last place, and what they opened may end.
            assert most <= 30
    assert client.statistics().lost == 0
    assert (await stored_run(api)).shape == (
        "complete",
        [("agent:run", "complete", [TOOL])] * 50,
    )
    assert_all_completed(client.statistics())


@pytest.mark.parametrize("way", ["span", "create_span"])
async def test_asynchronous_code_waits_for_a_place_while_the_api_is_away(
    api: FaultyApi, way: str
) -> None:
    async def open_one(instance: AgentInstanceHandle) -> None:
        if way == "span":
            await record(instance)
        else:
            await instance.finish_span(await instance.create_span("agent:tool"))

    async with open_client(api, queue=WAITING, drain_timeout=120) as client:
        async with client.agent_instance(**AGENT) as instance:
            api.away = True
            while client.statistics().pending < 4:
                await open_one(instance)
            recorded = client.statistics().accepted
            with anyio.move_on_after(600) as scope:
                await open_one(instance)
            assert scope.cancelled_caught
            assert client.statistics().accepted == recorded
            api.away = False
            with anyio.fail_after(120):
                await open_one(instance)
    assert client.statistics().lost == 0
    assert_all_completed(client.statistics())


async def test_a_span_that_has_waited_for_its_place_keeps_it_until_it_starts(
    api: FaultyApi,
) -> None:
    async with open_client(api, queue={**HELD, **WAITING}) as client:
        other = await client.create_agent_instance(**AGENT)
        async with client.agent_instance(**AGENT) as instance:
            async with instance.span("agent:run") as span:
                for _ in range(10):
                    with other.span("agent:tool"):
                        pass
                assert client.statistics().dropped == {"full": 9}
                await span.start()
    assert client.statistics().dropped == {"full": 9}
    roots = [root.shape for run in await stored_runs(api) for root in run.roots]
    assert ("agent:run", "complete", []) in roots


async def test_the_start_of_a_run_does_not_take_the_place_of_its_first_span(
    api: FaultyApi,
) -> None:
    queue: dict[str, object] = {"max_pending_operations": 1, "when_full": "wait"}
    async with open_client(api, queue=queue) as client:
        instance = await client.create_agent_instance(**AGENT)
        await instance.finish_span(await instance.create_span("agent:tool"))
        await instance.finish()
    assert (await stored_run(api)).shape == ("complete", [TOOL])
    assert client.statistics().lost == 0


async def test_a_task_that_waits_for_a_place_waits_for_no_batch_window(api: FaultyApi) -> None:
    async with open_client(api, queue={**HELD, **WAITING}) as client:
        async with client.agent_instance(**AGENT) as instance:
            with anyio.fail_after(5):
                await record(instance, 20)
    assert client.statistics().lost == 0


async def test_what_cannot_be_entered_waits_for_no_place(api: FaultyApi) -> None:
    async with open_client(api, queue=WAITING, drain_timeout=5) as client:
        async with client.agent_instance(**AGENT) as instance:
            api.away = True
            async with instance.span("agent:run") as span:
                await span.start()
                for _ in range(5):
                    with instance.span("agent:tool"):
                        pass
                with anyio.fail_after(5), pytest.raises(PrefactorCoreError, match="entered before"):
                    await span.__aenter__()


async def test_only_the_last_spans_that_were_dropped_are_remembered(api: FaultyApi) -> None:
    async with open_client(api, queue={**HELD, "max_pending_operations": 2}) as client:
        async with client.agent_instance(**AGENT) as instance:
            async with instance.span("agent:run") as run:
                await run.start()
                dropped: list[str] = []
                for _ in range(10_001):
                    with instance.span("agent:llm") as span:
                        dropped.append(span.id)
                await client.flush()
                for parent in (dropped[1], dropped[-1]):
                    async with instance.span("agent:tool", parent_span_id=parent):
                        pass
                    await client.flush()
                async with instance.span("agent:llm", parent_span_id=dropped[0]):
                    pass
    # What named the first one is a root: its parent is unknown here and to the API.
    assert (await stored_run(api)).shape == (
        "complete",
        [("agent:run", "complete", [TOOL, TOOL]), ("agent:llm", "complete", [])],
    )


async def test_synchronous_code_cannot_wait_and_drops(api: FaultyApi) -> None:
    async with open_client(api, queue={**HELD, **WAITING}) as client:
        async with client.agent_instance(**AGENT) as instance:
            for _ in range(10):
                with instance.span("agent:tool"):
                    pass
            assert client.statistics().dropped == {"full": 7}
    assert (await stored_run(api)).shape == ("complete", [TOOL] * 3)
    assert_all_completed(client.statistics())


async def test_a_client_that_closes_releases_those_who_wait_for_a_place(api: FaultyApi) -> None:
    outcomes: list[str] = []

    async def open_one() -> None:
        try:
            await record(instance)
        except ClientNotInitializedError:
            outcomes.append("refused")

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            async with open_client(api, queue=WAITING, drain_timeout=5) as client:
                async with client.agent_instance(**AGENT) as instance:
                    api.hanging = True
                    await record(instance, 3)
                    tasks.start_soon(open_one)
                    await anyio.sleep(1)
                    assert client.statistics().accepted == 5
    assert outcomes == ["refused"]
    assert client.statistics().dropped == {"drain_timeout": 5}
    assert_all_completed(client.statistics())


async def test_many_tasks_that_wait_for_a_place_do_not_get_more_places_than_there_are(
    api: FaultyApi,
) -> None:
    queue: dict[str, object] = {"max_pending_operations": 10, "when_full": "wait"}
    async with open_client(api, queue=queue, drain_timeout=60) as client:
        instance = await client.create_agent_instance(**AGENT)
        await instance.start()
        await client.flush()
        api.away = True

        async def step() -> None:
            async with instance.span("agent:run"):
                await anyio.sleep(0.01)

        async with anyio.create_task_group() as tasks:
            for _ in range(200):
                tasks.start_soon(step)
            await anyio.sleep(30)
            assert client.statistics().pending == 10
            api.away = False
        assert client.statistics().lost == 0


async def test_a_large_result_is_let_in_by_its_marker_when_too_many_bytes_wait(
    api: FaultyApi,
) -> None:
    async with open_client(api, queue={"max_pending_bytes": 50_000}, drain_timeout=60) as client:
        async with client.agent_instance(**AGENT) as instance:
            spans = [instance.span("agent:run") for _ in range(20)]
            for span in spans:
                await span.__aenter__()
                await span.start()
            await client.flush()
            api.away = True
            for span in reversed(spans):
                await span.complete({"text": "x" * 20_000})
            assert client.statistics().pending_bytes < 80_000
            api.away = False
    results = [span.result for span in (await stored_run(api)).spans.values()]
    assert client.statistics().lost == 0
    assert sum("$truncated" in result for result in results) == 17
    assert {span.status for span in (await stored_run(api)).spans.values()} == {"complete"}


async def test_what_is_not_recorded_whole_is_in_the_statistics_by_reason(api: FaultyApi) -> None:
    class Unreadable:
        def __repr__(self) -> str:
            raise RuntimeError("no repr")

    async with open_client(api, max_payload_bytes=1_024) as client:
        async with client.agent_instance(**AGENT) as instance:
            await record(instance, whole=1)
            assert client.statistics().degraded == {}
            await record(instance, 2, text="x" * 2_000)
            async with instance.span("agent:tool", payload={"value": Unreadable()}) as span:
                await span.complete({"value": Unreadable(), "text": "x" * 2_000})
        with anyio.fail_after(5):
            await client.flush()
        assert client.statistics().degraded == {"truncated": 3, "unreadable": 2}
        assert client.statistics().lost == 0
