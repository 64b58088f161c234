"""Tasks, threads and generators: the parents of their spans, and their stacks."""

from __future__ import annotations

import gc
import subprocess
import sys
import warnings
from collections.abc import AsyncGenerator
from functools import partial
from itertools import permutations
from typing import Any, NoReturn

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import pytest
from support.harness import Recording, recording

from prefactor_core import SpanContext, SpanContextStack

# Tasks and threads


async def test_a_span_is_a_child_of_the_one_around_the_start_of_its_task_however_deep() -> None:
    async def task(names: tuple[str, ...]) -> None:
        async with r.instance.span("agent:run", payload={"name": names[0]}) as span:
            assert SpanContextStack.get_stack()[-1] == span.id
            async with anyio.create_task_group() as tasks:
                for name in names[1:]:
                    tasks.start_soon(task, (name + "1",))
                    tasks.start_soon(leaf, name + "2")
                tasks.start_soon(partial(anyio.to_thread.run_sync, thread, names[0] + "t"))
            assert SpanContextStack.get_stack()[-1] == span.id

    async def leaf(name: str) -> None:
        async with r.instance.span("agent:run", payload={"name": name}):
            await anyio.lowlevel.checkpoint()

    def thread(name: str) -> None:
        with r.instance.span("agent:run", payload={"name": name}):
            with r.instance.span("agent:run", payload={"name": name + "!"}):
                anyio.from_thread.run(leaf, name + "<")

    async with recording() as r:
        await task(("a", "b", "c"))
        assert SpanContextStack.is_empty()
    assert parents(r) == {
        "a": None,
        **{f"{name}{n}": "a" for name in "bc" for n in "12"},
        **{f"{name}1t": f"{name}1" for name in "bc"},
        **{f"{name}1t!": f"{name}1t" for name in "bc"},
        **{f"{name}1t<": f"{name}1t!" for name in "bc"},
        "at": "a",
        "at!": "at",
        "at<": "at!",
    }
    assert {span.status for span in r.run.spans.values()} == {"complete"}


def parents(r: Recording) -> dict[str, str | None]:
    """The name in the payload of each stored span, and of its parent."""
    names = {id: span.payload["name"] for id, span in r.run.spans.items()}
    assert len(set(names.values())) == len(names)
    return {
        names[span.id]: None if span.parent_id is None else names[span.parent_id]
        for span in r.run.spans.values()
    }


async def test_the_parent_in_a_task_is_the_innermost_still_open_span_around_its_start() -> None:
    async def task(ended: anyio.Event) -> None:
        async with span("during"):
            pass
        task_waits.set()
        await ended.wait()
        async with span("after"):
            assert SpanContextStack.depth() == 2

    def span(name: str) -> SpanContext:
        return r.instance.span("agent:run", payload={"name": name})

    async with recording() as r:
        task_waits, ended = anyio.Event(), anyio.Event()
        async with span("outer"):
            async with anyio.create_task_group() as tasks:
                async with span("inner"):
                    tasks.start_soon(task, ended)
                    await task_waits.wait()
                # Opened after the start of the task: not in its stack.
                async with span("later"):
                    ended.set()
                    await anyio.wait_all_tasks_blocked()
    assert parents(r) == {
        "outer": None,
        "inner": "outer",
        "during": "inner",
        "later": "outer",
        "after": "outer",
    }


@pytest.mark.parametrize("order", list(permutations("abc")), ids="".join)
@pytest.mark.parametrize("by", ["block", "call", "another task"])
async def test_the_parent_of_a_new_span_is_the_innermost_open_one_whichever_ended_first(
    order: tuple[str, ...], by: str
) -> None:
    async with recording() as r:
        spans = {name: r.instance.span("agent:run", payload={"name": name}) for name in "abc"}
        for span in spans.values():
            await span.__aenter__()
        still_open = list(spans)
        expected: dict[str, str | None] = {"a": None, "b": "a", "c": "b"}
        for name in order:
            if by == "block":
                await spans[name].__aexit__(None, None, None)
            elif by == "call":
                await spans[name].complete()
            else:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(spans[name].__aexit__, None, None, None)
            still_open.remove(name)
            assert SpanContextStack.get_stack() == [spans[left].id for left in still_open]
            probe = f"after {name}"
            expected[probe] = still_open[-1] if still_open else None
            async with r.instance.span("agent:run", payload={"name": probe}):
                pass
    assert parents(r) == expected
    assert {span.status for span in r.run.spans.values()} == {"complete"}


# Generators that hold a span and are left


class Holder:
    """An asynchronous generator in the block of a span, which says when that is left."""

    def __init__(self, r: Recording) -> None:
        self.r = r
        self.left = anyio.Event()

    async def items(self) -> AsyncGenerator[int]:
        async with self.r.instance.span("agent:llm"):
            try:
                yield 1
                yield 2
            finally:
                self.left.set()


async def watch(r: Recording, seen: list[list[str]], done: anyio.Event) -> None:
    """Another task with a span of its own: its stack before, and when all is done."""
    async with r.instance.span("agent:tool"):
        seen.append(SpanContextStack.get_stack())
        await done.wait()
        seen.append(SpanContextStack.get_stack())


@pytest.mark.parametrize("way", ["closed in another task", "collected", "in a cycle", "broken off"])
async def test_a_span_in_a_generator_that_is_left_ends_once_and_changes_no_other_stack(
    way: str, anyio_backend_name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    seen, done = list[list[str]](), anyio.Event()

    async def close(items: AsyncGenerator[int]) -> None:
        async with r.instance.span("agent:tool") as own:
            await items.aclose()
            assert SpanContextStack.get_stack() == [run.id, own.id]

    async with recording() as r:
        holder = Holder(r)
        async with r.instance.span("agent:run") as run, anyio.create_task_group() as tasks:
            tasks.start_soon(watch, r, seen, done)
            await anyio.wait_all_tasks_blocked()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                if way == "broken off":
                    async for _ in holder.items():
                        break
                else:
                    items = holder.items()
                    await anext(items)
                    assert SpanContextStack.get_stack() == [run.id]
                    if way == "closed in another task":
                        async with anyio.create_task_group() as others:
                            others.start_soon(close, items)
                    elif way == "in a cycle":
                        ring: list[object] = [items]
                        ring.append(ring)
                        del ring
                    del items
                gc.collect()
                with anyio.fail_after(5):
                    await holder.left.wait()
                await anyio.wait_all_tasks_blocked()
            assert SpanContextStack.get_stack() == [run.id]
            done.set()
        assert SpanContextStack.is_empty()
    assert len(seen) == 2
    assert seen[0] == seen[1]
    assert r.run.named("agent:llm").status == "cancelled"
    assert r.run.named("agent:llm").parent_id == run.id
    ends = [call for call in r.api.operations if r.run.named("agent:llm").id in call.path]
    assert [call.name for call in ends] == ["finish"]
    # Only trio's own warning about a generator that is collected unfinished.
    own_words = anyio_backend_name == "trio" and way != "closed in another task"
    assert [w.category for w in caught] == [ResourceWarning] * own_words
    assert capfd.readouterr() == ("", "")


LEFT_AT_THE_END = """
import sys, anyio
from prefactor_core.testing import open_recording

kept = []

async def items(instance):
    async with instance.span("agent:llm"):
        yield 1
        yield 2

async def take_one(instance):
    kept.append(items(instance))
    await anext(kept[-1])

async def main(recording):
    async with recording.open() as client, client.agent_instance("agent", {"name": "A"}) as run:
        await take_one(run)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(take_one, run)
    assert client.statistics().accepted == client.statistics().delivered

with open_recording() as recording:
    anyio.run(main, recording, backend=sys.argv[1])
    print(recording.run.outline)
"""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_span_in_a_generator_that_is_left_at_the_end_of_the_loop_has_ended_with_its_run(
    backend: str,
) -> None:
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", LEFT_AT_THE_END, backend],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "complete\nagent:llm cancelled\nagent:llm cancelled\n"


async def test_a_span_in_a_generator_whose_globals_raise_is_recorded() -> None:
    class Raising(dict[str, Any]):
        def get(self, *_: object) -> NoReturn:
            raise RuntimeError("no names")

    async with recording() as r:
        names = Raising(span=partial(r.instance.span, "agent:tool"))
        exec("def yields():\n  with span():\n    yield 1", names)
        assert list(names["yields"]()) == [1]
    assert [span.status for span in r.run.spans.values()] == ["complete"]
