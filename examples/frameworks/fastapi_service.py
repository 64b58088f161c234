"""FastAPI: a run in an ``async def`` endpoint, and one in a ``def`` endpoint.

    pip install '.[local]' fastapi
    python examples/frameworks/fastapi_service.py      # fifty requests at once, without a server

The lifespan opens the client, and each endpoint enters a run of its own:

1. An ``async def`` endpoint runs in the event loop: ``async with client.agent_instance(...)``.
2. A ``def`` endpoint runs in a worker thread: ``with client.agent_instance(...)``. Entering waits
   in that thread until the loop has registered the run; nothing after that waits. A request that is
   cancelled does not stop its thread: the run ends when the endpoint returns. When Prefactor
   terminates the run, its next span raises ``PrefactorTerminatedError``.

A ``with`` in an ``async def`` endpoint would stop the loop that it waits for: it raises
``ClientScopeError``. ``web_service.py`` has the run in a middleware instead, for all endpoints.

It records in memory and prints what was stored. A real service says ``open_prefactor()`` in place
of ``recording.open()``.

For each of the fifty requests, it leaves this tree::

    complete
    agent:run complete
      agent:tool_call complete
      agent:tool_call complete
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
import httpx
from fastapi import FastAPI, Request

from prefactor_core import AgentInstanceHandle, PrefactorCoreClient
from prefactor_core.span_types import AgentRun, AgentRunResult, ToolCall, ToolResult, standard_types
from prefactor_core.testing import open_recording

AGENT = {"agent_id": "fastapi", "agent_version": {"name": "FastAPI service"}}
HEIGHTS = {"K2": 8611, "Lhotse": 8516}


async def height(instance: AgentInstanceHandle, mountain: str) -> int:
    async with instance.span(ToolCall(tool="height", arguments={"of": mountain})) as span:
        await anyio.sleep(0.01)
        span.set_result(ToolResult(output=HEIGHTS[mountain]))
    return HEIGHTS[mountain]


def height_in_a_thread(instance: AgentInstanceHandle, mountain: str) -> int:
    with instance.span(ToolCall(tool="height", arguments={"of": mountain})) as span:
        time.sleep(0.01)
        span.set_result(ToolResult(output=HEIGHTS[mountain]))
    return HEIGHTS[mountain]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    with open_recording() as app.state.recording:
        async with app.state.recording.open(schema_registry=standard_types()) as client:
            app.state.prefactor = client
            yield
        app.state.outlines = [run.outline for run in app.state.recording.runs]


app = FastAPI(lifespan=lifespan)


@app.get("/async/{question}")
async def ask(question: str, request: Request) -> int:
    client: PrefactorCoreClient = request.app.state.prefactor
    async with client.agent_instance(**AGENT) as instance:
        async with instance.span(AgentRun(input=question)) as run:
            difference = await height(instance, "K2") - await height(instance, "Lhotse")
            run.set_result(AgentRunResult(output=difference))
    return difference


@app.get("/thread/{question}")
def ask_in_a_thread(question: str, request: Request) -> int:
    client: PrefactorCoreClient = request.app.state.prefactor
    with client.agent_instance(**AGENT) as instance:
        with instance.span(AgentRun(input=question)) as run:
            difference = height_in_a_thread(instance, "K2") - height_in_a_thread(instance, "Lhotse")
            run.set_result(AgentRunResult(output=difference))
    return difference


async def main() -> None:
    """What a server does: the lifespan, and requests inside of it."""
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as http:
            async with anyio.create_task_group() as requests:
                for number in range(25):
                    requests.start_soon(http.get, f"/async/{number}")
                    requests.start_soon(http.get, f"/thread/{number}")
    (outline,) = set(app.state.outlines)  # all have the same
    assert len(app.state.outlines) == 50
    print(outline)


if __name__ == "__main__":
    anyio.run(main)
