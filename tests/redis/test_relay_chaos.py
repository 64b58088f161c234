"""Relays that are killed and paused: what the API gets is what the agent wrote, in its order, once.

``--minute``: 120 disturbances of the command's relays; else 6 of relays with a short lease. What
is random is repeated by ``--seed``.
"""

from __future__ import annotations

import random
import time
from pathlib import Path

import anyio
import pytest
from support.agent_process import agent_process
from support.harness import StoredRun, stored_quality, stored_runs
from support.redis_server import RedisServerProcess
from support.relay_agent import GROUPS, LEAVES, OPERATIONS, RUNS, STEPS, agent_id
from support.relayed import ServedApi, lag, leftovers, problems
from support.relays import relay_on, relay_processes, the_command, wait_until

from prefactor_core.local import open_local_prefactor

RELAYS = 3
PAUSE = 0.5
"""Seconds between two disturbances."""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_relays_killed_and_paused_bring_each_operation_once_and_in_order(
    redis: RedisServerProcess,
    api: ServedApi,
    backend: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    full = request.config.getoption("--minute")
    disturbances = 120 if full else 6
    command = the_command(redis.url, api.url) if full else relay_on(backend, redis.url, api.url)
    seed = request.config.getoption("--seed") or random.randrange(1, 1 << 32)
    print(f"--seed {seed}")  # noqa: T201
    chance = random.Random(seed)
    with (
        relay_processes(command, RELAYS, tmp_path) as relays,
        agent_process(redis.url, backend, tmp_path / "agent.log") as agent,
    ):
        # Before the first has announced itself, there would be nothing to disturb.
        wait_until(lambda: redis.cli("EXISTS", "pf:relays"))
        for number in range(1, disturbances + 1):
            agent.go_on(STEPS * number // disturbances)
            relays.disturb(chance)
            time.sleep(PAUSE)
        statistics = agent.end()
        relays.resume()
        wait_until(lambda: not lag(redis))
        relays.stop()
    assert (statistics["accepted"], statistics["delivered"]) == (OPERATIONS, OPERATIONS)
    assert problems(api, redis) == []
    assert leftovers(redis) == []
    assert anyio.run(wrongly_stored, api.path) == []


async def wrongly_stored(path: Path) -> list[str]:
    """The runs that are not stored as the agent recorded them."""
    wrong: list[str] = []
    async with open_local_prefactor(str(path)) as app:
        for number in range(RUNS):
            runs = await stored_runs(app, agent_id(number))
            shapes = [shape(run) for run in runs]
            if shapes != [expected_shape()]:
                wrong.append(f"{agent_id(number)}: {shapes}")
            for run in runs:
                quality = await stored_quality(app, run.id)
                if quality != {"first": {"run": number}, "last": {"run": number}}:
                    wrong.append(f"{agent_id(number)}: {quality}")
    return wrong


def shape(run: StoredRun) -> object:
    return run.status, [
        (
            (outer.name, outer.status, outer.payload, outer.result),
            [
                (inner.name, inner.status, inner.payload, inner.result)
                for inner in sorted(outer.children, key=lambda inner: inner.payload["leaf"])
            ],
        )
        for outer in sorted(run.roots, key=lambda outer: outer.payload["n"])
    ]


def expected_shape() -> object:
    return "complete", [
        (
            ("agent:run", "complete", {"n": group}, {"of": group}),
            [
                ("agent:llm", "complete", {"n": group, "leaf": leaf}, {"of": leaf})
                for leaf in range(LEAVES)
            ],
        )
        for group in range(GROUPS)
    ]
