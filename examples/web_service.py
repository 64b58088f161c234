"""A web service: one client for the application, one run for each request.

    uvicorn web_service:app --app-dir examples     # a server; then ask for /ask or /blocking
    python examples/web_service.py                 # two requests without a server; or with: trio

Only the server needs uvicorn: ``pip install uvicorn``.

The lifespan of the application opens the client and closes it. Starlette, and FastAPI with it,
runs a lifespan in one task, so ``async with`` fits. Where a framework starts and stops in
different tasks, call ``await client.initialize()`` and ``await client.close()`` instead
(``notebook.py``).

Each request is a task of its own. The middleware below gives each a run, which is the current one
for everything that the request calls: ``@traced`` functions find it, and so does
``current_instance()``. An ``async def`` endpoint runs in the task of the request. A ``def``
endpoint runs in a worker thread, which gets a copy of the request's context: its spans are in the
same run. (Without the middleware, an endpoint enters a run of its own: by ``async with``, or in a
``def`` endpoint by ``with``, as in ``frameworks/fastapi_service.py``.)

An endpoint that raises leaves its run ``failed``. A client that disconnects has the request
cancelled by some servers; the run ends as ``cancelled`` then. If the API is away, the
registration of a run waits for ``registration_timeout`` seconds at most, and during an outage not
at all; after that a request notices nothing.

With several worker processes (``uvicorn --workers 4``, gunicorn) each process opens its own
client in its own lifespan. They may share one ``local:`` file.

For each request, it leaves this tree::

    complete
    agent:request complete
      agent:lookup complete
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
import httpx
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from prefactor_core import PrefactorCoreClient, SchemaRegistry, open_prefactor, traced

API_URL = os.environ.get("PREFACTOR_API_URL") or "local::memory:"

registry = SchemaRegistry()
registry.register("agent:request", {"type": "object"})
registry.register("agent:lookup", {"type": "object"})


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncGenerator[None]:
    async with open_prefactor(api_url=API_URL, schema_registry=registry) as client:
        app.state.prefactor = client
        yield


class RunPerRequest:
    """Gives each request a run of its own."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        client: PrefactorCoreClient = scope["app"].state.prefactor
        async with client.agent_instance("web-service", {"name": "Web service"}) as instance:
            with instance.span("agent:request", payload={"path": scope["path"]}):
                await self.app(scope, receive, send)


@traced("agent:lookup")
async def look_up(question: str) -> str:
    await anyio.sleep(0.01)
    return "Olympus Mons"


@traced("agent:lookup")
def look_up_slowly(question: str) -> str:
    time.sleep(0.01)
    return "Olympus Mons"


async def ask(request: Request) -> PlainTextResponse:
    return PlainTextResponse(await look_up("Which mountain is higher?"))


def blocking(request: Request) -> PlainTextResponse:
    """Starlette calls a ``def`` endpoint in a worker thread."""
    return PlainTextResponse(look_up_slowly("Which mountain is higher?"))


app = Starlette(
    routes=[Route("/ask", ask), Route("/blocking", blocking)],
    middleware=[Middleware(RunPerRequest)],
    lifespan=lifespan,
)


async def main() -> None:
    """What a server does: the lifespan, and requests inside of it."""
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as http:
            for path in ("/ask", "/blocking"):
                response = await http.get(path)
                print(f"{path}: {response.raise_for_status().text}")


if __name__ == "__main__":
    anyio.run(main, backend=sys.argv[1] if len(sys.argv) > 1 else "asyncio")
