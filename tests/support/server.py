"""The local Prefactor on a port of the loopback interface, in a thread of its own."""

from __future__ import annotations

import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import uvicorn

from prefactor_core.local import Faults, LocalPrefactor, open_local_prefactor

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application


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
    # A connection that is dropped on purpose is an error to uvicorn: it would log it.
    options = uvicorn.Config(_not_yet, lifespan="off", log_level="critical", ws="none")
    server = uvicorn.Server(options)

    async def serve() -> None:
        async with open_local_prefactor(
            str(path), api_token=api_token, agents=agents, faults=faults
        ) as app:
            options.app = _noting(app, requests, headers)
            await server.serve(sockets=[listener])

    # Made as TCP and no other way, or asyncio leaves Nagle's algorithm on.
    with socket.socket(proto=socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        # The kernel takes connections from here on: nobody has to wait for the server.
        listener.listen()
        thread = threading.Thread(target=anyio.run, args=(serve,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(10)


def _noting(
    app: LocalPrefactor, requests: list[str] | None, headers: list[str] | None
) -> ASGI3Application:
    async def noting(scope: Any, receive: Any, send: Any) -> None:
        if requests is not None:
            requests.append(f"{scope['path']}?{scope['query_string'].decode()}")
        if headers is not None:
            headers.extend(name.decode() for name, _ in scope["headers"])
        await app(scope, receive, send)

    return noting


async def _not_yet(scope: object, receive: object, send: object) -> None:
    raise NotImplementedError
