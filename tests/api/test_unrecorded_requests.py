"""Our own requests are neither in the log of httpx nor recorded by a tracer."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import anyio
import httpx
import pytest
from support.answering import http_answer, open_server
from support.harness import AGENT, FaultyApi, make_config, open_faulty_api, stored_runs

from prefactor_core import AgentInstanceHandle, PrefactorUnreachableError, open_prefactor, traced
from prefactor_core.client.connection import open_api


async def test_httpx_logs_the_requests_of_the_user_and_none_of_ours(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        # A request of the user, made while a request of ours is answered.
        async with httpx.AsyncClient(transport=httpx.MockTransport(_ok)) as http:
            await http.get("http://users.test/inside")
        await api(scope, receive, send)

    caplog.set_level(logging.INFO)
    with anyio.fail_after(10):
        async with open_faulty_api() as api, open_prefactor(make_config(), asgi_app=app) as client:
            async with client.agent_instance(**AGENT) as instance:
                async with instance.span("agent:llm"):
                    async with httpx.AsyncClient(transport=httpx.MockTransport(_ok)) as http:
                        await http.get("http://users.test/outside")
            await client.flush()
    lines = [record.getMessage() for record in caplog.records if record.name == "httpx"]
    assert [line for line in lines if "/outside" in line]
    assert [line for line in lines if "/inside" in line]
    assert [line for line in lines if "users.test" not in line] == []
    assert logging.getLogger("httpx").filters == []


def _ok(request: httpx.Request) -> httpx.Response:
    return httpx.Response(200)


@pytest.fixture
def tracing_of_all_requests() -> Iterator[list[str]]:
    """Like an instrumentation of httpx, make each request a span of the program's run."""
    urls: list[str] = []
    clients, send = (httpx.AsyncClient, httpx.Client), {}

    def note(function: Any) -> Any:
        def wrapper(self: Any, request: httpx.Request, **options: Any) -> Any:
            urls.append(str(request.url))
            return function(self, request, **options)

        return wrapper

    for client in clients:
        send[client] = client.send
        client.send = traced("agent:tool")(note(client.send))  # type: ignore[method-assign]
    yield urls
    for client in clients:
        client.send = send[client]  # type: ignore[method-assign]


async def test_tracing_httpx_records_no_request_that_records(
    tracing_of_all_requests: list[str],
) -> None:
    with anyio.fail_after(10):
        async with open_faulty_api() as api:
            async with open_prefactor(make_config(), asgi_app=api) as client:
                async with client.agent_instance(**AGENT):
                    async with httpx.AsyncClient(transport=httpx.MockTransport(_ok)) as http:
                        await http.get("http://users.test/")
                    await client.flush()
                    await client.flush()
            assert api.calls
            runs = await stored_runs(api)
    assert tracing_of_all_requests == ["http://users.test/"]
    assert [span.name for run in runs for span in run.spans.values()] == ["agent:tool"]


@pytest.mark.parametrize("when_full", ["drop", "wait"])
async def test_what_a_tracer_opens_in_a_request_of_ours_is_not_recorded(when_full: str) -> None:
    """A tracer of a whole program opens the span by its run, and not by its context."""
    runs: list[AgentInstanceHandle] = []

    async with open_faulty_api() as api:

        async def app(scope: Any, receive: Any, send: Any) -> None:
            for run in runs:
                async with run.span("agent:tool", payload={"a": 1}) as span:
                    with run.span("agent:run"):
                        await span.start()
                run.traced("agent:tool")(abs)(1)
                span_id = await run.create_span("agent:tool")
                await run.finish_span(span_id)
            await api(scope, receive, send)

        # With "wait", the worker that makes the request must not wait for itself.
        most = 3 if when_full == "wait" else 100
        config = make_config(queue={"when_full": when_full, "max_pending_operations": most})
        with anyio.fail_after(10):
            async with open_prefactor(config, asgi_app=app) as client:
                async with client.agent_instance(**AGENT) as instance:
                    runs.append(instance)
                    async with instance.span("agent:llm"):
                        async with instance.span("agent:llm"):
                            pass
                    for _ in range(3):
                        await client.flush()
                        assert client.statistics().open_bytes == 0
                    runs.clear()
            assert client.statistics().lost == 0
            (run,) = await stored_runs(api)
    assert run.shape == ("complete", [("agent:llm", "complete", [("agent:llm", "complete", [])])])


async def test_a_call_that_comes_after_the_connections_were_closed_opens_none() -> None:
    async with open_server(http_answer(200, b"{}")) as (address, requests):
        config = make_config(http={"api_url": f"http://{address}"}).http_config
        async with open_api(config) as api:
            await api.ping()
        with pytest.raises(PrefactorUnreachableError, match="the connections are closed"):
            await api.ping()
    assert len(requests) == 1


async def test_the_headers_of_a_request_are_the_usual_ones() -> None:
    async with open_faulty_api() as api:
        async with open_api(make_config().http_config, api) as calls:
            await calls.ping()
    (call,) = api.calls
    assert isinstance(api, FaultyApi)
    assert call.headers["user-agent"].startswith("python-httpx/")
    assert {"host", "accept", "accept-encoding", "connection", "authorization"} <= set(call.headers)
