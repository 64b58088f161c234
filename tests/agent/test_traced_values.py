"""Traced functions that return before their work is done: the return value decides."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import gc
import inspect
import io
import itertools
import types
import warnings
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Generator,
    Iterator,
)
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from support.harness import recording

from prefactor_core import SpanContextStack, current_span, traced
from prefactor_core.agent.traced_value import _Proxy

trace = traced("agent:tool")


@traced("agent:llm")
def inside() -> None:
    """A child of whatever is innermost."""


def between() -> None:
    """What the caller does in the meantime is no part of the call."""
    span = current_span()
    assert span is None, span


INNER = ("agent:llm", "complete", [])


def tool(status: str, *children: object) -> tuple[str, list[object]]:
    return ("complete", [("agent:tool", status, list(children))])


# Awaitables


async def work(outcome: object) -> object:
    inside()
    await anyio.lowlevel.checkpoint()
    await anyio.lowlevel.checkpoint()
    if outcome == "wait":
        await anyio.sleep_forever()
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


class AsyncCallable:
    async def __call__(self, outcome: object) -> object:
        return await work(outcome)


def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(*args: Any) -> Any:
        return function(*args)

    return wrapper


@types.coroutine
def generator_based(outcome: object) -> Generator[Any, Any, object]:
    return (yield from work(outcome).__await__())


class Request:
    """Something to await that is more than that, as HTTP clients have it."""

    def __init__(self, outcome: object) -> None:
        self.outcome = outcome
        self.url = "http://example"

    def __await__(self) -> Generator[Any, Any, object]:
        return work(self.outcome).__await__()

    async def __aenter__(self) -> Request:
        await work(None)
        return self

    async def __aexit__(self, *error: object) -> None:
        await anyio.lowlevel.checkpoint()


FUNCTIONS: dict[str, Callable[[object], Any]] = {
    "async function": work,
    "async callable": AsyncCallable(),
    "its method": AsyncCallable().__call__,
    "partial": partial(work),
    "partial of an async callable": partial(AsyncCallable()),
    "lambda": lambda outcome: work(outcome),
    "wrapped": wrapped(work),
    "wrapped twice": wrapped(wrapped(AsyncCallable())),
    "generator-based": generator_based,
    "returns a generator-based": lambda outcome: generator_based(outcome),
    "awaitable object": lambda outcome: Request(outcome),
    "async function that returns a coroutine": lambda outcome: wrapped(work)(outcome),
}


async def test_a_call_that_is_awaited_at_once_is_recorded_until_it_is_done() -> None:
    for name, function in FUNCTIONS.items():
        async with recording() as r:
            assert await trace(function)({"answer": 42}) == {"answer": 42}, name
            between()
            with pytest.raises(ValueError, match="no"):
                await trace(function)(ValueError("no"))
        expected = [("agent:tool", status, [INNER]) for status in ("complete", "failed")]
        assert r.run.shape == ("complete", expected), name
        assert r.run.roots[0].result == {"answer": 42}, name


@pytest.mark.parametrize("outcome", ["complete", "failed", "cancelled"])
async def test_a_call_lasts_until_its_returned_awaitable_is_done(outcome: str) -> None:
    error = ValueError("no")
    given = {"complete": {"answer": 42}, "failed": error, "cancelled": "wait"}[outcome]
    for name, function in FUNCTIONS.items():
        async with recording() as r:
            awaitable = trace(function)(given)
            between()
            if outcome == "complete":
                assert await awaitable == given, name
            elif outcome == "failed":
                with pytest.raises(ValueError, match="no") as caught:
                    await awaitable
                assert caught.value is error, name
            else:
                with anyio.move_on_after(0.01):
                    await awaitable
            between()
        assert r.run.shape == tool(outcome, INNER), name
        if outcome == "complete":
            assert r.run.named("agent:tool").result == given, name


def test_a_decorated_function_looks_like_itself_whatever_it_returns() -> None:
    for name, function in FUNCTIONS.items():
        for kind in (
            inspect.iscoroutinefunction,
            inspect.isgeneratorfunction,
            inspect.isasyncgenfunction,
            inspect.signature,
        ):
            assert kind(trace(function)) == kind(function), name


async def test_the_substitute_of_a_coroutine_can_be_a_task(anyio_backend_name: str) -> None:
    for name in ("lambda", "async callable", "wrapped"):
        async with recording() as r:
            made = trace(FUNCTIONS[name])
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(made, "x")
            if anyio_backend_name == "asyncio":
                coroutine = made("x")
                assert inspect.iscoroutine(coroutine), name
                assert coroutine.__qualname__ in ("work", "AsyncCallable.__call__")
                task = asyncio.create_task(coroutine)
                assert await task == "x"
        once = ("agent:tool", "complete", [INNER])
        times = 2 if anyio_backend_name == "asyncio" else 1
        assert r.run.shape == ("complete", [once] * times), name


@pytest.mark.parametrize("way", ["closed", "collected"])
async def test_a_coroutine_that_is_never_awaited_is_cancelled_and_python_warns_as_ever(
    way: str,
) -> None:
    said: list[list[str]] = []
    async with recording() as r:
        for function in (FUNCTIONS["lambda"], trace(FUNCTIONS["lambda"])):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                coroutine = function("x")
                if way == "closed":
                    coroutine.close()
                del coroutine
                gc.collect()
            said.append([str(warning.message) for warning in caught])
        assert SpanContextStack.is_empty()
    assert said[0] == said[1] == ["coroutine 'work' was never awaited"] * (way == "collected")
    assert r.run.shape == tool("cancelled")


@pytest.mark.parametrize("outcome", ["complete", "failed", "cancelled"])
def test_a_future_stays_the_same_object_and_its_outcome_is_that_of_the_call(outcome: str) -> None:
    for kind in ("task", "future", "done", "of a thread"):
        asyncio.run(_with_future(kind, outcome))


async def _with_future(kind: str, outcome: str) -> None:
    made: list[Any] = []
    go_on = anyio.Event()

    async def body() -> str:
        inside()
        await go_on.wait()
        if outcome == "failed":
            raise ValueError("no")
        return "x"

    def complete(future: Any) -> None:
        if outcome == "complete":
            future.set_result("x")
        elif outcome == "failed":
            future.set_exception(ValueError("no"))
        else:
            future.cancel()

    @trace
    def start() -> Any:
        if kind == "task":
            made.append(asyncio.create_task(body()))
        else:
            made.append(Future[str]() if kind == "of a thread" else asyncio.Future[str]())
            if kind == "done":
                complete(made[-1])
        return made[-1]

    async with recording() as r:
        future = start()
        assert future is made[0]
        between()
        await anyio.wait_all_tasks_blocked()
        if kind == "task":
            go_on.set()
            if outcome == "cancelled":
                future.cancel()
        elif kind != "done":
            complete(future)
        if kind != "of a thread":
            await asyncio.wait([future])
        await asyncio.sleep(0)
        if outcome == "failed":
            assert isinstance(future.exception(), ValueError)  # nor does Python complain of it
    assert r.run.shape == tool(outcome, *([INNER] if kind == "task" else [])), kind
    if outcome == "complete":
        assert r.run.named("agent:tool").result == {"result": "x"}


async def test_the_work_of_another_thread_ends_its_call_when_it_is_done() -> None:
    with ThreadPoolExecutor(1) as pool:

        @trace
        def start(n: int) -> Future[int]:
            context = contextvars.copy_context()
            return pool.submit(context.run, work_in_thread, n)

        def work_in_thread(n: int) -> int:
            inside()
            return n + 1

        async with recording() as r:
            future = start(1)
            assert await anyio.to_thread.run_sync(future.result) == 2
            await anyio.to_thread.run_sync(partial(pool.shutdown))
    assert r.run.shape == tool("complete", INNER)


def test_asyncio_reports_an_error_that_is_never_retrieved_as_ever() -> None:
    assert asyncio.run(_with_lost_error()) == ["Task exception was never retrieved"]


async def _with_lost_error() -> list[str]:
    reported: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: reported.append(context["message"]))

    @trace
    def start() -> asyncio.Task[object]:
        return asyncio.create_task(fail())

    async def fail() -> None:
        raise ValueError("no")

    async with recording() as r:
        start()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        gc.collect()
    assert r.run.shape == tool("failed")
    return reported


async def test_a_request_that_is_entered_and_not_awaited_behaves_as_before() -> None:
    async with recording() as r:

        @trace
        def get() -> Request:
            return Request(None)

        request = get()
        assert isinstance(request, Request)
        assert request.url == "http://example"
        async with request as entered:
            assert entered is request
            entered.url = "http://other"
        assert request.url == "http://other"
    assert r.run.shape == ("complete", [("agent:tool", "complete", []), INNER])


class CoroutineRequest(Request, Coroutine[Any, Any, object]):
    """One that can be a task as well."""

    def __init__(self, outcome: object) -> None:
        super().__init__(outcome)
        self.work = work(outcome)

    def __await__(self) -> Generator[Any, Any, object]:
        return self.work.__await__()

    def send(self, value: Any) -> Any:
        return self.work.send(value)

    def throw(self, *error: Any) -> Any:
        return self.work.throw(*error)

    def close(self) -> None:
        self.work.close()


@pytest.mark.parametrize("status", ["complete", "failed", "cancelled"])
def test_a_request_can_be_a_task_and_is_recorded_until_that_is_done(status: str) -> None:
    outcomes = {"complete": {"answer": 42}, "failed": ValueError("no"), "cancelled": "wait"}

    async def main() -> None:
        async with recording() as r:
            task = asyncio.ensure_future(trace(lambda: CoroutineRequest(outcomes[status]))())
            for _ in range(5):
                between()
                await asyncio.sleep(0)
            if status == "cancelled":
                task.cancel()
            (got,) = await asyncio.gather(task, return_exceptions=True)
            assert got == outcomes[status] or isinstance(got, asyncio.CancelledError)
            del task
        assert r.run.shape == tool(status, INNER)
        result = r.run.named("agent:tool").result
        assert "items" not in (result or {})
        assert status != "complete" or result == {"answer": 42}

    asyncio.run(main())


# Iterators


def numbers(count: int = 3) -> Generator[int, None, str]:
    for number in range(count):
        inside()
        yield number
    return "over"


async def anumbers(count: int = 3) -> AsyncGenerator[int]:
    for number in range(count):
        inside()
        await anyio.lowlevel.checkpoint()
        yield number


class Stream:
    """A stream of a client for models, as there are many."""

    def __init__(self, count: int = 3) -> None:
        self.items = iter(range(count))
        self.response = "the response"
        self.closed = False

    def __iter__(self) -> Iterator[int]:
        yield from self.items

    def __next__(self) -> int:
        inside()
        return next(self.items)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self.closed = True


class AsyncStream:
    """The same, asynchronous."""

    def __init__(self, count: int = 3) -> None:
        self.items = iter(range(count))
        self.response = "the response"
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[int]:
        for item in self.items:
            yield item

    async def __anext__(self) -> int:
        inside()
        await anyio.lowlevel.checkpoint()
        for item in self.items:
            return item
        raise StopAsyncIteration

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        await anyio.lowlevel.checkpoint()
        self.closed = True


def _make(kind: type[Any]) -> Callable[[], Any]:
    return lambda: kind()


async def _make_later() -> AsyncStream:
    return AsyncStream()


async def _items_of(stream: Any, most: int = 100) -> list[int]:
    got: list[int] = []
    if hasattr(stream, "__aiter__"):
        async for item in stream:
            between()
            got.append(item)
            if len(got) == most:
                break
    else:
        for item in stream:
            between()
            got.append(item)
            if len(got) == most:
                break
    return got


STREAMS: dict[str, Callable[[], Any]] = {
    "generator": lambda: numbers(),
    "partial": partial(lambda: numbers()),
    "async generator": lambda: anumbers(),
    "stream": _make(Stream),
    "async stream": _make(AsyncStream),
    "coroutine that gives a stream": _make_later,
    "function of a coroutine that gives a stream": lambda: _make_later(),
}


async def _open(name: str) -> Any:
    stream = trace(STREAMS[name])()
    return await stream if inspect.iscoroutine(stream) else stream


async def test_a_call_lasts_until_the_stream_that_it_has_returned_is_at_its_end() -> None:
    for name in STREAMS:
        async with recording() as r:
            stream = await _open(name)
            between()
            assert await _items_of(stream) == [0, 1, 2], name
            between()
        (root,) = r.run.roots
        assert (root.name, root.status) == ("agent:tool", "complete"), name
        assert root.result == {"items": [0, 1, 2]}, name
        assert {child.name for child in root.children} == {"agent:llm"}, name
        # Streams that are no generators are asked for their end, too.
        assert len(root.children) in (3, 4), name


@pytest.mark.parametrize("way", ["closed", "forgotten"])
async def test_a_stream_that_is_left_early_is_cancelled(way: str) -> None:
    for name in STREAMS:
        async with recording() as r:
            stream = await _open(name)
            assert await _items_of(stream, 2) == [0, 1], name
            if way == "closed" or name == "async generator":  # which its loop would close
                closing = stream.aclose() if hasattr(stream, "aclose") else stream.close()
                if inspect.isawaitable(closing):
                    await closing
            del stream
            gc.collect()
            between()
        (root,) = r.run.roots
        assert (root.name, root.status) == ("agent:tool", "cancelled"), name
        assert root.result == {"items": [0, 1]}, name


@pytest.mark.parametrize("name", ["stream", "async stream"])
@pytest.mark.parametrize("outcome", ["complete", "cancelled", "failed"])
async def test_a_call_ends_with_the_block_of_its_stream_at_the_latest(
    name: str, outcome: str
) -> None:
    async def use(stream: Any) -> None:
        count = 3 if outcome == "complete" else 2
        assert len(await _items_of(stream, 100 if count == 3 else 2)) == count
        if outcome == "failed":
            raise ValueError("no")

    async with recording() as r:
        stream = await _open(name)
        with pytest.raises(ValueError, match="no") if outcome == "failed" else nullcontext():
            if name == "stream":
                with stream as entered:
                    assert entered is stream
                    await use(entered)
            else:
                async with stream as entered:
                    assert entered is stream
                    await use(entered)
        assert stream.closed
        between()
    (root,) = r.run.roots
    assert (root.status, root.result["items"]) == (outcome, [0, 1, 2][: len(root.result["items"])])
    assert len(root.result["items"]) == (3 if outcome == "complete" else 2)


async def test_an_error_of_a_stream_fails_its_call() -> None:
    class Failing(Stream):
        def __next__(self) -> int:
            raise ValueError("no")

    class AsyncFailing(AsyncStream):
        async def __anext__(self) -> int:
            await anyio.lowlevel.checkpoint()
            raise ValueError("no")

    makers: dict[str, Callable[[], Any]] = {
        "generator": lambda: (1 // 0 for _ in range(2)),
        "async generator": lambda: _failing(),
        "stream": _make(Failing),
        "async stream": _make(AsyncFailing),
    }
    for name, maker in makers.items():
        async with recording() as r:
            with pytest.raises((ValueError, ZeroDivisionError)):
                await _items_of(trace(maker)())
        (root,) = r.run.roots
        assert (root.status, root.result["items"]) == ("failed", []), name


async def _failing() -> AsyncGenerator[int]:
    yield 1 // (0 * await _zero())


async def _zero() -> int:
    return 0


async def test_a_stream_that_is_never_asked_for_an_item_ends_its_call_as_well() -> None:
    for name in ("generator", "async generator", "stream", "async stream"):
        async with recording() as r:
            stream = await _open(name)
            del stream
            gc.collect()
            between()
        # The work of a generator was not begun; an object may have been used in other ways.
        status = "cancelled" if "generator" in name else "complete"
        assert r.run.shape == tool(status), name


async def test_a_generator_that_is_returned_is_a_generator_and_returns_its_value() -> None:
    def delegates() -> Generator[int, None, None]:
        values.append((yield from made))

    values: list[str] = []
    async with recording():
        made = trace(STREAMS["generator"])()
        assert isinstance(made, types.GeneratorType)
        assert made.__qualname__ == "numbers"
        assert list(delegates()) == [0, 1, 2]
        agen = trace(STREAMS["async generator"])()
        assert inspect.isasyncgen(agen)
        await agen.aclose()
    assert values == ["over"]


async def test_the_proxy_of_a_stream_does_what_the_stream_does() -> None:
    class Counted(Stream):
        """Has special methods."""

        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> str:
            return f"item {index}"

        def __eq__(self, other: object) -> bool:
            return self is other or other == "equal"

        __hash__ = None  # type: ignore[assignment]

    async with recording():
        stream = trace(_make(Counted))()
        assert type(stream) is not Counted
        assert isinstance(stream, Counted)
        assert isinstance(stream, Iterator)
        assert not hasattr(stream, "__aiter__")
        assert stream.response == "the response"
        assert (len(stream), stream[1], bool(stream)) == (3, "item 1", True)
        assert stream == "equal"
        with pytest.raises(TypeError, match="unhashable"):
            hash(stream)
        assert "Counted object" in repr(stream)
        assert (stream.__doc__, "response" in dir(stream)) == ("Has special methods.", True)
        stream.response = "another"
        assert vars(stream)["response"] == "another"
        del stream.response
        with pytest.raises(AttributeError, match="response"):
            _ = stream.response
        assert type(copy.copy(stream)) is Counted
        stream.close()
        assert stream.closed
        # After its end it still is what it was.
        assert list(itertools.islice(stream, 2)) == [0, 1]


class Unlike:
    """An object that says it has every attribute."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args: None


async def test_a_return_value_without_work_left_is_the_same_object() -> None:
    values: list[object] = [
        [1],
        (1,),
        {"a": 1},
        {1},
        "text",
        range(3),
        io.StringIO("a\nb"),
        io.BytesIO(b"a\nb"),
        AsyncCallable(),
        Unlike(),
        Stream,
        Path("x"),
        type("Iterable", (), {"__iter__": lambda self: iter(())})(),
        type("Never", (), {"__await__": None, "__next__": None})(),
    ]
    async with recording() as r:
        for value in values:
            assert trace(lambda value=value: value)() is value
    assert r.run.shape == ("complete", [("agent:tool", "complete", [])] * len(values))


async def test_an_open_file_is_no_stream(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_text("a\nb")
    async with recording() as r:
        with trace(lambda: path.open())() as file:
            assert isinstance(file, io.TextIOWrapper)
            assert not isinstance(file, _Proxy)
    assert r.run.shape == tool("complete")


async def test_outside_a_run_the_return_value_is_the_same_object() -> None:
    made = numbers()
    assert trace(lambda: made)() is made
    coroutine = work("x")
    assert trace(lambda: coroutine)() is coroutine
    assert await coroutine == "x"


async def test_many_calls_that_last_at_once_do_not_mix() -> None:
    @trace
    def call(n: int) -> Awaitable[object]:
        return work(n)

    async def one(n: int) -> None:
        assert await call(n) == n

    async with recording() as r:
        async with anyio.create_task_group() as tasks:
            for n in range(10):
                tasks.start_soon(one, n)
    assert sorted(root.payload["n"] for root in r.run.roots) == list(range(10))
    assert all(root.shape == ("agent:tool", "complete", [INNER]) for root in r.run.roots)


async def test_two_tasks_that_take_from_one_stream_do_not_end_it() -> None:
    got: list[int] = []

    async def take(stream: Any) -> None:
        got.extend([item async for item in stream])

    async with recording() as r:
        stream = trace(lambda: AsyncStream(9))()
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(take, stream)
    assert sorted(got) == list(range(9))
    (root,) = r.run.roots
    assert (root.status, sorted(root.result["items"])) == ("complete", list(range(9)))
