"""An agent with parallel tools, as a program for asyncio and as one for trio: one tree."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias

import anyio
import anyio.lowlevel
import pytest
import trio
from support.harness import StoredSpan, stored_runs

from prefactor_core import open_prefactor, traced
from prefactor_core.local import open_local_prefactor
from prefactor_core.span_types import AgentRun, LLMCall, Retrieval

HEIGHTS = {"K2": 8611, "Lhotse": 8516}

InParallel: TypeAlias = Callable[..., Awaitable[None]]
"""Calls asynchronous functions at the same time, and waits for all. The first one that raises
cancels the others."""


async def as_tasks_of_asyncio(*functions: Callable[[], Awaitable[Any]]) -> None:
    async def call(function: Callable[[], Awaitable[Any]]) -> None:
        await function()

    async with asyncio.TaskGroup() as tasks:
        for function in functions:
            tasks.create_task(call(function))


async def in_a_nursery_of_trio(*functions: Callable[[], Awaitable[Any]]) -> None:
    async with trio.open_nursery() as nursery:
        for function in functions:
            nursery.start_soon(function)


@traced(Retrieval)
async def look_up(query: str) -> list[str]:
    await anyio.lowlevel.checkpoint()
    return [f"{query}: {HEIGHTS[query]} m"]


@traced
async def height(mountain: str) -> str:
    (found,) = await look_up(mountain)
    return found


@traced
async def archive(mountain: str, asked: anyio.Event) -> None:
    asked.set()
    await anyio.sleep_forever()


@traced(LLMCall, model="small-1")
async def ask(prompt: str) -> str:
    await anyio.lowlevel.checkpoint()
    return prompt.upper()


@traced(AgentRun, exclude=("in_parallel",))
async def agent(question: str, in_parallel: InParallel) -> str:
    await ask("plan")
    await in_parallel(lambda: height("K2"), lambda: height("Lhotse"))
    asked = anyio.Event()

    async def height_of_another() -> None:
        await asked.wait()
        await height("Olympus Mons")

    try:
        await in_parallel(lambda: archive("Olympus Mons", asked), height_of_another)
    except* KeyError:
        pass
    return await ask("answer")


async def main(path: Path, in_parallel: InParallel) -> None:
    with anyio.fail_after(30):
        async with open_prefactor(api_url=f"local:{path}") as client:
            async with client.agent_instance("mountains", {"name": "Mountains"}):
                assert await agent("Which is higher?", in_parallel) == "ANSWER"
        assert client.statistics().lost == 0


STEPS = {
    "agent:run": "input",
    "agent:llm_call": "prompt",
    "agent:retrieval": "query",
    "agent:tool_call": "arguments",
}
"""The field that tells a span from others of its type."""


def lines(span: StoredSpan, depth: int = 0) -> list[str]:
    """A span and those inside; siblings are sorted, as parallel ones begin in any order."""
    step = span.payload[STEPS[span.name]]
    if span.name == "agent:tool_call":
        step = f"{span.payload['tool']}({step['mountain']})"
    children = sorted(lines(child, depth + 1) for child in span.children)
    below = [line for child in children for line in child]
    return [f"{'  ' * depth}{span.name} {span.status}: {step}", *below]


TREE = """\
agent:run complete: {'question': 'Which is higher?'}
  agent:llm_call complete: answer
  agent:llm_call complete: plan
  agent:tool_call cancelled: archive(Olympus Mons)
  agent:tool_call complete: height(K2)
    agent:retrieval complete: K2
  agent:tool_call complete: height(Lhotse)
    agent:retrieval complete: Lhotse
  agent:tool_call failed: height(Olympus Mons)
    agent:retrieval failed: Olympus Mons"""


def run_on_asyncio(path: Path) -> None:
    asyncio.run(main(path, as_tasks_of_asyncio))


def run_on_trio(path: Path) -> None:
    trio.run(main, path, in_a_nursery_of_trio)


@pytest.mark.parametrize("program", [run_on_asyncio, run_on_trio])
def test_an_agent_with_parallel_tools_stores_the_same_tree_on_each_loop(
    program: Callable[[Path], None], tmp_path: Path
) -> None:
    path = tmp_path / "runs.db"
    program(path)

    async def check() -> None:
        async with open_local_prefactor(str(path)) as app:
            (stored,) = await stored_runs(app, "mountains")
        assert stored.status == "complete"
        (root,) = stored.roots
        assert "\n".join(lines(root)) == TREE
        assert root.result == {"output": "ANSWER"}

    anyio.run(check)
