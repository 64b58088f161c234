"""An agent in a process of its own, which records many runs at once, a part each time it is told.

``python -m support.relay_agent URL BACKEND``; each line of its input lets it go on a bit; it prints
its statistics when all is delivered.
"""

from __future__ import annotations

import logging
import sys

import anyio
import anyio.to_thread
import msgspec
from support.harness import make_registry

from prefactor_core import PrefactorCoreClient, open_prefactor

RUNS = 40
GROUPS = 20
"""Spans with children, in each run."""
LEAVES = 4
QUALITIES = "first", "last"
OPERATIONS = RUNS * (2 + 2 + GROUPS * (2 + LEAVES) + 1)
"""What a run is, its registration, start and finish, two quality payloads, its spans."""
STEPS = RUNS * GROUPS * 2
"""Places where the agent waits until it is let go on."""


def agent_id(run: int) -> str:
    return f"agent-{run}"


class Gate:
    """Lets the first so many steps pass."""

    def __init__(self) -> None:
        self._open = 0
        self._changed = anyio.Event()

    async def wait(self, step: int) -> None:
        while step >= self._open:
            await self._changed.wait()

    def open(self, steps: int) -> None:
        self._open = steps
        self._changed.set()
        self._changed = anyio.Event()


async def record(client: PrefactorCoreClient, gate: Gate, run: int) -> None:
    """One run: a tree whose spans say their numbers, so that none is missed."""
    async with client.agent_instance(agent_id(run), {"name": "An agent"}) as instance:
        first, last = QUALITIES
        await instance.record_quality(first, {"run": run})
        for group in range(GROUPS):
            await gate.wait(2 * group * RUNS + run)
            async with instance.span("agent:run", payload={"n": group}) as outer:
                for leaf in range(LEAVES):
                    if leaf == LEAVES // 2:
                        await gate.wait((2 * group + 1) * RUNS + run)
                    async with instance.span(
                        "agent:llm", payload={"n": group, "leaf": leaf}
                    ) as llm:
                        llm.set_result({"of": leaf})
                outer.set_result({"of": group})
        await instance.record_quality(last, {"run": run})


async def main(url: str) -> None:
    gate, registry = Gate(), make_registry()
    for name in QUALITIES:
        registry.register_quality_schema(name, {"type": "object"})
    async with open_prefactor(
        api_url=url,
        schema_registry=registry,
        drain_timeout=300,
        queue_config={"batch_window": 0.02},
    ) as client:
        async with anyio.create_task_group() as tasks:
            for run in range(RUNS):
                tasks.start_soon(record, client, gate, run)
            while line := await anyio.to_thread.run_sync(sys.stdin.readline):
                gate.open(int(line))
    sys.stdout.buffer.write(msgspec.json.encode(client.statistics()))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    anyio.run(main, sys.argv[1], backend=sys.argv[2])
