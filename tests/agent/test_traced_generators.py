"""Traced generators: their spans, the generator protocol, parents of spans, and the end."""

from __future__ import annotations

import gc
import subprocess
import sys
import warnings
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from contextlib import aclosing, suppress
from contextvars import copy_context
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from support.harness import recording

from prefactor_core import SpanContextStack, current_span, traced
from prefactor_core.agent.traced_call import MAX_ITEMS

LOGGER = "prefactor_core.agent.traced"
TOOL = ("agent:tool", "complete", [])


def _generator(n: int) -> Iterator[int]:
    yield n


async def _async_generator(n: int) -> AsyncIterator[int]:
    yield n


# What is recorded


async def test_the_items_of_a_generator_are_the_result_of_its_span() -> None:
    @traced("agent:tool")
    def stream(count: int) -> Iterator[str]:
        yield from "abc"[:count]

    @traced("agent:llm")
    async def astream(count: int) -> AsyncIterator[str]:
        for item in "abc"[:count]:
            await anyio.lowlevel.checkpoint()
            yield item

    async with recording() as r:
        assert list(stream(3)) == ["a", "b", "c"]
        assert [item async for item in astream(3)] == ["a", "b", "c"]
        assert SpanContextStack.is_empty()
    for name in ("agent:tool", "agent:llm"):
        stored = r.run.named(name)
        assert (stored.status, stored.payload) == ("complete", {"count": 3})
        assert stored.result == {"items": ["a", "b", "c"]}


@pytest.mark.parametrize(
    ("reduce", "result"),
    [
        ("".join, {"result": "abc"}),
        (lambda items: {"count": len(items)}, {"count": 3}),
        (lambda items: None, None),
    ],
    ids=["value", "mapping", "none"],
)
async def test_items_can_be_reduced_to_what_is_recorded(
    reduce: Callable[[list[Any]], object], result: object
) -> None:
    @traced("agent:llm", reduce=reduce)
    async def stream() -> AsyncGenerator[str]:
        for item in "abc":
            yield item

    async with recording() as r:
        assert [item async for item in stream()] == ["a", "b", "c"]
    assert r.run.named("agent:llm").result == result


async def test_an_error_of_reduce_does_not_reach_the_agent_and_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    @traced("agent:llm", reduce="".join)
    def stream() -> Iterator[Any]:
        yield "secret"
        yield 2

    async with recording() as r:
        for _ in range(2):
            assert list(stream()) == ["secret", 2]
    assert [span.result for span in r.run.spans.values()] == [{"items": ["secret", 2]}] * 2
    (record,) = (record for record in caplog.records if record.name == LOGGER)
    assert record.levelname == "ERROR"
    assert f"reduce= of {stream.__qualname__} raised TypeError" in record.getMessage()


async def test_the_first_items_of_an_endless_stream_are_kept_and_the_others_counted() -> None:
    @traced("agent:tool")
    def stream() -> Iterator[int]:
        yield from range(MAX_ITEMS + 5)

    @traced("agent:llm", reduce=len)
    def lengths() -> Iterator[int]:
        yield from range(MAX_ITEMS + 5)

    async with recording() as r:
        assert sum(1 for _ in stream()) == sum(1 for _ in lengths()) == MAX_ITEMS + 5
    assert r.run.named("agent:tool").result == {
        "items": list(range(MAX_ITEMS)),
        "items_left_out": 5,
    }
    assert r.run.named("agent:llm").result == {"result": MAX_ITEMS, "items_left_out": 5}


async def test_a_generator_that_raises_fails_its_span_which_keeps_the_items_so_far() -> None:
    error = ValueError("broken")

    @traced("agent:tool")
    def stream() -> Iterator[int]:
        yield 1
        raise error

    @traced("agent:llm")
    async def astream() -> AsyncIterator[int]:
        yield 1
        raise error

    async with recording() as r:
        with pytest.raises(ValueError, match="broken") as caught:
            list(stream())
        assert caught.value is error
        with pytest.raises(ValueError, match="broken") as caught:
            [item async for item in astream()]
        assert caught.value is error
    for name in ("agent:tool", "agent:llm"):
        stored = r.run.named(name)
        assert stored.status == "failed"
        assert stored.result["items"] == [1]
        assert stored.result["error"]["message"] == "broken"


async def test_a_generator_that_is_left_early_is_cancelled_and_closed_to_the_innermost() -> None:
    cleaned = list[str]()

    @traced("agent:tool")
    def stream() -> Generator[int]:
        try:
            yield from range(10)
        finally:
            cleaned.append("stream")

    @traced("agent:llm")
    async def astream() -> AsyncGenerator[int]:
        try:
            for item in range(10):
                yield item
        finally:
            with anyio.move_on_after(5, shield=True):
                await anyio.lowlevel.checkpoint()
            cleaned.append("astream")

    async with recording() as r:
        numbers = stream()
        assert [next(numbers), next(numbers)] == [0, 1]
        numbers.close()
        assert cleaned == ["stream"]
        async with aclosing(astream()) as anumbers:
            async for item in anumbers:
                if item == 1:
                    break
        assert cleaned == ["stream", "astream"]
        with pytest.raises(StopIteration):
            next(numbers)
    for name in ("agent:tool", "agent:llm"):
        stored = r.run.named(name)
        assert (stored.status, stored.result) == ("cancelled", {"items": [0, 1]})


async def test_a_generator_that_returns_when_it_is_closed_is_cancelled_too() -> None:
    @traced("agent:tool")
    def stream() -> Generator[int]:
        try:
            yield 1
        except GeneratorExit:
            return

    @traced("agent:llm")
    async def astream() -> AsyncGenerator[int]:
        try:
            yield 1
        except GeneratorExit:
            return

    async with recording() as r:
        numbers, anumbers = stream(), astream()
        next(numbers)
        numbers.close()
        await anext(anumbers)
        await anumbers.aclose()
    assert {span.status for span in r.run.spans.values()} == {"cancelled"}


async def test_a_generator_that_is_cancelled_in_its_own_code_is_cancelled() -> None:
    @traced("agent:llm")
    async def stream() -> AsyncIterator[int]:
        yield 1
        await anyio.sleep_forever()

    async with recording() as r:
        with anyio.CancelScope() as scope:
            async for _ in stream():
                scope.cancel()
    assert scope.cancelled_caught
    stored = r.run.named("agent:llm")
    assert (stored.status, stored.result) == ("cancelled", {"items": [1]})


async def test_a_generator_that_was_not_begun_is_no_span() -> None:
    async with recording() as r:
        traced("agent:tool")(_generator)(1).close()  # type: ignore[attr-defined]
        await traced("agent:tool")(_async_generator)(1).aclose()  # type: ignore[attr-defined]
    assert r.run.shape == ("complete", [])


async def test_where_spans_wait_for_a_place_so_do_async_generators() -> None:
    @traced("agent:tool")
    async def stream() -> AsyncIterator[int]:
        yield 1

    # recording() says that nothing of it is lost.
    async with recording(queue={"max_pending_operations": 2, "when_full": "wait"}) as r:
        for _ in range(10):
            async for _ in stream():
                pass
    assert r.run.shape == ("complete", [TOOL] * 10)


async def test_nothing_is_kept_of_a_generator_that_is_not_recorded() -> None:
    @traced("agent:tool")
    def stream() -> Iterator[set[int]]:
        yield set[int]()
        yield set[int]()

    numbers = stream()
    first = weakref.ref(next(numbers))
    next(numbers)
    assert first() is None


# The protocol


def _echo(log: list[object]) -> Generator[object, object, str]:
    """Says what it is sent, survives ValueErrors, and ends with a word."""
    got: object = "nothing"
    while got != "end":
        try:
            got = yield got
            log.append(("got", got))
        except ValueError as error:
            got = error
            log.append(("survived", error))
        except GeneratorExit:
            log.append("closed")
            raise
    return "over"


async def _aecho(log: list[object]) -> AsyncGenerator[object, object]:
    """As :func:`_echo`."""
    got: object = "nothing"
    while got != "end":
        try:
            got = yield got
            log.append(("got", got))
        except ValueError as error:
            got = error
            log.append(("survived", error))
        except GeneratorExit:
            with anyio.move_on_after(5, shield=True):
                await anyio.lowlevel.checkpoint()
            log.append("closed")
            raise


ERROR, OTHER = ValueError("survivable"), KeyError("not survivable")
Step = tuple[str, object]
SCRIPTS: list[tuple[list[Step], str]] = [
    ([("send", None), ("send", 1), ("throw", ERROR), ("send", "end"), ("send", 2)], "complete"),
    ([("send", None), ("throw", OTHER), ("send", 1)], "failed"),
    ([("send", None), ("send", 1), ("close", None), ("send", 1), ("close", None)], "cancelled"),
    ([("send", None), ("throw", GeneratorExit()), ("send", 1)], "cancelled"),
    ([("send", None), ("throw", StopIteration()), ("send", 1)], "failed"),
    ([("send", None), ("throw", StopAsyncIteration()), ("send", 1)], "failed"),
    ([("send", 1), ("send", None), ("close", None)], "cancelled"),
]


def _play(generator: Generator[object, object, object], script: list[Step]) -> list[object]:
    seen: list[object] = []
    for step, value in script:
        try:
            seen.append(generator.close() if step == "close" else getattr(generator, step)(value))
        except BaseException as error:
            seen.append((type(error), str(error), error in (ERROR, OTHER), error.__context__))
    return seen


async def _aplay(generator: AsyncGenerator[object, object], script: list[Step]) -> list[object]:
    seen: list[object] = []
    for step, value in script:
        try:
            if step == "close":
                seen.append(await generator.aclose())  # type: ignore[func-returns-value]
            else:
                seen.append(await getattr(generator, f"a{step}")(value))
        except BaseException as error:
            seen.append((type(error), str(error), error in (ERROR, OTHER), error.__context__))
    return seen


async def test_a_generator_can_be_sent_thrown_into_and_closed_as_before() -> None:
    async with recording() as r:
        for script, _ in SCRIPTS:
            logs: tuple[list[object], list[object]] = [], []
            expected = _play(_echo(logs[0]), script)
            assert _play(traced("agent:tool")(_echo)(logs[1]), script) == expected
            assert logs[0] == logs[1]
    assert r.run.shape == ("complete", [("agent:tool", status, []) for _, status in SCRIPTS])


async def test_an_async_generator_can_be_sent_thrown_into_and_closed_as_before() -> None:
    async with recording() as r:
        for script, _ in SCRIPTS:
            logs: tuple[list[object], list[object]] = [], []
            expected = await _aplay(_aecho(logs[0]), script)
            assert await _aplay(traced("agent:tool")(_aecho)(logs[1]), script) == expected
            assert logs[0] == logs[1]
    assert r.run.shape == ("complete", [("agent:tool", status, []) for _, status in SCRIPTS])


async def test_an_error_that_a_generator_raises_as_it_is_closed_has_no_other_context() -> None:
    def stream() -> Generator[int]:
        with suppress(GeneratorExit):
            yield 1
        raise ERROR

    async def astream() -> AsyncGenerator[int]:
        with suppress(GeneratorExit):
            yield 1
        raise ERROR

    async with recording() as r:
        numbers, anumbers = traced("agent:tool")(stream)(), traced("agent:tool")(astream)()
        next(numbers)
        with pytest.raises(ValueError, match="survivable") as caught:
            numbers.close()
        assert (caught.value, caught.value.__context__) == (ERROR, None)
        await anext(anumbers)
        with pytest.raises(ValueError, match="survivable") as caught:
            await anumbers.aclose()
        assert (caught.value, caught.value.__context__) == (ERROR, None)
    assert r.run.shape == ("complete", [("agent:tool", "failed", [])] * 2)


async def test_a_generator_returns_its_value_to_yield_from() -> None:
    echo = traced("agent:tool")(_echo)

    def outer() -> Generator[object, object, None]:
        values.append((yield from echo([])))

    values: list[str] = []
    async with recording():
        generator = outer()
        assert next(generator) == "nothing"
        with pytest.raises(StopIteration):
            generator.send("end")
    assert values == ["over"]


class _Token:
    """Lives as long as the frames that have it."""


@pytest.mark.parametrize("error", [ValueError, KeyError], ids=["survived", "raised"])
async def test_an_error_that_was_thrown_into_a_generator_leaves_no_cycle(
    error: type[Exception],
) -> None:
    @traced("agent:tool")
    def stream(token: _Token) -> Generator[int]:
        with suppress(ValueError):
            yield 1
        yield 2

    @traced("agent:tool")
    async def astream(token: _Token) -> AsyncGenerator[int]:
        with suppress(ValueError):
            yield 1
        yield 2

    tokens = [_Token(), _Token()]
    alive = [weakref.ref(token) for token in tokens]
    async with recording(capture_payloads=False):
        gc.disable()
        try:
            numbers, anumbers = stream(tokens.pop()), astream(tokens.pop())
            next(numbers)
            with suppress(KeyError):
                numbers.throw(error())
            await anext(anumbers)
            with suppress(KeyError):
                await anumbers.athrow(error())
            numbers.close()
            await anumbers.aclose()
            del numbers, anumbers
            assert [token() for token in alive] == [None, None]
        finally:
            gc.enable()


async def test_the_hooks_of_the_loop_for_other_generators_stay() -> None:
    async with recording():
        numbers = traced("agent:tool")(_async_generator)(1)
        before = sys.get_asyncgen_hooks()
        assert [item async for item in numbers] == [1]
        assert sys.get_asyncgen_hooks() == before


# Whose spans are whose


async def test_a_span_that_is_opened_between_two_items_is_no_child_of_the_generator() -> None:
    @traced("agent:llm")
    def stream() -> Iterator[int]:
        for item in range(2):
            inside()
            yield item

    @traced("agent:llm")
    async def astream() -> AsyncIterator[int]:
        for item in range(2):
            inside()
            await anyio.lowlevel.checkpoint()
            yield item
        inside()

    @traced("agent:tool")
    def inside() -> None:
        inner = current_span()
        assert inner is not None

    async with recording() as r:
        async with r.instance.span("agent:run") as run:
            for _ in stream():
                assert current_span() is run
                inside()
            async for _ in astream():
                assert current_span() is run
                with r.instance.span("agent:tool"):
                    await anyio.lowlevel.checkpoint()
            assert SpanContextStack.get_stack() == [run.id]
    (root,) = r.run.roots
    shapes = sorted(child.shape for child in root.children)
    assert shapes == [
        ("agent:llm", "complete", [TOOL, TOOL]),
        ("agent:llm", "complete", [TOOL, TOOL, TOOL]),
        *[TOOL] * 4,
    ]


async def test_a_span_that_a_generator_holds_between_two_items_is_its_own() -> None:
    async with recording() as r:

        @traced("agent:run")
        async def stream() -> AsyncIterator[int]:
            async with r.instance.span("agent:llm"):
                for item in range(2):
                    yield item
                    with r.instance.span("agent:tool"):
                        pass

        async for _ in stream():
            assert SpanContextStack.is_empty()
            with r.instance.span("agent:tool"):
                pass
    llm = ("agent:llm", "complete", [TOOL, TOOL])
    assert sorted(span.shape for span in r.run.roots) == [
        ("agent:run", "complete", [llm]),
        TOOL,
        TOOL,
    ]


async def test_generators_that_are_iterated_in_turns_and_in_each_other_do_not_mix() -> None:
    @traced("agent:llm")
    def outer(n: int) -> Iterator[int]:
        yield from inner(n)

    @traced("agent:tool")
    def inner(n: int) -> Iterator[int]:
        yield n
        yield n

    async with recording() as r:
        assert list(zip(outer(1), outer(2), strict=True)) == [(1, 2), (1, 2)]
    # The second is left before its end: zip() asks only the first for a third item.
    assert sorted(span.shape for span in r.run.roots) == [
        ("agent:llm", "complete", [TOOL]),
        ("agent:llm", "complete", [TOOL]),
    ]
    for llm in r.run.roots:
        assert llm.children[0].payload == llm.payload


async def test_a_generator_that_goes_on_in_another_context_keeps_its_own_tree() -> None:
    @traced("agent:llm")
    def stream() -> Iterator[int]:
        for item in range(2):
            with r.instance.span("agent:tool"):
                yield item

    async with recording() as r:
        numbers = stream()
        with r.instance.span("agent:run"):
            next(numbers)
        other = copy_context()
        assert other.run(next, numbers) == 1
        assert other.run(list[int], numbers) == []
        assert other.run(SpanContextStack.is_empty)
    (run,) = r.run.roots
    assert run.shape == (
        "agent:run",
        "complete",
        [("agent:llm", "complete", [TOOL, TOOL])],
    )


async def test_a_generator_that_another_task_closes_ends_once_and_changes_no_stack() -> None:
    @traced("agent:llm")
    async def stream() -> AsyncGenerator[int]:
        try:
            yield 1
        finally:
            with anyio.move_on_after(5, shield=True), r.instance.span("agent:tool"):
                await anyio.lowlevel.checkpoint()

    async def close(numbers: AsyncGenerator[int]) -> None:
        async with r.instance.span("agent:run") as run:
            await numbers.aclose()
            assert SpanContextStack.get_stack() == [outer.id, run.id]

    async with recording() as r:
        async with r.instance.span("agent:run") as outer:
            numbers = stream()
            await anext(numbers)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(close, numbers)
            assert SpanContextStack.get_stack() == [outer.id]
    (root,) = r.run.roots
    assert sorted(child.shape for child in root.children) == [
        ("agent:llm", "cancelled", [TOOL]),
        ("agent:run", "complete", []),
    ]
    assert r.api.names().count("agent_spans") == 4


async def test_a_generator_that_outlives_its_run_ends_with_it_in_silence() -> None:
    @traced("agent:tool", reduce=len)
    def stream() -> Generator[int]:
        yield from range(3)

    @traced("agent:llm")
    async def astream() -> AsyncGenerator[int]:
        for item in range(3):
            yield item

    async with recording() as r:
        numbers, anumbers = stream(), astream()
        next(numbers)
        await anext(anumbers)
    assert list(numbers) == [1, 2]
    assert [item async for item in anumbers] == [1, 2]
    assert sorted(span.shape for span in r.run.roots) == [
        ("agent:llm", "cancelled", []),
        ("agent:tool", "cancelled", []),
    ]


# Generators that are forgotten


async def test_a_generator_that_is_forgotten_is_cancelled_when_it_is_collected() -> None:
    @traced("agent:tool")
    def stream() -> Iterator[int]:
        yield from range(3)

    async with recording() as r:
        for item in stream():
            if item:
                break
        gc.collect()
        assert SpanContextStack.is_empty()
    stored = r.run.named("agent:tool")
    assert (stored.status, stored.result) == ("cancelled", {"items": [0, 1]})


@pytest.mark.parametrize("cycle", [False, True], ids=["by its last reference", "in a cycle"])
async def test_an_async_generator_that_is_forgotten_is_closed_by_the_loop_alone(
    cycle: bool, anyio_backend_name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    cleaned = anyio.Event()
    caught: list[warnings.WarningMessage]

    @traced("agent:llm")
    async def stream() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            with anyio.move_on_after(5, shield=True):
                await anyio.sleep(0.001)  # longer than it takes to close whatever else there is
            cleaned.set()

    async with recording() as r:
        async with r.instance.span("agent:run") as run:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                numbers = stream()
                assert await anext(numbers) == 1
                if cycle:
                    ring: list[object] = [numbers]
                    ring.append(ring)
                    del ring
                del numbers
                gc.collect()
            with anyio.fail_after(5):
                await cleaned.wait()
            await anyio.wait_all_tasks_blocked()
            assert SpanContextStack.get_stack() == [run.id]
    stored = r.run.named("agent:llm")
    assert (stored.status, stored.result) == ("cancelled", {"items": [1]})
    # Trio warns of the outer generator; nothing warns of the inner one.
    assert len(caught) == (anyio_backend_name == "trio")
    assert all(f"{stream.__qualname__}' was garbage collected" in str(w.message) for w in caught)
    assert capfd.readouterr() == ("", "")


LEFT_AT_THE_END = """
import sys, anyio
from prefactor_core import SchemaRegistry, open_prefactor, traced

registry = SchemaRegistry()
registry.register("agent:llm", {"type": "object"})
kept = []

@traced("agent:llm")
async def stream():
    try:
        yield 1
        yield 2
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0.001)

async def main():
    async with (
        open_prefactor(api_url="local::memory:", schema_registry=registry) as client,
        client.agent_instance("agent", {"name": "Agent"}),
    ):
        kept.append(stream())
        await anext(kept[0])

anyio.run(main, backend=sys.argv[1])
"""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_async_generator_that_is_left_at_the_end_of_the_loop_is_closed_in_silence(
    backend: str,
) -> None:
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", LEFT_AT_THE_END, backend],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
