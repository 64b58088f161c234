"""Fifty requests at once to a web service: each has a run of its own, with its own tree."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from prefactor_core import PrefactorCoreClient, current_instance, traced
from prefactor_core.testing import Recording

REQUESTS = 50
AGENT = {"agent_id": "service", "agent_version": {"name": "Service"}}


@traced("agent:lookup")
async def look_up(number: str) -> str:
    await anyio.lowlevel.checkpoint()
    return number


@traced("agent:lookup")
def look_up_in_a_thread(number: str) -> str:
    return number


async def ask(request: Request) -> PlainTextResponse:
    client: PrefactorCoreClient = request.app.state.prefactor
    async with client.agent_instance(**AGENT) as instance:
        async with instance.span("agent:request", payload=dict(request.path_params)):
            async with anyio.create_task_group() as tools:
                for _ in range(2):
                    tools.start_soon(look_up, request.path_params["number"])
    return PlainTextResponse(instance.id)


def ask_in_a_thread(request: Request) -> PlainTextResponse:
    client: PrefactorCoreClient = request.app.state.prefactor
    with client.agent_instance(**AGENT) as instance:
        with instance.span("agent:request", payload=dict(request.path_params)):
            look_up_in_a_thread(request.path_params["number"])
            look_up_in_a_thread(request.path_params["number"])
    return PlainTextResponse(instance.id)


def service(recording: Recording) -> Starlette:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None]:
        async with recording.open() as client:
            app.state.prefactor = client
            yield
        assert client.statistics().lost == 0

    return Starlette(
        routes=[Route("/async/{number}", ask), Route("/thread/{number}", ask_in_a_thread)],
        lifespan=lifespan,
    )


@pytest.mark.parametrize("kind", ["async", "thread"])
async def test_fifty_requests_at_once_have_each_its_own_tree(
    prefactor: Recording, kind: str
) -> None:
    answers = dict[str, str]()

    async def request(http: httpx.AsyncClient, number: str) -> None:
        response = await http.get(f"/{kind}/{number}")
        answers[response.raise_for_status().text] = number
        assert current_instance() is None

    app = service(prefactor)
    with anyio.fail_after(30):
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://here") as http:
                async with anyio.create_task_group() as tasks:
                    for number in range(REQUESTS):
                        tasks.start_soon(request, http, str(number))
    runs = prefactor.runs
    assert len(answers) == len(runs) == REQUESTS
    for run in runs:
        assert run.outline == (
            "complete\nagent:request complete\n  agent:lookup complete\n  agent:lookup complete"
        )
        assert {span.payload["number"] for span in run.spans} == {answers[run.id]}
