"""The parents of spans around generators that hold spans open across their yields."""

from __future__ import annotations

import gc
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from contextlib import (
    AsyncExitStack,
    ExitStack,
    aclosing,
    asynccontextmanager,
    closing,
    contextmanager,
)
from contextvars import copy_context
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.harness import Recording, recording

from prefactor_core import (
    SpanContext,
    SpanContextStack,
    current_span,
    open_prefactor_sync,
    traced,
)
from prefactor_core.context_stack import entries
from prefactor_core.span_types import standard_types

Tree = dict[str, str | None]


def span(r: Recording, name: str, **options: Any) -> SpanContext:
    return r.instance.span("agent:run", payload={"name": name}, **options)


def note(r: Recording, name: str) -> None:
    with span(r, name):
        pass


def tree(r: Recording) -> Tree:
    """The name of each span, and of its parent, as the server has them."""
    names = {id: stored.payload["name"] for id, stored in r.run.spans.items()}
    assert len(set(names.values())) == len(names)
    return {
        names[stored.id]: stored.parent_id and names[stored.parent_id]
        for stored in r.run.spans.values()
    }


@pytest.fixture(autouse=True)
def _nothing_is_kept() -> Iterator[None]:
    yield
    gc.collect()
    assert not entries.span_holders
    assert not entries.holders_by_span


# Spans of the consumer


@pytest.mark.parametrize("way", ["to its end", "left by break", "closed"])
async def test_a_span_opened_between_two_items_is_no_child_of_the_generators_span(
    way: str,
) -> None:
    def items() -> Generator[int]:
        with span(r, "held"):
            for item in range(2):
                note(r, f"own {item}")
                yield item

    async with recording() as r:
        with span(r, "outer") as outer, closing(items()) as generator:
            for item in generator:
                assert current_span() is outer
                assert SpanContextStack.get_stack() == [outer.id]
                note(r, f"between {item}")
                with span(r, f"around {item}"):
                    note(r, f"inside {item}")
                if way != "to its end":
                    break
            if way == "closed":
                generator.close()
            note(r, "after")
            assert SpanContextStack.peek() == outer.id
        assert SpanContextStack.is_empty()
    expected: Tree = {"outer": None, "held": "outer", "after": "outer"}
    for item in range(2 if way == "to its end" else 1):
        expected |= {f"own {item}": "held", f"between {item}": "outer", f"around {item}": "outer"}
        expected[f"inside {item}"] = f"around {item}"
    assert tree(r) == expected


@pytest.mark.parametrize("way", ["to its end", "left by break", "closed"])
async def test_nor_is_it_with_an_asynchronous_generator(way: str) -> None:
    async def items() -> AsyncGenerator[int]:
        async with span(r, "held"):
            for item in range(2):
                note(r, f"own {item}")
                await anyio.lowlevel.checkpoint()
                yield item

    async with recording() as r:
        async with span(r, "outer") as outer:
            async with aclosing(items()) as generator:
                async for item in generator:
                    assert current_span() is outer
                    await anyio.lowlevel.checkpoint()
                    note(r, f"between {item}")
                    await anyio.to_thread.run_sync(note, r, f"in a thread {item}")
                    if way != "to its end":
                        break
                if way == "closed":
                    await generator.aclose()
                note(r, "after")
    expected: Tree = {"outer": None, "held": "outer", "after": "outer"}
    for item in range(2 if way == "to its end" else 1):
        expected |= {f"own {item}": "held", f"between {item}": "outer"}
        expected[f"in a thread {item}"] = "outer"
    assert tree(r) == expected


async def test_a_generator_that_goes_on_inside_of_its_consumers_span_keeps_to_its_own() -> None:
    def items() -> Generator[None]:
        with span(r, "held"):
            yield
            note(r, "own")
            yield

    async with recording() as r:
        generator = items()
        next(generator)
        with span(r, "consumer's") as consumers:
            next(generator)
            assert current_span() is consumers
        generator.close()
    assert tree(r) == {"held": None, "own": "held", "consumer's": None}


async def test_each_generator_of_several_that_take_turns_has_its_own() -> None:
    def outer() -> Generator[str]:
        with span(r, "outer"):
            for item in inner():
                note(r, f"outer's {item}")
                yield item

    def inner() -> Generator[str]:
        with span(r, "inner"):
            for item in "ab":
                note(r, f"inner's {item}")
                yield item

    def delegating() -> Generator[str]:
        with span(r, "delegating"):
            yield from other()

    def other() -> Generator[str]:
        with span(r, "other"):
            for item in "ab":
                note(r, f"other's {item}")
                yield item

    async with recording() as r:
        for one, two in zip(outer(), delegating(), strict=True):
            note(r, f"consumer's {one}{two}")
    assert tree(r) == {
        "outer": None,
        "inner": "outer",
        "delegating": None,
        "other": "delegating",
        **{f"outer's {item}": "outer" for item in "ab"},
        **{f"inner's {item}": "inner" for item in "ab"},
        **{f"other's {item}": "other" for item in "ab"},
        **{f"consumer's {item}": None for item in ("aa", "bb")},
    }


async def test_a_traced_generator_and_one_that_holds_a_span_keep_to_their_own() -> None:
    @traced("agent:llm")
    def stream(name: str) -> Generator[str]:
        note(r, f"{name}'s first")
        with span(r, f"held by {name}"):
            yield "a"
            note(r, f"{name}'s second")
            yield "b"

    def around() -> Generator[str]:
        with span(r, "around"):
            for item in stream("inner"):
                note(r, f"around's {item}")
                yield item

    async with recording() as r:
        with span(r, "outer"):
            for one, two in zip(around(), stream("other"), strict=True):
                note(r, f"outer's {one}{two}")
    assert tree(r) == {
        "outer": None,
        "around": "outer",
        "inner": "around",
        "inner's first": "inner",
        "held by inner": "inner",
        "inner's second": "held by inner",
        "around's a": "around",
        "around's b": "around",
        "other": "outer",
        "other's first": "other",
        "held by other": "other",
        "other's second": "held by other",
        "outer's aa": "outer",
        "outer's bb": "outer",
    }


async def test_a_traced_generator_that_was_begun_before_is_its_own_inside_of_another() -> None:
    @traced("agent:llm")
    def stream(name: str) -> Generator[str]:
        for item in "ab":
            note(r, f"stream's {item}")
            yield item

    def around() -> Generator[str]:
        begun = stream("stream")
        yield next(begun)
        with span(r, "around"):
            yield next(begun)
            note(r, "around's")
        begun.close()

    async with recording() as r:
        for item in around():
            note(r, f"consumer's {item}")
    assert tree(r) == {
        "stream": None,
        "around": None,
        "around's": "around",
        **{f"stream's {item}": "stream" for item in "ab"},
        **{f"consumer's {item}": None for item in "ab"},
    }


# Tasks and threads of the generator


async def test_the_tasks_and_threads_of_a_generator_are_in_its_span_while_it_waits() -> None:
    async def task(name: str) -> None:
        await anyio.lowlevel.checkpoint()
        note(r, name)

    async def items() -> AsyncGenerator[int]:
        async with span(r, "held"):
            for item in range(2):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(task, f"task {item}")
                await anyio.to_thread.run_sync(note, r, f"thread {item}")
                yield item

    async with recording() as r:
        async with aclosing(items()) as generator:
            async for item in generator:
                with span(r, f"consumer's {item}"):
                    pass
    assert tree(r) == {
        "held": None,
        **{f"{kind} {item}": "held" for kind in ("task", "thread") for item in range(2)},
        **{f"consumer's {item}": None for item in range(2)},
    }


async def test_a_task_that_runs_between_two_items_is_in_the_span_of_the_consumer() -> None:
    async def task(name: str) -> None:
        note(r, name)

    async def items() -> AsyncGenerator[int]:
        async with span(r, "held"):
            yield 0
            yield 1

    async with recording() as r:
        async with span(r, "outer"), aclosing(items()) as generator:
            async for item in generator:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(task, f"task {item}")
    assert tree(r) == {"outer": None, "held": "outer", "task 0": "outer", "task 1": "outer"}


async def test_a_generator_that_is_asked_in_another_context_each_time_keeps_its_span() -> None:
    def items() -> Generator[int]:
        with span(r, "held"):
            for item in range(3):
                note(r, f"own {item}")
                yield item

    async with recording() as r:
        with span(r, "outer"):
            generator = items()
            for item in range(3):
                assert copy_context().run(next, generator) == item
                note(r, f"consumer's {item}")
            generator.close()
    assert tree(r) == {
        "outer": None,
        "held": "outer",
        **{f"own {item}": "held" for item in range(3)},
        **{f"consumer's {item}": "outer" for item in range(3)},
    }


# Generators that are used as a block


async def test_a_span_of_a_context_manager_is_innermost_in_its_block() -> None:
    @contextmanager
    def step(name: str) -> Iterator[None]:
        with span(r, name):
            yield

    @asynccontextmanager
    async def astep(name: str) -> AsyncIterator[None]:
        async with span(r, name):
            await anyio.lowlevel.checkpoint()
            yield

    @asynccontextmanager
    async def wrapped(name: str) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(astep(name))
            yield

    async with recording() as r:
        with step("a"):
            note(r, "in a")
            async with astep("b"):
                note(r, "in b")
                async with wrapped("c"):
                    note(r, "in c")
                note(r, "in b again")
        note(r, "after")
    assert tree(r) == {
        "a": None,
        "in a": "a",
        "b": "a",
        "in b": "b",
        "c": "b",
        "in c": "c",
        "in b again": "b",
        "after": None,
    }


@pytest.mark.parametrize("by", ["context manager", "exit stack", "async exit stack"])
async def test_a_span_that_a_generator_enters_through_another_object_is_its_own(by: str) -> None:
    @contextmanager
    def step(name: str) -> Iterator[None]:
        with span(r, name):
            yield

    async def items() -> AsyncGenerator[int]:
        with ExitStack() as stack:
            async with AsyncExitStack() as astack:
                if by == "context manager":
                    stack.enter_context(step("held"))
                elif by == "exit stack":
                    stack.enter_context(span(r, "held"))
                else:
                    await astack.enter_async_context(span(r, "held"))
                yield 1
                note(r, "own")
                yield 2

    async with recording() as r:
        async with aclosing(items()) as generator:
            async for item in generator:
                note(r, f"consumer's {item}")
    assert tree(r) == {"held": None, "own": "held", "consumer's 1": None, "consumer's 2": None}


async def test_a_generator_that_threads_are_asked_to_go_on_with_keeps_its_span() -> None:
    def items() -> Generator[int]:
        with span(r, "held"):
            for item in range(3):
                note(r, f"own {item}")
                yield item

    async with recording() as r:
        with span(r, "outer"), closing(items()) as generator:
            while (item := await anyio.to_thread.run_sync(next, generator, None)) is not None:
                note(r, f"consumer's {item}")
    assert tree(r) == {
        "outer": None,
        "held": "outer",
        **{f"own {item}": "held" for item in range(3)},
        **{f"consumer's {item}": "outer" for item in range(3)},
    }


@pytest.fixture
async def in_a_fixture() -> AsyncIterator[tuple[Recording, SpanContext]]:
    async with recording() as r:
        async with span(r, "fixture's") as opened:
            yield r, opened


async def test_a_span_of_a_fixture_is_innermost_in_the_test(
    in_a_fixture: tuple[Recording, SpanContext],
) -> None:
    assert current_span() is in_a_fixture[1]


@pytest.fixture
def in_a_plain_fixture() -> Iterator[SpanContext]:
    with (
        open_prefactor_sync(api_url="local::memory:", schema_registry=standard_types()) as client,
        client.agent_instance("agent", {"name": "Agent"}) as instance,
        instance.span("agent:run") as opened,
    ):
        yield opened


def test_so_is_that_of_a_plain_fixture(in_a_plain_fixture: SpanContext) -> None:
    assert current_span() is in_a_plain_fixture


# Cases that cannot be distinguished


async def test_a_detached_span_is_nobodys_parent_unless_it_is_named() -> None:
    async with recording() as r:
        async with span(r, "outer") as outer:
            async with span(r, "detached").detached() as detached:
                await detached.start()
                assert current_span() is outer
                note(r, "inside")
                with span(r, "named", parent_span_id=detached.id):
                    note(r, "in named")
            with span(r, "in sync code").detached():
                note(r, "there")
        assert SpanContextStack.is_empty()
    assert tree(r) == {
        "outer": None,
        "detached": "outer",
        "inside": "outer",
        "named": "detached",
        "in named": "named",
        "in sync code": "outer",
        "there": "outer",
    }
    assert {stored.status for stored in r.run.spans.values()} == {"complete"}


async def test_nothing_of_a_generator_outlives_it() -> None:
    class Token:
        pass

    def items(token: Token) -> Generator[int]:
        with span(r, "held"):
            yield 1

    async with recording() as r:
        for way in ("closed", "forgotten", "to its end"):
            token = Token()
            alive = weakref.ref(token)
            generator = items(token)
            next(generator)
            del token
            if way == "closed":
                generator.close()
            elif way == "to its end":
                assert next(generator, None) is None
            del generator
            assert alive() is None, way
            r.instance.span("agent:run", payload={"name": way}).__enter__()


# Any order of steps

NAMES = "abc"
Step = tuple[str, str, bool]


class Player:
    """A generator that opens and ends the requested spans in its own frame."""

    def __init__(self, r: Recording) -> None:
        self.r = r
        self.open: list[SpanContext] = []
        self.play = self._play()
        next(self.play)

    def _play(self) -> Generator[None, tuple[str, str]]:
        while True:
            what, name = yield
            if what == "open":
                self.open.append(span(self.r, name).__enter__())
            elif self.open:
                self.open.pop().__exit__(None, None, None)


@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["consumer", *NAMES]), st.sampled_from(["open", "end"]), st.booleans()
        ),
        max_size=25,
    )
)
async def test_the_parent_is_the_innermost_span_of_the_same_generator_in_any_order_of_steps(
    steps: list[Step],
) -> None:
    expected: Tree = {}
    stacks: dict[str, list[str]] = {who: [] for who in ("consumer", *NAMES)}
    async with recording() as r:
        players = {name: Player(r) for name in NAMES}
        consumers: list[SpanContext] = []
        for number, (who, what, elsewhere) in enumerate(steps):
            name, stack = f"{who} {number}", stacks[who]
            if what == "open":
                around = stack or stacks["consumer"]
                expected[name] = around[-1] if around else None
                stack.append(name)
            elif stack:
                stack.pop()
            if who != "consumer":
                run: Callable[..., None] = copy_context().run if elsewhere else lambda f, x: f(x)
                run(players[who].play.send, (what, name))
            elif what == "open":
                consumers.append(span(r, name).__enter__())
            elif consumers:
                consumers.pop().__exit__(None, None, None)
            assert SpanContextStack.get_stack() == [opened.id for opened in consumers]
        for opened in (*consumers, *(one for player in players.values() for one in player.open)):
            opened.__exit__(None, None, None)
    assert tree(r) == expected
