"""A server on a loopback socket that gives one answer, in whatever form that is."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
import anyio.abc

WAIT = 60


@asynccontextmanager
async def open_server(answer: bytes) -> AsyncGenerator[tuple[str, list[bytes]]]:
    """A TCP server that sends ``answer`` and hangs up: its address, and the requests."""
    requests: list[bytes] = []

    async def serve(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            request = b""
            while b"\r\n\r\n" not in request:
                request += await stream.receive()
            requests.append(request)
            await stream.send(answer)

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, serve)
        with anyio.fail_after(WAIT):
            yield f"127.0.0.1:{port}", requests
        group.cancel_scope.cancel()


def http_answer(status: int, body: bytes) -> bytes:
    return b"HTTP/1.1 %d Said\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)
