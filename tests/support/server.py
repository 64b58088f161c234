"""Servers on ports of the loopback interface, each with a loop in a thread of its own."""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
from starlette.types import ASGIApp

from prefactor_core.local import Faults, open_local_prefactor
from prefactor_core.queue.event_loop import run_soon_here


async def on_hypercorn(app: Any, listener: socket.socket, stopping: anyio.Event) -> None:
    """Serve until ``stopping`` is set, on trio."""
    import hypercorn.trio

    config = hypercorn.Config()
    config.bind = [f"fd://{listener.detach()}"]
    # A connection that is dropped on purpose is an error to a server: it would log it.
    config.errorlog = None
    config.graceful_timeout = 1
    await hypercorn.trio.serve(app, config, shutdown_trigger=stopping.wait)


async def on_uvicorn(app: Any, listener: socket.socket, stopping: anyio.Event) -> None:
    """Serve until ``stopping`` is set, on asyncio."""
    import uvicorn

    config = uvicorn.Config(
        app,
        lifespan="off",
        ws="none",
        log_config=None,
        log_level="critical",
        access_log=False,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.serve, [listener])
        await stopping.wait()
        server.should_exit = True


SERVERS = {"hypercorn": ("trio", on_hypercorn), "uvicorn": ("asyncio", on_uvicorn)}


@contextmanager
def serving_app(
    opening: AbstractAsyncContextManager[ASGIApp], server: str = "uvicorn"
) -> Generator[int]:
    """Open an app on the loop of a ``server``, and serve it until the block is left; its port."""
    backend, serve = SERVERS[server]
    stop: Future[Callable[[], None]] = Future()

    async def run() -> None:
        stopping = anyio.Event()
        stop.set_result(partial(run_soon_here(), stopping.set))
        async with opening as app:
            await serve(app, listener, stopping)

    # Made as TCP and no other way, or asyncio leaves Nagle's algorithm on.
    listener = socket.socket(proto=socket.IPPROTO_TCP)
    with listener, ThreadPoolExecutor(1) as thread:
        listener.bind(("127.0.0.1", 0))
        # The kernel takes connections from here on: nobody has to wait for the server.
        listener.listen()
        port: int = listener.getsockname()[1]
        ended = thread.submit(anyio.run, run, backend=backend)
        try:
            yield port
        finally:
            stop.result(10)()
            ended.result(10)


@contextmanager
def serve_local_prefactor(
    path: Path,
    *,
    api_token: str,
    agents: tuple[str, ...],
    faults: Faults | None = None,
    requests: list[str] | None = None,
    headers: list[str] | None = None,
) -> Generator[str]:
    """Serves the database ``path`` until the block is left; gives the URL. ``requests`` gets what
    is asked for: path and query; ``headers`` the names of the headers, in lower case."""

    @asynccontextmanager
    async def opening() -> AsyncGenerator[ASGIApp]:
        async with open_local_prefactor(
            str(path), api_token=api_token, agents=agents, faults=faults
        ) as app:
            yield _noting(app, requests, headers)

    with serving_app(opening()) as port:
        yield f"http://127.0.0.1:{port}"


def _noting(app: ASGIApp, requests: list[str] | None, headers: list[str] | None) -> ASGIApp:
    async def noting(scope: Any, receive: Any, send: Any) -> None:
        if requests is not None:
            requests.append(f"{scope['path']}?{scope['query_string'].decode()}")
        if headers is not None:
            headers.extend(name.decode() for name, _ in scope["headers"])
        await app(scope, receive, send)

    return noting
