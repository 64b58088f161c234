"""Bulk requests: what shares one, what the API lacks or refuses of them, and what is too large."""

from __future__ import annotations

import msgspec
import pytest
from support.harness import AGENT, make_config, stored_run

from prefactor_core import AgentInstanceHandle, open_prefactor
from prefactor_core.api.client import AsgiApp, AsgiMessage
from prefactor_core.local import Faults, open_local_prefactor

pytestmark = pytest.mark.virtual_time

STEP = ("agent:run", "complete", [("agent:tool", "complete", [])])


class Log:
    """Writes down the paths of the requests, without ids."""

    def __init__(self, app: AsgiApp) -> None:
        self.app = app
        self.calls: list[str] = []

    async def __call__(self, scope: AsgiMessage, receive: object, send: object) -> None:
        self.calls.append(scope["path"].rsplit("/", 1)[-1])
        await self.app(scope, receive, send)  # type: ignore[arg-type]


async def work(instance: AgentInstanceHandle, steps: int, size: int = 1) -> None:
    for _ in range(steps):
        async with instance.span("agent:run", payload={"text": "x" * size}) as span:
            async with instance.span("agent:tool"):
                pass
            span.set_result({"text": "y" * size})


async def test_a_run_without_faults_takes_two_requests() -> None:
    async with open_local_prefactor(":memory:") as app:
        api = Log(app)
        async with open_prefactor(make_config(), asgi_app=api) as client:
            async with client.agent_instance(**AGENT) as instance:
                await work(instance, 50)
        assert api.calls == ["register", "bulk"]
        assert (await stored_run(app)).shape == ("complete", [STEP] * 50)
    statistics = client.statistics()
    assert statistics.requests == 2
    # Each outer span is sent when the inner one is, and ends later.
    assert statistics.merged == 50
    assert statistics.delivered == statistics.accepted == 2 + 50 * 3 + 1


async def test_requests_are_bounded_by_operations_and_by_bytes() -> None:
    async with open_local_prefactor(":memory:") as app:
        for bound in ({"max_batch_operations": 30}, {"max_batch_bytes": 20_000}):
            async with open_prefactor(make_config(queue=bound), asgi_app=app) as client:
                async with client.agent_instance(**AGENT) as instance:
                    await work(instance, 100, size=100)
            assert client.statistics().lost == 0
            assert 5 <= client.statistics().requests <= 15


@pytest.mark.parametrize(
    "known",
    [
        [],
        ["agent_spans/create", "agent_spans/finish"],
        ["agent_instances/start", "agent_instances/finish"],
        ["agent_spans/create"],
    ],
)
async def test_what_bulk_does_not_know_goes_by_single_calls_from_then_on(known: list[str]) -> None:
    async with open_local_prefactor(":memory:", faults=Faults(bulk_types=known)) as app:
        api = Log(app)
        async with open_prefactor(make_config(drain_timeout=60), asgi_app=api) as client:
            for _ in range(5):
                async with client.agent_instance(**AGENT) as instance:
                    async with instance.span("agent:run") as span:
                        await span.start()
                        await client.flush()
                    await work(instance, 5)
                await client.flush()
            seen = len(api.calls)
            async with client.agent_instance(**AGENT) as instance:
                await work(instance, 5)
        assert client.statistics().lost == 0
        assert client.statistics().retries == 0
        # By now it is known: nothing is tried in vain any more.
        refused_before = app.refusals["validation_errors"]
        assert refused_before <= 2 * 4
        singles = {"start", "finish", "agent_spans"} & set(api.calls[seen:])
        if not known:
            assert "bulk" not in api.calls[seen:]
        elif known == ["agent_spans/create", "agent_spans/finish"]:
            assert singles == {"start", "finish"}


async def test_an_api_without_bulk_gets_single_calls(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "prefactor_core")
    async with open_local_prefactor(":memory:", faults=Faults(bulk=False)) as app:
        api = Log(app)
        async with open_prefactor(make_config(drain_timeout=60), asgi_app=api) as client:
            async with client.agent_instance(**AGENT) as instance:
                async with instance.span("agent:run"):
                    async with instance.span("agent:tool"):
                        pass
                    # Only now come the ends: types that were in no request before.
                    await client.flush()
        assert api.calls.count("bulk") == 1
        assert (await stored_run(app)).shape == ("complete", [STEP])
    assert client.statistics().lost == 0
    assert [r.getMessage() for r in caplog.records if "no bulk" in r.getMessage()]


async def test_a_span_whose_parent_the_api_does_not_know_is_kept_without_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with open_local_prefactor(":memory:") as app:
        async with open_prefactor(make_config(), asgi_app=app) as client:
            async with client.agent_instance(**AGENT) as instance:
                async with instance.span("agent:run"):
                    nobody = instance.id[:-4] + "0000"
                    for _ in range(2):
                        async with instance.span("agent:llm", parent_span_id=nobody) as stray:
                            await stray.start()
                            async with instance.span("agent:tool"):
                                pass
        shape = (await stored_run(app)).shape
    stray_step = ("agent:llm", "complete", [("agent:tool", "complete", [])])
    assert shape == ("complete", [("agent:run", "complete", []), stray_step, stray_step])
    assert client.statistics().lost == 0
    assert sum("without the parent" in r.getMessage() for r in caplog.records) == 1


async def test_a_request_that_is_too_large_is_split_and_the_bound_is_learned() -> None:
    async with open_local_prefactor(":memory:", faults=Faults(max_body_bytes=40_000)) as app:
        async with open_prefactor(make_config(), asgi_app=app) as client:
            async with client.agent_instance(**AGENT) as instance:
                await work(instance, 200, size=200)
        assert (await stored_run(app)).shape == ("complete", [STEP] * 200)
        assert client.statistics().lost == 0
        assert app.refusals["payload_too_large"] <= 6


async def test_the_bound_is_learned_from_the_request_that_was_too_large() -> None:
    async with open_local_prefactor(":memory:", faults=Faults(max_body_bytes=5_000)) as app:
        async with open_prefactor(make_config(), asgi_app=app) as client:
            async with client.agent_instance(**AGENT) as instance:
                await work(instance, 4, size=200)
        assert client.statistics().lost == 0
        assert app.refusals["payload_too_large"] == 1


async def test_a_single_operation_that_is_too_large_keeps_its_span_and_loses_its_payload() -> None:
    async with open_local_prefactor(":memory:", faults=Faults(max_body_bytes=5_000)) as app:
        async with open_prefactor(make_config(), asgi_app=app) as client:
            async with client.agent_instance(**AGENT) as instance:
                async with instance.span("agent:llm", payload={"text": "x" * 6_000}) as span:
                    span.set_result({"text": "y" * 100})
                async with instance.span("agent:tool", payload={"text": "x" * 6_000}) as span:
                    span.set_result({"text": "y" * 8_000})
                async with instance.span("agent:run") as span:
                    await span.start({"text": "short"})
                    await client.flush()
                    span.set_result({"text": "y" * 8_000})
        run = await stored_run(app)
    assert client.statistics().lost == 0
    assert client.statistics().pending_bytes == 0
    assert run.status == "complete"
    llm, tool, outer = (run.named(name) for name in ("agent:llm", "agent:tool", "agent:run"))
    assert llm.payload["$truncated"]["bytes"] > 6_000
    assert llm.result == {"text": "y" * 100}
    assert tool.payload["$truncated"]["bytes"] > 6_000
    assert tool.result["$truncated"]["bytes"] > 8_000
    assert outer.payload == {"text": "short"}
    assert outer.result["$truncated"]["bytes"] > 8_000
    assert {span.status for span in run.spans.values()} == {"complete"}


async def test_an_operation_that_was_sent_is_not_merged_any_more() -> None:
    """Its key would stand for two requests."""
    async with open_local_prefactor(":memory:") as app:
        async with open_prefactor(make_config(drain_timeout=60), asgi_app=app) as client:
            async with client.agent_instance(**AGENT) as instance:
                app.faults.drop_rate = 1.0
                async with instance.span("agent:run", payload={"n": 1}) as span:
                    await span.start()
                    while client.statistics().retries < 3:
                        await _a_while()
                app.faults.drop_rate = 0.0
        assert (await stored_run(app)).shape == ("complete", [("agent:run", "complete", [])])
        assert app.refusals == {}
    assert client.statistics().lost == 0


async def _a_while() -> None:
    import anyio

    await anyio.sleep(0.5)


async def test_bulk_answers_that_say_nothing_are_a_failure_and_no_loop() -> None:
    async def app(scope: AsgiMessage, receive: object, send: object) -> None:
        if scope["path"].endswith("bulk"):
            body = msgspec.json.encode({"status": "success", "outputs": {}})
            await send({"type": "http.response.start", "status": 200, "headers": []})  # type: ignore[operator]
            await send({"type": "http.response.body", "body": body})  # type: ignore[operator]
        else:
            await local(scope, receive, send)  # type: ignore[arg-type]

    async with open_local_prefactor(":memory:") as local:
        async with open_prefactor(make_config(drain_timeout=300), asgi_app=app) as client:  # type: ignore[arg-type]
            async with client.agent_instance(**AGENT) as instance:
                await work(instance, 2)
        assert (await stored_run(local)).shape == ("complete", [STEP] * 2)
    assert client.statistics().requests < 60
    assert client.statistics().lost == 0
