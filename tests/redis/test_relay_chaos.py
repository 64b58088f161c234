"""Relays that are killed and paused: what the API gets is what the agent wrote, in its order, once.

``--minute``: 120 disturbances of the command's relays, and tests in which all parts fail at once;
else 6 of relays with a short lease. What is random is repeated by ``--seed``.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import anyio
import pytest
from support.agent_process import agent_process
from support.harness import StoredRun, stored_quality, stored_runs
from support.redis_server import RedisServerProcess
from support.relay_agent import GROUPS, LEAVES, OPERATIONS, RUNS, STEPS, agent_id
from support.relayed import ServedApi, lag, leftovers, problems, served_api
from support.relays import RelayProcesses, relay_on, relay_processes, the_command, wait_until

from prefactor_core.local import Faults, open_local_prefactor

RELAYS = 3
PAUSE = 0.5
"""Seconds between two disturbances."""
APIS = {
    "whole": Faults(),
    "without given ids": Faults(given_ids=False),
    "without bulk": Faults(bulk=False),
}


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    seed = request.config.getoption("--seed") or random.randrange(1, 1 << 32)
    print(f"--seed {seed}")  # noqa: T201
    return random.Random(seed)


@pytest.fixture
def has_time(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--minute"))


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_relays_killed_and_paused_bring_each_operation_once_and_in_order(
    redis: RedisServerProcess,
    api: ServedApi,
    backend: str,
    tmp_path: Path,
    chance: random.Random,
    has_time: bool,
) -> None:
    start = the_command if has_time else partial(relay_on, backend)
    with relay_processes(start(redis.url, api.url), RELAYS, tmp_path) as relays:
        disturbances = [partial(relays.disturb, chance)] * (120 if has_time else 6)
        record_and_disturb(redis, backend, tmp_path, relays, disturbances)
    assert leftovers(redis) == []
    assert problems(api, redis) == []
    assert anyio.run(wrongly_stored, api.path) == []


@pytest.mark.minute
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("name", APIS)
def test_relays_redis_and_the_api_fail_at_once_and_each_operation_is_there_once_and_in_order(
    redis: RedisServerProcess,
    backend: str,
    name: str,
    tmp_path: Path,
    chance: random.Random,
) -> None:
    with (
        served_api(tmp_path / "prefactor.db", faults=APIS[name]) as api,
        relay_processes(relay_on(backend, redis.url, api.url), RELAYS, tmp_path) as relays,
    ):

        def lose_answers() -> None:
            api.faulty.lost_answers += 3

        def toggle_the_api() -> None:
            api.faulty.away = not api.faulty.away

        others = [lose_answers, toggle_the_api, redis.restart, redis.pause, redis.resume]
        kinds = [partial(relays.disturb, chance)] * len(others) + others
        # At the end all serve again.
        ends = [partial(setattr, api.faulty, "away", False), redis.resume]
        disturbances = [*chance.choices(kinds, k=60), *ends]
        record_and_disturb(redis, backend, tmp_path, relays, disturbances)
        assert leftovers(redis) == []
        # An API without an ability refuses what needs it; then relays do without.
        assert problems(api, redis, refuses=name != "whole") == []
    assert anyio.run(wrongly_stored, api.path) == []


def record_and_disturb(
    redis: RedisServerProcess,
    backend: str,
    folder: Path,
    relays: RelayProcesses,
    disturbances: Sequence[Callable[[], object]],
) -> None:
    """Let an agent record, a part before each disturbance, and wait until relays have sent all."""
    with agent_process(redis.url, backend, folder / "agent.log") as agent:
        # Before the first has announced itself, there would be nothing to disturb.
        wait_until(lambda: redis.cli("EXISTS", "pf:relays"))
        for number, disturb in enumerate(disturbances, 1):
            agent.go_on(STEPS * number // len(disturbances))
            disturb()
            time.sleep(PAUSE)
        statistics = agent.end()
        relays.resume()
        wait_until(lambda: not lag(redis))
        relays.stop()
    assert (statistics["accepted"], statistics["delivered"]) == (OPERATIONS, OPERATIONS)


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
