"""Relay: a stub, until the real one is on main."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import datetime

import anyio
from msgspec import Struct

from prefactor_core.config import HttpClientConfig, QueueConfig
from prefactor_core.config.redis import RedisAddress


class RelayConfig(Struct, kw_only=True):
    http_config: HttpClientConfig
    redis: RedisAddress
    redis_password: str = ""
    name: str = "a-relay"
    bury_after: float = 300.0
    poll_interval: float = 5.0
    lease: float = 5.0
    queue_config: QueueConfig


class RelayStatistics(Struct, frozen=True, kw_only=True):
    name: str
    shards: list[int]
    delivered: int
    refused: int
    requests: int
    retries: int
    pending: int
    outage_since: datetime | None
    last_error: str | None
    buried: int
    terminated: int


class Relay:
    def __init__(self) -> None:
        self._stopped = anyio.Event()

    async def run(self) -> None:
        await self._stopped.wait()

    def stop(self) -> None:
        self._stopped.set()

    def statistics(self) -> RelayStatistics:
        return RelayStatistics(
            name="a-relay",
            shards=[],
            delivered=0,
            refused=0,
            requests=0,
            retries=0,
            pending=0,
            outage_since=None,
            last_error=None,
            buried=0,
            terminated=0,
        )


@asynccontextmanager
async def open_relay(config: RelayConfig) -> AsyncGenerator[Relay]:
    yield Relay()
