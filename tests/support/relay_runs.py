"""Agents that record through Redis, and what must be stored of them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from support.harness import AGENT, StoredRun, make_config, stored_runs
from support.redis_server import RedisServerProcess
from support.relayed import ServedApi, lag, leftovers, problems
from support.relays import until

from prefactor_core import PrefactorCoreClient, open_prefactor
from prefactor_core.local import open_local_prefactor

RUNS = 12
"""So many that half of the shards have one."""


@asynccontextmanager
async def recording(url: str, **options: Any) -> AsyncGenerator[PrefactorCoreClient]:
    """A client that is as quick as tests want it."""
    config = make_config(
        http={"api_url": url, "api_token": "", "max_retry_delay": 0.2},
        queue={"retry_delay_base": 0.02, "batch_window": 0.005},
        **{"registration_timeout": 1.0, "drain_timeout": 60.0, **options},
    )
    async with open_prefactor(config) as client:
        yield client


async def record(client: PrefactorCoreClient, runs: int = RUNS, **payload: object) -> list[str]:
    """Record runs of three nested spans; their ids."""
    ids: list[str] = []
    for _ in range(runs):
        async with client.agent_instance(**AGENT) as instance:
            ids.append(instance.id)
            async with instance.span("agent:run"):
                async with instance.span("agent:llm", payload=payload):
                    async with instance.span("agent:tool"):
                        pass
    return ids


SPAN = "agent:run", "complete", [("agent:llm", "complete", [("agent:tool", "complete", [])])]
WHOLE = "complete", [SPAN]
"""The shape of each of these runs, as it must be stored."""


async def stored(api: ServedApi) -> list[StoredRun]:
    async with open_local_prefactor(str(api.path)) as app:
        return await stored_runs(app)


async def all_is_there(api: ServedApi, redis: RedisServerProcess, runs: int) -> None:
    """Wait until all entries are settled; then each run must be there, whole and once."""
    await until(lambda: not lag(redis))
    wrong = problems(api, redis)
    assert not wrong, wrong
    shapes = [run.shape for run in await stored(api)]
    assert shapes == [WHOLE] * runs, shapes
    await until(lambda: not leftovers(redis))
