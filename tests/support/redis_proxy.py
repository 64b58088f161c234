"""A proxy before a Redis server that loses answers."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from tempfile import TemporaryDirectory

import anyio
from anyio.abc import SocketStream
from support.redis_server import RedisServerProcess


@dataclass
class RedisProxy:
    """Listens at ``url``. The answers to ``left`` requests that have ``marker`` in them are lost,
    and their connections with them; the server has carried them out."""

    url: str
    marker: bytes = b""
    left: int = 0


@asynccontextmanager
async def redis_proxy(redis: RedisServerProcess) -> AsyncGenerator[RedisProxy]:
    with TemporaryDirectory(prefix="proxy-") as folder:
        path = f"{folder}/proxy.sock"
        proxy = RedisProxy(f"unix://{path}")

        async def handle(client: SocketStream) -> None:
            async with client, await anyio.connect_unix(redis.socket) as server:
                loses = anyio.Event()
                async with anyio.create_task_group() as tasks:

                    async def answer() -> None:
                        with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                            while True:
                                data = await server.receive()
                                if loses.is_set():
                                    break
                                await client.send(data)
                        tasks.cancel_scope.cancel()

                    tasks.start_soon(answer)
                    with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                        while True:
                            data = await client.receive()
                            if proxy.left and proxy.marker in data:
                                proxy.left -= 1
                                loses.set()
                            await server.send(data)
                    tasks.cancel_scope.cancel()

        async with await anyio.create_unix_listener(path) as listener:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(listener.serve, handle)
                yield proxy
                tasks.cancel_scope.cancel()
