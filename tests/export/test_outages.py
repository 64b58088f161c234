"""Outages: nothing is lost, nothing comes twice, and the agent does not notice."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import msgspec
import pytest
from support.harness import AGENT, FaultyApi, make_config, stored_run, stored_runs

from prefactor_core import AgentInstanceHandle, open_prefactor
from prefactor_core.api.client import AsgiApp, AsgiMessage
from prefactor_core.local import Faults, open_local_prefactor

pytestmark = pytest.mark.virtual_time

Send = Callable[[AsgiMessage], Awaitable[None]]


class Switch:
    """An API that can be away, and that answers 500 to whatever has ``poison`` in it."""

    def __init__(self, app: AsgiApp, poison: str | None = None) -> None:
        self.app = app
        self.away = False
        self.poison = poison
        self.poison_status = 500
        self.gateway: tuple[int, bytes] | None = None
        self.attempts = 0
        self.created: list[str] = []

    async def __call__(self, scope: AsgiMessage, receive: Any, send: Send) -> None:
        self.attempts += 1
        if self.away:
            raise ConnectionRefusedError("nobody is there")
        body = b""
        while (message := await receive()).get("more_body"):
            body += message["body"]
        if self.poison and self.poison.encode() in body:
            await _answer(send, self.poison_status, b'{"code":"bad_luck"}')
            return
        if self.gateway:
            await _answer(send, *self.gateway)
            return
        await self.app(scope, _replay(body), send)
        if scope["path"].endswith("/bulk"):
            items: list[dict[str, Any]] = msgspec.json.decode(body)["items"]
            self.created += [
                item["details"]["payload"]["n"]
                for item in items
                if item["_type"] == "agent_spans/create" and "n" in item["details"]["payload"]
            ]


async def _answer(send: Send, status: int, body: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": body})


def _replay(body: bytes) -> Callable[[], Awaitable[AsgiMessage]]:
    async def receive() -> AsgiMessage:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


def messages(caplog: pytest.LogCaptureFixture, least: int = logging.INFO) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= least and record.name.startswith("prefactor_core")
    ]


async def work(instance: AgentInstanceHandle, first: int, last: int) -> None:
    """Spans numbered from ``first`` to ``last``, each inside of one more in ten."""
    for n in range(first, last):
        async with instance.span("agent:tool", payload={"n": n}) as span:
            span.set_result({"n": n})


async def test_all_spans_arrive_in_order_and_once_after_an_outage_in_the_middle(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "prefactor_core")
    async with open_local_prefactor(":memory:") as app:
        api = Switch(app)
        async with open_prefactor(make_config(), asgi_app=api) as client:
            async with client.agent_instance(**AGENT) as instance:
                await work(instance, 0, 2_000)
                await anyio.sleep(0.05)
                api.away = True
                await work(instance, 2_000, 4_000)
                await anyio.sleep(60)
                api.away = False
        run = await stored_run(app)
    assert client.statistics().lost == 0
    assert api.created == list(range(4_000))
    assert Counter(span.status for span in run.spans.values()) == {"complete": 4_000}
    assert run.status == "complete"
    assert app.refusals == {}
    began, ended = messages(caplog)
    assert "does not take operations" in began
    assert "accepts operations again after" in ended


async def test_many_tasks_lose_nothing_against_a_server_that_fails_now_and_then() -> None:
    faults = Faults(answering_time=0.05, failure_rate=0.05, drop_rate=0.02, seed=1)
    config = make_config(drain_timeout=600, queue={"max_batch_operations": 50})

    async def agent(instance: AgentInstanceHandle) -> None:
        for n in range(20):
            async with instance.span("agent:run", payload={"n": n}):
                await anyio.sleep(0.01)
                async with instance.span("agent:tool") as span:
                    await span.start({"n": n})
                    await anyio.sleep(0.01)

    async with open_local_prefactor(":memory:", faults=faults) as app:
        async with open_prefactor(config, asgi_app=app) as client:
            async with client.agent_instance(**AGENT) as instance:
                async with anyio.create_task_group() as tasks:
                    for _ in range(50):
                        tasks.start_soon(agent, instance)
        faults.failure_rate = faults.drop_rate = 0.0
        run = await stored_run(app)
    assert client.statistics().lost == 0
    assert client.statistics().retries > 0
    # No illegal transition, no unknown parent, no key for two things.
    assert app.refusals.keys() <= {"unavailable"}
    pair = ("agent:run", "complete", [("agent:tool", "complete", [])])
    assert run.shape == ("complete", [pair] * 1_000)


async def test_an_api_that_is_never_there_costs_the_agent_nothing_but_the_registration(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with open_local_prefactor(":memory:") as app:
        api = Switch(app)
        api.away = True
        before = anyio.current_time()
        config = make_config(registration_timeout=2.0, drain_timeout=5.0)
        async with open_prefactor(config, asgi_app=api) as client:
            for _ in range(3):
                async with client.agent_instance(**AGENT) as instance:
                    registered = anyio.current_time() - before
                    # Only the first run has to find out that the API is away.
                    assert registered <= 2.0
                    await work(instance, 0, 100)
                    assert anyio.current_time() - before == registered
            left = anyio.current_time()
        assert anyio.current_time() - left == pytest.approx(5.0)
    statistics = client.statistics()
    assert statistics.accepted == 3 * (1 + 1 + 100 + 1)
    assert statistics.dropped == {"drain_timeout": statistics.accepted}
    assert (statistics.pending, statistics.pending_bytes) == (0, 0)
    # It waits between its attempts.
    assert api.attempts < 20
    began, balance = messages(caplog, logging.WARNING)
    assert "does not take operations" in began
    assert "309 of 309 Prefactor operations were not delivered" in balance


@pytest.mark.parametrize("position", [0, 7, 19])
async def test_a_span_at_which_the_api_fails_is_given_up_alone(
    position: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_local_prefactor(":memory:") as app:
        api = Switch(app, poison="poison")
        async with open_prefactor(make_config(drain_timeout=600), asgi_app=api) as client:
            async with client.agent_instance(**AGENT) as instance:
                for n in range(20):
                    name = "poison" if n == position else "agent:run"
                    async with instance.span(name, payload={"n": n}):
                        async with instance.span("agent:tool"):
                            pass
        run = await stored_run(app)
    # Its start and its finish.
    assert client.statistics().dropped == {"retries_exhausted": 2}
    pair = ("agent:run", "complete", [("agent:tool", "complete", [])])
    shapes = Counter(map(repr, (root.shape for root in run.roots)))
    # Its child hangs on its parent, which is the run.
    assert shapes == {repr(pair): 19, repr(("agent:tool", "complete", [])): 1}
    assert run.status == "complete"
    assert sum("is given up" in message for message in messages(caplog)) == 1


async def test_an_outage_of_500s_gives_nothing_up_however_long_it_takes() -> None:
    async with open_local_prefactor(":memory:") as app:
        config = make_config(queue={"max_retries": 0}, drain_timeout=120)
        async with open_prefactor(config, asgi_app=app) as client:
            async with client.agent_instance(**AGENT) as instance:
                app.faults.failure_rate = 1.0
                for n in range(200):
                    await work(instance, n, n + 1)
                    await anyio.sleep(20)
                app.faults.failure_rate = 0.0
        run = await stored_run(app)
    assert client.statistics().lost == 0
    assert len(run.spans) == 200


async def test_all_workers_wait_together_when_the_api_asks_for_it() -> None:
    async with open_local_prefactor(":memory:") as app:
        api = Switch(app)
        config = make_config(queue={"num_workers": 8}, drain_timeout=600)
        async with open_prefactor(config, asgi_app=api) as client:
            runs = [await client.create_agent_instance(**AGENT) for _ in range(30)]
            await client.flush()
            app.faults.failure_rate, app.faults.failure_status = 1.0, 429
            app.faults.retry_after = 50.0
            before = api.attempts
            for run in runs:
                await run.start()
            await anyio.sleep(49)
            # One request of each worker may have been on its way.
            assert api.attempts - before <= 8
            app.faults.failure_rate = 0.0
        assert {run.status for run in await stored_runs(app)} == {"complete"}
    assert client.statistics().lost == 0


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refused_token_is_reported_once_and_tried_again_slowly(
    status: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_local_prefactor(":memory:") as app:
        api = Switch(app)
        config = make_config(drain_timeout=600)
        async with open_prefactor(config, asgi_app=api) as client:
            async with client.agent_instance(**AGENT) as instance:
                app.faults.failure_rate, app.faults.failure_status = 1.0, status
                before = api.attempts
                for n in range(60):
                    await work(instance, n, n + 1)
                    await anyio.sleep(10)
                # Each time, what was taken before is tried as well.
                assert 10 <= api.attempts - before <= 22
                app.faults.failure_rate = 0.0
        assert len((await stored_run(app)).spans) == 60
    assert client.statistics().lost == 0
    (error,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert "is the API token right" in error.getMessage()


async def test_a_bad_span_on_which_all_else_depends_costs_its_run_no_more_than_itself() -> None:
    async with open_local_prefactor(":memory:") as app:
        api = Switch(app, poison="poison")
        async with open_prefactor(make_config(drain_timeout=600), asgi_app=api) as client:
            async with client.agent_instance(**AGENT) as instance:
                async with instance.span("poison") as root:
                    await root.start()
                    for _ in range(10):
                        async with instance.span("agent:tool"):
                            pass
        run = await stored_run(app)
    assert client.statistics().dropped == {"retries_exhausted": 2}
    assert run.shape == ("complete", [("agent:tool", "complete", [])] * 10)


@pytest.mark.parametrize("status", [500, 503])
async def test_what_failed_once_by_itself_is_kept_through_an_outage_that_follows(
    status: int,
) -> None:
    async with open_local_prefactor(":memory:") as app:
        api = Switch(app)
        config = make_config(drain_timeout=600, queue={"max_batch_operations": 1})
        async with open_prefactor(config, asgi_app=api) as client:
            async with client.agent_instance(**AGENT) as instance:
                await client.flush()
                # Alone at fault, as far as anybody can see: another span is taken meanwhile.
                api.poison = '"n":1}'
                await work(instance, 1, 3)
                await anyio.sleep(1.5)
                assert len((await stored_run(app)).spans) == 1
                # And now the whole API fails, and answers so, for an hour.
                app.faults.failure_rate, app.faults.failure_status = 1.0, status
                api.poison = None
                await anyio.sleep(3600)
                app.faults.failure_rate = 0.0
        run = await stored_run(app)
    assert client.statistics().lost == 0
    assert len(run.spans) == 2
    assert run.status == "complete"


async def test_several_spans_at_which_the_api_fails_are_given_up_and_nothing_else() -> None:
    async with open_local_prefactor(":memory:") as app:
        api = Switch(app, poison="poison")
        async with open_prefactor(make_config(drain_timeout=6_000), asgi_app=api) as client:
            async with client.agent_instance(**AGENT) as instance:
                for n in range(30):
                    name = "poison" if n in (0, 1, 13, 14, 29) else "agent:run"
                    async with instance.span(name):
                        pass
        run = await stored_run(app)
    assert client.statistics().dropped == {"retries_exhausted": 5}
    assert run.shape == ("complete", [("agent:run", "complete", [])] * 25)


@pytest.mark.parametrize("hanging", [False, True])
async def test_an_outage_at_the_start_is_reported_when_the_registration_meets_it(
    hanging: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_local_prefactor(":memory:") as app:
        api = Switch(app)
        api.away = not hanging
        app.faults.answering_time = 1e9 if hanging else 0.0
        async with open_prefactor(make_config(drain_timeout=0.0), asgi_app=api) as client:
            instance = await client.create_agent_instance(**AGENT)
            statistics = client.statistics()
            assert statistics.outage_since is not None
            assert statistics.last_error is not None
            assert statistics.requests == (1 if hanging else 4)
            (began,) = messages(caplog)
            assert "does not take operations" in began
            await instance.start()
    _, balance = messages(caplog)
    assert "2 of 3" in balance or "3 of 3" in balance
    assert "last error: PrefactorUnreachableError" in balance


@pytest.mark.parametrize("bad", [1, 4, 20])
async def test_bad_spans_among_many_hold_nothing_up(bad: int) -> None:
    async with open_local_prefactor(":memory:") as app:
        api = Switch(app, poison="poison")
        async with open_prefactor(make_config(), asgi_app=api) as client:
            async with client.agent_instance(**AGENT) as instance:
                for n in range(200):
                    name = "poison" if n % (200 // bad) == 0 else "agent:run"
                    with instance.span(name):
                        pass
        run = await stored_run(app)
    # Within the usual drain_timeout.
    assert client.statistics().dropped == {"retries_exhausted": bad}
    assert run.shape == ("complete", [("agent:run", "complete", [])] * (200 - bad))


@pytest.mark.parametrize("status", [401, 403])
async def test_one_operation_that_the_token_is_not_good_for_is_given_up_alone(
    status: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_local_prefactor(":memory:") as app:
        api = Switch(app, poison="poison")
        api.poison_status = status
        async with open_prefactor(make_config(), asgi_app=api) as client:
            async with client.agent_instance(**AGENT) as instance:
                for n in range(50):
                    with instance.span("poison" if n == 5 else "agent:run"):
                        pass
        run = await stored_run(app)
    assert client.statistics().dropped == {"refused": 1}
    assert run.shape == ("complete", [("agent:run", "complete", [])] * 49)
    assert not [message for message in messages(caplog) if "does not take" in message]


@pytest.mark.parametrize(
    "answer",
    [(404, b'{"message":"Not Found"}'), (408, b"{}"), (402, b"{}"), (400, b"{}"), (502, b"")],
    ids=str,
)
async def test_what_a_gateway_says_is_no_refusal(answer: tuple[int, bytes]) -> None:
    async with open_local_prefactor(":memory:") as app:
        api = Switch(app)
        async with open_prefactor(make_config(drain_timeout=600), asgi_app=api) as client:
            async with client.agent_instance(**AGENT) as instance:
                await client.flush()
                api.gateway = answer
                await work(instance, 0, 20)
                await anyio.sleep(60)
                api.gateway = None
                await client.flush()
                before = api.attempts
                await work(instance, 20, 60)
                await client.flush()
                # Bulk is not given up for it.
                assert api.attempts - before <= 3
        assert len((await stored_run(app)).spans) == 60
    assert client.statistics().lost == 0


async def test_two_outages_an_idle_hour_apart_are_reported_each_with_its_own_length(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    async with open_local_prefactor(":memory:") as app:
        api = Switch(app)
        async with open_prefactor(make_config(drain_timeout=600), asgi_app=api) as client:
            async with client.agent_instance(**AGENT) as instance:
                await client.flush()
                for gateway, away in ((429, b"{}"), False), (None, True):
                    api.gateway, api.away = gateway, away
                    await work(instance, 0, 10)
                    await anyio.sleep(20)
                    api.gateway, api.away = None, False
                    await client.flush()
                    await anyio.sleep(3600)
    assert client.statistics().lost == 0
    logged = messages(caplog)
    assert ["again after" in line for line in logged] == [False, True, False, True]
    lengths = [float(line.split()[-2]) for line in logged[1::2]]
    assert all(15 < length < 30 for length in lengths)


@pytest.mark.parametrize("asked", ["999999999", "Wed, 21 Oct 2099 07:28:00 GMT", "1e308"])
async def test_one_mistaken_retry_after_does_not_end_the_delivery(asked: str) -> None:
    async with open_local_prefactor(":memory:") as app:
        api = FaultyApi(app, faults={"bulk": [(503, {"Retry-After": asked}, None)]})
        async with open_prefactor(make_config(), asgi_app=api) as client:
            async with client.agent_instance(**AGENT) as instance:
                await work(instance, 0, 2)
                with anyio.fail_after(4000):
                    await client.flush()
    assert client.statistics().lost == 0
