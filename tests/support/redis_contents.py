"""What is on a Redis server, as a relay reads it; and commands to it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio

from prefactor_core.config.http import HttpClientConfig
from prefactor_core.operations import Operation
from prefactor_core.relay.entry import Entry, decode
from prefactor_core.relay.keys import SHARDS, Keys
from prefactor_core.relay.server import RedisServer, open_server


class Contents:
    """What ``server`` has under the keys of ``keys``."""

    def __init__(self, server: RedisServer, keys: Keys) -> None:
        self.keys = keys
        self._server = server

    async def do(self, *words: str | bytes | int) -> Any:
        return await self._server.run(*words)

    async def entries(self, shard: int) -> list[Entry]:
        found: Any = await self.do("XRANGE", self.keys.operations(shard), "-", "+")
        return [
            decode(id.decode(), dict(zip(fields[::2], fields[1::2], strict=True)))
            for id, fields in found
        ]

    async def by_shard(self) -> dict[int, list[Operation]]:
        """The operations of each shard that has any, without repetitions, in order."""
        found: dict[int, list[Operation]] = {}
        for shard in range(SHARDS):
            operations = [op for entry in await self.entries(shard) for op in entry.operations]
            if operations:
                found[shard] = list({op.idempotency_key: op for op in operations}.values())
        return found

    async def operations(self) -> list[Operation]:
        """Those of the only shard that has any."""
        (operations,) = (await self.by_shard()).values()
        return operations

    async def agents(self) -> dict[bytes, bytes]:
        """The heartbeats of the agents."""
        fields: Any = await self.do("HGETALL", self.keys.agents)
        return dict(fields)


@asynccontextmanager
async def contents_of(url: str) -> AsyncGenerator[Contents]:
    http = HttpClientConfig(url)
    assert http.redis is not None
    server = RedisServer(http.redis, http.api_token)
    with anyio.fail_after(60):
        async with open_server(server):
            yield Contents(server, Keys(http.redis.prefix))
