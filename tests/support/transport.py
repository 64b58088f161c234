"""The way of a request to an app: inside this process, or with ``--served-by`` through a server."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import ExitStack, asynccontextmanager, nullcontext

import httpx
from starlette.types import ASGIApp
from support.server import serving_app

served_by: str | None = None
"""The name of the server, which the option sets."""


@asynccontextmanager
async def http_to(app: ASGIApp, base_url: str, **headers: str) -> AsyncGenerator[httpx.AsyncClient]:
    """A client of ``app``, as if that were served at ``base_url``."""
    with ExitStack() as stack:
        transport: httpx.AsyncBaseTransport = httpx.ASGITransport(app)
        if served_by is not None:
            transport = _Port(stack.enter_context(serving_app(nullcontext(app), served_by)))
        async with httpx.AsyncClient(
            transport=transport, base_url=base_url, headers=headers
        ) as http:
            yield http


class _Port(httpx.AsyncHTTPTransport):
    """Sends the requests for any host to a ``port`` of the loopback interface."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self._port = port

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        request.url = request.url.copy_with(host="127.0.0.1", port=self._port)
        return await super().handle_async_request(request)
