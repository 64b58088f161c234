"""Awaited calls give the event loop a turn when it has had none for a millisecond, and no more.

Bounds are numbers of calls, not times: with a thousand calls a turn is due whatever the clock says.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeAlias

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from support.harness import Recording, recording

Step: TypeAlias = Callable[[Recording], Awaitable[object]]

ENOUGH = 20_000
"""Calls in which a cancellation arrives, which takes a few turns."""


async def start_and_complete(r: Recording) -> None:
    span = r.instance.span("agent:tool")
    await span.start()
    await span.complete()


async def finish(r: Recording) -> None:
    await r.instance.span("agent:tool").finish()


async def fail(r: Recording) -> None:
    await r.instance.span("agent:tool").fail()


async def cancel(r: Recording) -> None:
    await r.instance.span("agent:tool").cancel()


async def start_an_open_span(r: Recording) -> None:
    span = r.instance.span("agent:tool")
    await span.start()
    await span.start()
    span.complete_nowait()


async def block(r: Recording) -> None:
    async with r.instance.span("agent:tool"):
        pass


async def by_id(r: Recording) -> None:
    await r.instance.finish_span(await r.instance.create_span("agent:tool"))


async def by_id_of_the_client(r: Recording) -> None:
    span_id = await r.client.create_span(r.instance.id, "agent:tool")
    await r.client.finish_span(span_id)


async def begin_a_run_that_has_begun(r: Recording) -> None:
    await r.instance.start()


STEPS: list[Step] = [
    start_and_complete,
    finish,
    fail,
    cancel,
    start_an_open_span,
    block,
    by_id,
    by_id_of_the_client,
    begin_a_run_that_has_begun,
]
each_step = pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)


@each_step
async def test_a_cancellation_arrives_in_a_loop_of_nothing_but_calls(step: Step) -> None:
    async with recording() as r:
        calls = 0
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:

                async def stop() -> None:
                    scope.cancel()

                tasks.start_soon(stop)
                while calls < ENOUGH:
                    await step(r)
                    calls += 1
        assert scope.cancelled_caught
        assert calls < ENOUGH


@each_step
def test_a_native_cancellation_arrives_in_a_loop_of_nothing_but_calls(step: Step) -> None:
    calls = 0

    async def agent(r: Recording) -> None:
        nonlocal calls
        while calls < ENOUGH:
            await step(r)
            calls += 1

    async def main() -> None:
        async with recording() as r:
            task = asyncio.create_task(agent(r))
            asyncio.get_running_loop().call_soon(lambda: task.cancel())
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())
    assert calls < ENOUGH


@pytest.mark.parametrize("step", STEPS[:-1], ids=lambda step: step.__name__)
async def test_workers_deliver_while_an_agent_does_nothing_but_calls(step: Step) -> None:
    async with recording(queue={"batch_window": 0}) as r:
        await r.client.flush()
        delivered, calls = r.client.statistics().delivered, 0
        while r.client.statistics().delivered == delivered:
            await step(r)
            calls += 1
            assert calls < 10 * ENOUGH


async def turns_during(calls: Callable[[], Awaitable[object]]) -> int:
    """How many turns the loop has while this runs."""
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await anyio.lowlevel.checkpoint()
            turns += 1

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(count)
        while not turns:
            await anyio.lowlevel.checkpoint()
        turns = 0
        await calls()
        found = turns
        tasks.cancel_scope.cancel()
    return found


@each_step
async def test_a_call_does_not_cost_a_turn(step: Step) -> None:
    async with recording(queue={"batch_window": 3600.0}) as r:

        async def calls() -> None:
            for _ in range(20):
                await step(r)

        # The fewest of many: a busy machine may stop this for a millisecond, but not each time.
        assert min([await turns_during(calls) for _ in range(50)]) < 10


async def test_a_call_in_the_loop_of_another_thread_gives_that_one_a_turn() -> None:
    async def agent(r: Recording) -> int:
        calls = 0
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:

                async def stop() -> None:
                    scope.cancel()

                tasks.start_soon(stop)
                while calls < ENOUGH:
                    await start_and_complete(r)
                    calls += 1
        return calls

    async with recording() as r:
        for backend in ("asyncio", "trio"):
            calls = await anyio.to_thread.run_sync(
                lambda backend=backend: anyio.run(agent, r, backend=backend)
            )
            assert calls < 10


async def test_two_tight_loops_take_turns() -> None:
    done = {"one": 0, "other": 0}

    async with recording(queue={"batch_window": 3600.0}) as r:

        async def agent(name: str) -> None:
            while min(done.values()) < 1_000 and max(done.values()) < ENOUGH:
                await start_and_complete(r)
                done[name] += 1

        async with anyio.create_task_group() as tasks:
            for name in done:
                tasks.start_soon(agent, name)
    assert min(done.values()) >= 1_000


FROZEN = """
import sys, time
sys.path.insert(0, {tests!r})
now = time.monotonic_ns()
time.monotonic_ns = lambda: now  # as libraries do that freeze the time

import anyio
from agent.test_turns import recording, turns_during

async def main():
    async with recording(queue={{"batch_window": 3600.0}}) as r:
        async def calls():
            for _ in range(2_500):
                await r.instance.span("agent:tool").start()
                await r.instance.start()
        print(await turns_during(calls))

anyio.run(main, backend={backend!r})
"""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_each_thousand_calls_give_a_turn_while_the_time_is_frozen(backend: str) -> None:
    script = FROZEN.format(tests=str(Path(__file__).parents[1]), backend=backend)
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.stderr == ""
    # Five turns of the agent; trio may run the task that counts before or after it.
    assert 3 <= int(result.stdout) <= 8
