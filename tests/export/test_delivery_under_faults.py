"""What the API, or what is before it, does wrong for a while: all arrives, in few requests."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from support.harness import (
    AGENT,
    Call,
    FaultyApi,
    make_config,
    open_faulty_api,
    stored_run,
    stored_runs,
    terminate,
)

from prefactor_core import (
    AgentInstanceHandle,
    InMemoryQueue,
    PrefactorCoreClient,
    open_prefactor,
)
from prefactor_core.api.client import AsgiApp, AsgiMessage
from prefactor_core.export.circuit_breaker import CircuitBreaker
from prefactor_core.local import Faults, open_local_prefactor
from prefactor_core.operations import Operation, RegisterAgentInstance
from prefactor_core.queue.retry_policy import Backoff

pytestmark = pytest.mark.virtual_time

HTML = b"<html>Service unavailable</html>"


@pytest.fixture
async def api() -> AsyncGenerator[FaultyApi]:
    async with open_faulty_api() as api:
        yield api


async def record_spans(instance: AgentInstanceHandle, count: int) -> None:
    for _ in range(count):
        async with instance.span("agent:tool"):
            pass


async def record_run(client: PrefactorCoreClient, spans: int = 1) -> None:
    async with client.agent_instance(**AGENT) as instance:
        await record_spans(instance, spans)


class Busy:
    """An API that counts how many requests it has at once, each of which takes a while."""

    def __init__(self, app: AsgiApp, seconds: float = 0.02) -> None:
        self._app = app
        self._seconds = seconds
        self._now = 0
        self.most = self.requests = 0

    async def __call__(self, scope: AsgiMessage, receive: Any, send: Any) -> None:
        self.requests += 1
        self._now += 1
        self.most = max(self.most, self._now)
        try:
            await anyio.sleep(self._seconds)
            await self._app(scope, receive, send)
        finally:
            self._now -= 1


# --- registrations


async def test_cancelled_registrations_at_any_turn_leave_the_client_as_it_was(
    api: FaultyApi,
) -> None:
    busy = Busy(api.app)
    async with open_prefactor(make_config(drain_timeout=60), asgi_app=busy) as client:
        for turns in range(600):
            async with anyio.create_task_group() as group:
                group.start_soon(record_run, client)
                for _ in range(turns % 60):
                    await anyio.lowlevel.checkpoint()
                group.cancel_scope.cancel()
        with anyio.fail_after(60):
            await record_run(client)
            await client.flush()
        statistics = client.statistics()
        assert (statistics.lost, statistics.pending) == (0, 0)
    states = Counter(run.status for run in await stored_runs(api))
    # One that was cancelled as it was being registered is a run that was cancelled.
    assert set(states) <= {"cancelled", "complete"}
    assert states["complete"] >= 1
    assert busy.most <= 3
    assert not api.app.refusals


async def test_natively_cancelled_registrations_leave_the_client_as_it_was(
    api: FaultyApi, anyio_backend_name: str
) -> None:
    if anyio_backend_name != "asyncio":
        return  # there is no other way to cancel a task there
    async with open_prefactor(make_config(drain_timeout=60), asgi_app=Busy(api.app)) as client:
        for turns in range(300):
            task = asyncio.create_task(record_run(client))
            for _ in range(turns % 60):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
        await record_run(client)
    assert client.statistics().lost == 0
    assert {run.status for run in await stored_runs(api)} <= {"cancelled", "complete"}


async def test_many_registrations_that_time_out_at_once_are_made_later(api: FaultyApi) -> None:
    api.hanging = True
    config = make_config(
        registration_timeout=1, drain_timeout=120, http={"request_timeout": 5, "max_retries": 99}
    )
    async with open_prefactor(config, asgi_app=api) as client:
        async with anyio.create_task_group() as group:
            for _ in range(250):
                group.start_soon(record_run, client)
        assert client.statistics().delivered == 0
        api.hanging = False
    assert client.statistics().lost == 0
    shapes = [run.shape for run in await stored_runs(api)]
    assert shapes == [("complete", [("agent:tool", "complete", [])])] * 250


async def test_runs_that_begin_together_share_requests(api: FaultyApi) -> None:
    busy = Busy(api.app)
    async with open_prefactor(make_config(), asgi_app=busy) as client:
        async with anyio.create_task_group() as group:
            for _ in range(250):
                group.start_soon(record_run, client)
    assert client.statistics().lost == 0
    assert len(await stored_runs(api)) == 250
    assert busy.most <= 3
    assert busy.requests < 30


async def test_runs_that_begin_together_are_prepared_one_in_a_turn_of_the_loop(
    api: FaultyApi,
) -> None:
    turn = 0
    prepared: Counter[int] = Counter()

    class Counting(InMemoryQueue[Operation]):
        def put_nowait(self, item: Operation) -> None:
            if isinstance(item, RegisterAgentInstance):
                prepared[turn] += 1
            super().put_nowait(item)

    async def count_turns() -> None:
        nonlocal turn
        while True:
            turn += 1
            await anyio.lowlevel.checkpoint()

    client = open_prefactor(make_config(drain_timeout=60), queue=Counting(), asgi_app=api)
    async with client, anyio.create_task_group() as outer:
        outer.start_soon(count_turns)
        async with anyio.create_task_group() as group:
            for _ in range(100):
                group.start_soon(record_run, client)
        outer.cancel_scope.cancel()
    assert prepared.total() == 100
    # Trio runs the tasks of one turn in any order: two may fall between two counts.
    assert max(prepared.values()) <= 2


async def test_what_a_run_is_registered_with_is_captured_when_it_is_recorded(
    api: FaultyApi,
) -> None:
    api.away = True
    version: dict[str, object] = {"name": "As it was", "external_identifier": "v1"}
    async with open_prefactor(make_config(drain_timeout=60), asgi_app=api) as client:
        async with client.agent_instance("tested-agent", version) as instance:
            version["name"] = "x" * 10_000
            version["impossible"] = object()
            await record_spans(instance, 3)
            assert client.statistics().pending_bytes > 0
        api.away = False
        await client.flush()
        assert client.statistics().pending_bytes == 0
    (body,) = (call.body for call in api.operations if call.name == "register" and call.status)
    assert body["agent_version"]["name"] == "As it was"


# --- a little failure


async def test_a_request_that_fails_once_holds_up_no_other_run(api: FaultyApi) -> None:
    config = make_config(queue={"num_workers": 1, "batch_window": 0.0})
    async with open_prefactor(config, asgi_app=api) as client:
        async with client.agent_instance(**AGENT) as one, client.agent_instance(**AGENT) as other:
            await client.flush()
            began = anyio.current_time()
            api.faults["agent_spans"] = [503]
            await record_spans(one, 1)
            await anyio.sleep(0.01)
            await record_spans(other, 1)
            await client.flush()
            took = anyio.current_time() - began
    spans = [call for call in api.calls if call.name == "agent_spans"]
    (failed, second, third) = spans
    assert [call.status for call in spans] == [503, 200, 200]
    assert second.body["details"]["agent_instance_id"] == other.id
    assert third.body == failed.body
    # A tenth of retry_delay_base, with jitter.
    assert 0.07 <= took <= 0.15


@pytest.mark.parametrize("rate", [0.05, 0.2])
async def test_failures_now_and_then_cost_little_and_lose_nothing(rate: float) -> None:
    async def record(rate: float) -> float:
        async with open_local_prefactor(":memory:") as app:
            app.faults.failure_rate = rate
            async with open_prefactor(make_config(), asgi_app=Busy(app)) as client:
                began = anyio.current_time()
                async with anyio.create_task_group() as group:
                    for _ in range(200):
                        group.start_soon(record_run, client, 2)
            assert client.statistics().lost == 0
            return anyio.current_time() - began

    # On virtual time: only waits count. Of 0.2 s little is to be seen; the drain has 10 s.
    assert await record(rate) <= max(await record(0.0) / 0.6, 3.0)


async def test_an_answer_to_an_older_request_ends_an_outage_for_all_workers(api: FaultyApi) -> None:
    requests = -100

    async def app(scope: AsgiMessage, receive: Any, send: Any) -> None:
        nonlocal requests
        requests += 1
        if requests == 1:
            await anyio.sleep(3)  # the older one
        elif requests in (2, 3):
            raise ConnectionRefusedError("nobody is there")
        elif requests == 4:
            await anyio.sleep(25)  # it asks whether the API is back
        await api(scope, receive, send)

    queue = {"num_workers": 3, "batch_window": 0.0}
    async with open_prefactor(make_config(queue=queue), asgi_app=app) as client:
        runs: dict[int, AgentInstanceHandle] = {}
        while len(runs) < 3:  # one for each worker
            run = await client.create_agent_instance(**AGENT)
            await run.start()
            runs.setdefault(hash(run.id) % 3, run)
        await client.flush()
        requests = 0
        for run in runs.values():
            await record_spans(run, 1)
            await anyio.sleep(0.5)
        await anyio.sleep(2)
        # All but what asks, which is not answered yet.
        assert requests == 5
        assert client.statistics().pending == client.statistics().in_flight == 1


# --- an API that takes nothing


@pytest.mark.parametrize("status", [500, 503])
async def test_answers_to_what_the_api_knows_prove_nothing(status: int) -> None:
    async with open_local_prefactor(":memory:") as app:
        async with open_prefactor(make_config(drain_timeout=60), asgi_app=app) as client:
            async with client.agent_instance(**AGENT) as instance:
                await client.flush()
                app.faults.read_only, app.faults.failure_status = True, status
                before = client.statistics().requests
                for _ in range(40):
                    await record_spans(instance, 50)
                    await anyio.sleep(1)
                assert client.statistics().lost == 0
                assert client.statistics().requests - before < 40
                app.faults.read_only = False
        assert client.statistics().lost == 0
        assert len((await stored_run(app)).spans) == 2_000


EVERYTHING = [400, 402, 404, 405, 406, 407, 408, 409, 410, 413, 422, 423, 425, 429, 431, 451, 501]


@pytest.mark.parametrize("status", EVERYTHING)
@pytest.mark.parametrize("body", [None, HTML], ids=["of the API", "of a gateway"])
async def test_what_is_answered_to_everything_is_about_the_api(
    api: FaultyApi, status: int, body: bytes | None
) -> None:
    async with open_prefactor(make_config(drain_timeout=120), asgi_app=api) as client:
        async with client.agent_instance(**AGENT) as instance:
            await record_spans(instance, 5)
            await client.flush()
            api.faults["*"] = (status, {}, body)
            before = len(api.calls)
            for _ in range(5):
                await record_spans(instance, 20)
                await anyio.sleep(1)
            assert len(api.calls) - before < 60
            api.faults.clear()
            await anyio.sleep(60)
            before = len(api.calls)
            for _ in range(5):
                await record_spans(instance, 20)
                await client.flush()
            # Nothing of what was thought of the API is left.
            assert len(api.calls) - before <= 6
    statistics = client.statistics()
    # 409 to the end of what has not ended would say that it has.
    assert statistics.lost == 0
    assert statistics.assumed == ()
    assert len((await stored_run(api)).spans) == 205


async def test_what_bulk_once_stopped_at_is_not_refused_by_an_api_that_refuses_everything(
    api: FaultyApi,
) -> None:
    creates = 0

    def at_create(call: Call) -> int | None:
        nonlocal creates
        creates += 1
        # First bulk stops there, then the API is out of service, in two ways.
        return {1: 422, 2: 503}.get(creates) or at_any(call)

    def at_any(call: Call) -> int | None:
        return 423 if creates >= 2 and anyio.current_time() < until else None

    until = anyio.current_time() + 5
    async with open_prefactor(make_config(), asgi_app=api) as client:
        async with client.agent_instance(**AGENT) as instance:
            api.faults = {"agent_spans": at_create, "*": at_any}
            await record_spans(instance, 3)
            await client.flush()
    assert creates > 3
    assert client.statistics().lost == 0
    assert len((await stored_run(api)).spans) == 3


async def test_what_an_outage_cost_is_held_against_nothing_in_the_drain() -> None:
    lost: list[int] = []
    for seed in range(8):
        async with open_local_prefactor(":memory:", faults=Faults(seed=seed)) as app:
            config = make_config(drain_timeout=300, queue={"max_retries": 9})
            async with open_prefactor(config, asgi_app=app) as client:
                async with anyio.create_task_group() as group:
                    for _ in range(10):
                        group.start_soon(record_run, client, 3)
                    await anyio.sleep(0.01)
                    app.faults.failure_status, app.faults.failure_rate = 500, 1.0
                await anyio.sleep(600)
                app.faults.failure_rate = 0.3
        lost.append(client.statistics().lost)
    assert not any(lost)


@pytest.mark.parametrize("status", [404, 423])
async def test_nothing_is_refused_for_want_of_bulk_when_the_api_is_back(status: int) -> None:
    lost: list[int] = []
    for seconds in range(4, 28, 2):  # whether there is bulk is tried again now and then
        async with open_faulty_api() as api:
            api.app.faults.bulk = False
            queue = {"num_workers": 1}
            async with open_prefactor(make_config(queue=queue), asgi_app=api) as client:
                runs = [await client.create_agent_instance(**AGENT) for _ in range(4)]
                api.faults = {"*": status}
                for run in runs:
                    await run.start()
                    await record_spans(run, 1)
                await anyio.sleep(seconds)
                api.faults = {}
                for run in runs:
                    await record_spans(run, 1)
                await client.flush()
            lost.append(client.statistics().lost)
    assert not any(lost)


async def test_in_an_outage_there_is_one_request_at_a_time_for_all_workers() -> None:
    async with open_local_prefactor(":memory:") as app:
        busy = Busy(app, seconds=0.5)
        config = make_config(queue={"num_workers": 8}, drain_timeout=120)
        async with open_prefactor(config, asgi_app=busy) as client:
            runs = [await client.create_agent_instance(**AGENT) for _ in range(40)]
            await client.flush()
            app.faults.failure_rate = 1.0
            for run in runs:
                await record_spans(run, 3)
            await anyio.sleep(3)
            busy.most = busy.requests = 0
            await anyio.sleep(600)
            assert busy.most == 1
            assert busy.requests < 80
            app.faults.failure_rate = 0.0
        assert client.statistics().lost == 0


async def test_after_an_outage_requests_are_as_large_as_before(api: FaultyApi) -> None:
    async with open_prefactor(make_config(drain_timeout=120), asgi_app=api) as client:
        async with client.agent_instance(**AGENT) as instance:
            await client.flush()
            api.faults["*"] = 503
            for _ in range(60):
                await record_spans(instance, 40)
                await anyio.sleep(1)
            api.faults.clear()
            before = len(api.calls)
            await client.flush()
            assert len(api.calls) - before <= 2_400 / 500 + 3
    assert client.statistics().lost == 0


# --- guesses about the API


async def test_bulk_that_was_not_there_for_a_while_is_used_again(api: FaultyApi) -> None:
    async with open_prefactor(make_config(drain_timeout=120), asgi_app=api) as client:
        async with client.agent_instance(**AGENT) as instance:
            api.faults["bulk"] = 404
            await record_spans(instance, 5)
            await client.flush()
            assert client.statistics().assumed == ("no bulk",)
            api.faults.clear()
            await anyio.sleep(60)
            before = len(api.calls)
            await record_spans(instance, 100)
            await client.flush()
            assert [call.name for call in api.calls[before:]] == ["bulk"]
            assert client.statistics().assumed == ()


async def test_bulk_that_is_never_there_is_asked_for_less_and_less_often(api: FaultyApi) -> None:
    async with open_prefactor(make_config(drain_timeout=120), asgi_app=api) as client:
        async with client.agent_instance(**AGENT) as instance:
            api.faults["bulk"] = 404
            for _ in range(24 * 30):
                await record_spans(instance, 2)
                await anyio.sleep(120)
            asked = [call.time for call in api.calls if call.name == "bulk"]
            # 5 s, 10 s, 20 s... an hour: a day has some thirty.
            assert 25 < len(asked) < 40
    assert client.statistics().lost == 0


async def test_a_request_that_was_too_large_once_makes_none_small_for_ever(api: FaultyApi) -> None:
    async with open_prefactor(make_config(drain_timeout=120), asgi_app=api) as client:
        async with client.agent_instance(**AGENT) as instance:
            api.faults["bulk"] = [413]
            await record_spans(instance, 100)
            await client.flush()
            assert client.statistics().assumed == ("smaller requests",)
            for _ in range(5):
                await anyio.sleep(60)
                before = len(api.calls)
                await record_spans(instance, 400)
                await client.flush()
            assert len(api.calls) - before == 1
            assert client.statistics().assumed == ()


async def test_a_token_that_is_accepted_again_in_the_last_seconds_of_a_scope_is_noticed(
    api: FaultyApi,
) -> None:
    async def take_it_again() -> None:
        await anyio.sleep(6)
        api.faults.clear()

    async with anyio.create_task_group() as group:
        async with open_prefactor(make_config(drain_timeout=10), asgi_app=api) as client:
            async with client.agent_instance(**AGENT) as instance:
                await client.flush()
                api.faults["*"] = 401
                await record_spans(instance, 5)
                await anyio.sleep(600)  # the waits have grown to a minute
            group.start_soon(take_it_again)
    assert client.statistics().lost == 0


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500])
async def test_no_answer_ends_the_watching_for_a_termination(api: FaultyApi, status: int) -> None:
    def fault(call: Call) -> int | None:
        return status if call.method == "GET" else None

    config = make_config(termination_poll_interval=30)
    async with open_prefactor(config, asgi_app=api) as client:
        instance = await client.create_agent_instance(**AGENT)
        await instance.start()
        api.faults["*"] = fault
        await anyio.sleep(600)
        api.faults.clear()
        await terminate(api, instance.id)
        stopped = anyio.Event()
        instance.on_terminate(lambda reason: stopped.set())
        with anyio.fail_after(3_600):
            await stopped.wait()


async def test_the_status_of_many_runs_is_asked_for_at_once(api: FaultyApi) -> None:
    config = make_config(termination_poll_interval=30)
    async with open_prefactor(config, asgi_app=api) as client:
        runs = [await client.create_agent_instance(**AGENT) for _ in range(50)]
        for run in runs:
            await run.start()
        await client.flush()
        await terminate(api, runs[7].id)
        before = len(api.calls)
        await anyio.sleep(31)
        assert [call.name for call in api.calls[before:]] == ["agent_instance"]
        assert [run.terminated is not None for run in runs].count(True) == 1
        assert runs[7].terminated == "over budget"


async def test_the_poll_waits_as_long_as_the_api_asks(api: FaultyApi) -> None:
    async with open_prefactor(make_config(termination_poll_interval=10), asgi_app=api) as client:
        instance = await client.create_agent_instance(**AGENT)
        await instance.start()
        await client.flush()
        api.faults["*"] = [(429, {"Retry-After": "300"}, None)]
        before = len(api.calls)
        await anyio.sleep(290)
        assert len(api.calls) - before == 1
        await anyio.sleep(30)
        assert len(api.calls) - before > 1


async def test_what_the_api_called_ended_spans_is_forgotten() -> None:
    async with open_local_prefactor(":memory:", faults=Faults(given_ids=False)) as app:
        async with open_prefactor(make_config(drain_timeout=120), asgi_app=app) as client:
            async with client.agent_instance(**AGENT) as instance:
                run = client.instance_manager.identity(instance.id)
                for _ in range(10):
                    await record_spans(instance, 1_010)
                    await client.flush()
                assert len(keys_of(run)) == 10_000
        assert client.statistics().lost == 0


def keys_of(run: object) -> list[object]:
    """The keys of all mappings of an object."""
    slots = [getattr(run, name) for name in type(run).__slots__]  # type: ignore[attr-defined]
    return [key for slot in slots if isinstance(slot, dict) for key in slot]


def test_no_wait_is_longer_than_what_is_left_of_the_drain() -> None:
    for failures in range(1, 30):
        breaker = CircuitBreaker(Backoff())
        for n in range(failures):
            round = breaker.begin()
            breaker.failed(round, float(n), 600.0 if n % 2 else None, denied=True)
            breaker.end(round)
        breaker.drain(float(failures), failures + 8.0)
        assert breaker.wait(float(failures)) < 8.0


# --- the event loop


async def test_a_batch_is_written_and_its_answer_read_in_slices(api: FaultyApi) -> None:
    turns = 0
    asked_at = answered_at = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await anyio.lowlevel.checkpoint()

    async def noting(scope: AsgiMessage, receive: Any, send: Any) -> None:
        nonlocal asked_at, answered_at
        if not scope["path"].endswith("bulk"):
            return await api(scope, receive, send)
        asked_at = turns
        await api(scope, receive, send)
        answered_at = turns
        return None

    config = make_config(queue={"num_workers": 1, "batch_window": 3600.0})
    async with open_prefactor(config, asgi_app=noting) as client:
        async with client.agent_instance(**AGENT) as instance:
            await client.flush()
            for _ in range(500):
                with instance.span("agent:tool"):
                    pass
            async with anyio.create_task_group() as group:
                group.start_soon(count_turns)
                await anyio.lowlevel.checkpoint()
                began = turns
                await client.flush()
                ended = turns
                group.cancel_scope.cancel()
    assert [len(call.items) for call in api.calls].count(500) == 1
    # Fifty operations are written in a turn, and a hundred outputs read; less one turn each, in
    # which trio may take the counting task first.
    assert asked_at - began >= 8
    assert ended - answered_at >= 3


async def test_what_was_sent_without_its_payload_and_not_answered_keeps_that_form(
    api: FaultyApi,
) -> None:
    whole: list[bool] = []

    def refuse(call: Call) -> object:
        is_whole = "text" in call.body["details"]["payload"]
        whole.append(is_whole)
        # The first request without the payload is done, and its answer lost.
        api.lost_answers = int(whole.count(False) == 1)
        return 413 if is_whole else None

    api.faults = {"agent_spans": refuse, "bulk": 404}
    async with open_prefactor(make_config(drain_timeout=60), asgi_app=api) as client:
        async with client.agent_instance(**AGENT) as instance:
            async with instance.span("agent:tool", payload={"text": "x" * 1_000}):
                pass
    assert client.statistics().lost == 0
    # Or the API would get its idempotency key with two bodies.
    assert whole[-2:] == [False, False]
    assert whole == sorted(whole, reverse=True)
