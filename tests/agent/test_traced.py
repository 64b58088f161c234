"""Traced functions: the span of each call, and a function that behaves as before."""

from __future__ import annotations

import inspect
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Mapping
from contextlib import aclosing
from functools import lru_cache, partial
from threading import Thread
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from support.harness import AGENT, recording

from prefactor_core import (
    PrefactorTerminatedError,
    PrefactorValueError,
    current_instance,
    current_span,
    traced,
)

LOGGER = "prefactor_core.agent.traced"
TOOL = ("agent:tool", "complete", [])


# What is recorded of a call


async def test_a_call_of_an_async_function_is_a_span_with_arguments_and_result() -> None:
    @traced("agent:tool")
    async def search(query: str, limit: int = 3) -> list[str]:
        await anyio.lowlevel.checkpoint()
        return [query] * limit

    async with recording() as r:
        assert await search("x", limit=2) == ["x", "x"]
    assert r.run.shape == ("complete", [TOOL])
    stored = r.run.named("agent:tool")
    assert (stored.payload, stored.result) == (
        {"query": "x", "limit": 2},
        {"result": ["x", "x"]},
    )


async def test_a_call_of_a_function_is_a_span_of_the_run_that_decorates_it() -> None:
    async with recording() as r:
        other = await r.client.create_agent_instance(**AGENT)
        await other.start()

        @r.instance.traced("agent:llm", exclude=("api_key",))
        def ask(prompt: str, api_key: str) -> str:
            return prompt.upper()

        assert current_instance() is other
        assert ask("hi", api_key="secret") == "HI"
        await other.finish()
    (run,) = (run for run in r.runs if run.spans)
    assert run.id == r.instance.id
    stored = run.named("agent:llm")
    assert (stored.payload, stored.result) == ({"prompt": "hi"}, {"result": "HI"})


def _all_kinds(a: int, /, b: int = 2, *rest: int, c: int = 3, **options: int) -> None: ...


def _with_self(self: object, b: int) -> None: ...


def _with_self_later(b: int, self: int) -> None: ...


async def test_the_payload_has_the_arguments_by_name() -> None:
    cases: list[tuple[Callable[..., Any], Callable[[Any], object], tuple[str, ...], object]] = [
        (_all_kinds, lambda f: f(1), (), {"a": 1, "b": 2, "rest": [], "c": 3, "options": {}}),
        (
            _all_kinds,
            lambda f: f(1, 5, 6, 7, c=8, d=9, a=10),
            (),
            {"a": 1, "b": 5, "rest": [6, 7], "c": 8, "options": {"d": 9, "a": 10}},
        ),
        (_all_kinds, lambda f: f(1), ("b", "rest", "options"), {"a": 1, "c": 3}),
        (_with_self, lambda f: f("it", 1), (), {"self": "it", "b": 1}),
        (_with_self_later, lambda f: f(1, self=2), (), {"b": 1, "self": 2}),
        (partial(_all_kinds, 1, c=4), lambda f: f(b=0), ("rest", "options"), {"b": 0, "c": 4}),
        (lambda x: None, lambda f: f(1), (), {"x": 1}),
        # A built-in function that does not tell its parameters.
        (max, lambda f: f(1, 2), (), {"args": [1, 2], "kwargs": {}}),
    ]
    async with recording() as r:
        for function, call, exclude, _ in cases:
            call(traced("agent:tool", exclude=exclude)(function))
    assert [span.payload for span in r.run.roots] == [payload for *_, payload in cases]


async def test_a_mapping_is_the_result_and_anything_else_is_in_it() -> None:
    @traced("agent:tool")
    def give(value: object) -> object:
        return value

    cases: list[tuple[object, object]] = [
        ({"answer": 42}, {"answer": 42}),
        (None, None),
        ("text", {"result": "text"}),
        (0, {"result": 0}),
        (["a"], {"result": ["a"]}),
    ]
    async with recording() as r:
        for value, _ in cases:
            assert give(value) is value
    assert [span.result for span in r.run.roots] == [result for _, result in cases]


class _Unreadable(Mapping[str, object]):
    def __iter__(self) -> Iterator[str]:
        raise RuntimeError("no reading")

    def __len__(self) -> int:
        return 1

    def __getitem__(self, name: str) -> object:
        raise RuntimeError("no reading")

    def __repr__(self) -> str:
        return "unreadable"


async def test_a_mapping_that_cannot_be_read_is_a_value() -> None:
    @traced("agent:tool")
    def give() -> object:
        return _Unreadable()

    async with recording() as r:
        give()
    assert r.run.named("agent:tool").result == {"result": "unreadable"}


async def test_where_spans_wait_for_a_place_so_do_async_functions() -> None:
    @traced("agent:tool")
    async def call() -> None: ...

    # recording() says that nothing of it is lost.
    async with recording(queue={"max_pending_operations": 2, "when_full": "wait"}) as r:
        for _ in range(10):
            await call()
    assert r.run.shape == ("complete", [TOOL] * 10)


async def test_no_result_is_kept_where_none_is_wanted() -> None:
    @traced("agent:tool", capture_result=False)
    def give() -> str:
        return "secret"

    @traced("agent:llm", capture_result=False)
    def stream() -> Iterator[str]:
        yield "secret"

    @traced("agent:run", capture_result=False, reduce=lambda items: pytest.fail("not asked for"))
    async def astream() -> AsyncIterator[str]:
        yield "secret"

    async with recording() as r:
        give()
        assert list(stream()) == ["secret"]
        assert [item async for item in astream()] == ["secret"]
    assert [span.result for span in r.run.spans.values()] == [None] * 3


async def test_set_result_in_a_function_is_kept_beside_its_return_value() -> None:
    @traced("agent:llm")
    async def ask() -> str:
        span = current_span()
        assert span is not None
        span.set_result({"tokens": 7})
        return "hi"

    async with recording() as r:
        await ask()
    assert r.run.named("agent:llm").result == {"tokens": 7, "result": "hi"}


# How it ends


async def test_a_function_that_raises_fails_its_span_and_the_error_is_the_same() -> None:
    error = ValueError("no such city")

    @traced("agent:tool")
    def fail() -> None:
        raise error

    @traced("agent:llm")
    async def afail() -> None:
        raise error

    async with recording() as r:
        with pytest.raises(ValueError, match="no such city") as caught:
            fail()
        assert caught.value is error
        with pytest.raises(ValueError, match="no such city") as caught:
            await afail()
        assert caught.value is error
    for name in ("agent:tool", "agent:llm"):
        stored = r.run.named(name)
        assert stored.status == "failed"
        assert stored.result["error"]["message"] == "no such city"


async def test_a_function_that_is_cancelled_has_a_cancelled_span() -> None:
    @traced("agent:tool")
    async def wait() -> None:
        await anyio.sleep_forever()

    async with recording() as r:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait)
                await anyio.wait_all_tasks_blocked()
                scope.cancel()
    assert r.run.shape == ("complete", [("agent:tool", "cancelled", [])])


async def test_a_cancellation_does_not_take_what_a_function_has_returned() -> None:
    returned = False

    @traced("agent:tool")
    async def pay() -> str:
        return "receipt"

    async with recording() as r:
        with anyio.CancelScope() as scope:
            scope.cancel()
            returned = await pay() == "receipt"
    assert returned
    assert r.run.named("agent:tool").result == {"result": "receipt"}


async def test_arguments_that_do_not_fit_raise_the_error_of_the_function() -> None:
    def search(query: str) -> None: ...

    def stream(query: str) -> Iterator[str]:
        yield query

    with pytest.raises(TypeError) as expected:
        search()  # type: ignore[call-arg]
    async with recording() as r:
        with pytest.raises(TypeError) as caught:
            traced("agent:tool")(search)()  # type: ignore[call-arg]
        assert str(caught.value) == str(expected.value)
        with pytest.raises(TypeError, match="missing 1 required"):
            next(traced("agent:llm")(stream)())  # type: ignore[call-arg]
    for name in ("agent:tool", "agent:llm"):
        stored = r.run.named(name)
        assert (stored.status, stored.payload) == ("failed", {})


async def test_a_run_that_was_terminated_begins_no_call() -> None:
    async with recording() as r:
        run = await r.client.create_agent_instance(**AGENT)

        @run.traced("agent:tool")
        def call() -> None:
            pytest.fail("must not run")

        @run.traced("agent:tool")
        async def acall() -> None:
            pytest.fail("must not run")

        @run.traced("agent:tool")
        def stream() -> Iterator[int]:
            yield pytest.fail("must not run")

        @run.traced("agent:tool")
        async def astream() -> AsyncIterator[int]:
            yield pytest.fail("must not run")

        r.client.instance_manager.identity(run.id).terminate("enough")
        with pytest.raises(PrefactorTerminatedError, match="enough"):
            call()
        with pytest.raises(PrefactorTerminatedError, match="enough"):
            await acall()
        with pytest.raises(PrefactorTerminatedError, match="enough"):
            next(stream())
        with pytest.raises(PrefactorTerminatedError, match="enough"):
            await anext(astream())
        await run.finish()


# Where there is no run


async def test_outside_a_run_a_function_runs_unrecorded_which_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    @traced("agent:tool")
    def call(n: int) -> int:
        return n

    @traced("agent:tool")
    async def acall(n: int) -> int:
        return n

    @traced("agent:tool")
    def stream(n: int) -> Generator[int, int, str]:
        return f"got {yield n}"

    @traced("agent:tool")
    async def astream(n: int) -> AsyncGenerator[int, int]:
        yield (yield n)

    caplog.set_level(logging.INFO, LOGGER)
    for _ in range(2):
        assert call(1) == 1
        assert await acall(1) == 1
        numbers = stream(1)
        assert next(numbers) == 1
        with pytest.raises(StopIteration, match="got 2"):
            numbers.send(2)
        async with aclosing(astream(1)) as anumbers:
            assert await anext(anumbers) == 1
            assert await anumbers.asend(2) == 2
    logged = [record for record in caplog.records if record.name == LOGGER]
    assert [record.levelname for record in logged] == ["INFO"] * 4
    for record, function in zip(logged, (call, acall, stream, astream), strict=True):
        assert function.__qualname__ in record.getMessage()


async def test_the_run_is_that_of_the_call_and_of_the_first_item() -> None:
    @traced("agent:tool")
    def stream() -> Iterator[int]:
        yield 1

    @traced("agent:llm")
    async def astream() -> AsyncIterator[int]:
        yield 1

    early, aearly = stream(), astream()
    async with recording() as r:
        assert list(early) == [1]
        assert [item async for item in aearly] == [1]
    assert r.run.shape == ("complete", [TOOL, ("agent:llm", "complete", [])])


# Trees


async def test_calls_inside_of_a_call_are_its_children() -> None:
    @traced("agent:run")
    async def plan(depth: int) -> None:
        if depth:
            await plan(depth - 1)
        else:
            look_up()

    @traced("agent:tool")
    def look_up() -> None: ...

    async with recording() as r:
        await plan(2)
        look_up()
    inner = ("agent:run", "complete", [TOOL])
    assert r.run.shape == (
        "complete",
        [("agent:run", "complete", [("agent:run", "complete", [inner])]), TOOL],
    )


async def test_calls_of_several_tasks_do_not_mix() -> None:
    @traced("agent:run")
    async def work(n: int) -> None:
        await anyio.lowlevel.checkpoint()
        await step(n)
        async for _ in stream(n):
            await step(n)

    @traced("agent:tool")
    async def step(n: int) -> None:
        await anyio.lowlevel.checkpoint()

    @traced("agent:llm")
    async def stream(n: int) -> AsyncIterator[int]:
        for _ in range(3):
            await step(n)
            yield n

    async with recording() as r:
        async with anyio.create_task_group() as tasks:
            for n in range(5):
                tasks.start_soon(work, n)
    assert sorted(run.payload["n"] for run in r.run.roots) == list(range(5))
    for run in r.run.roots:
        (llm,) = (child for child in run.children if child.name == "agent:llm")
        assert [child.name for child in run.children].count("agent:tool") == 4
        assert [child.name for child in llm.children] == ["agent:tool"] * 3
        assert {span.payload["n"] for span in (*run.children, *llm.children)} == {run.payload["n"]}


async def test_a_call_in_a_worker_thread_is_a_child_of_the_span_of_its_task() -> None:
    @traced("agent:tool")
    def compute(n: int) -> int:
        return n + 1

    @traced("agent:run")
    async def work() -> int:
        return await anyio.to_thread.run_sync(compute, 1)

    async with recording() as r:
        assert await work() == 2
    assert r.run.shape == ("complete", [("agent:run", "complete", [TOOL])])


class _Toolbox:
    @traced("agent:tool")
    def method(self, n: int) -> int:
        return n

    @classmethod
    @traced("agent:tool")
    def of_the_class(cls, n: int) -> int:
        return n

    @staticmethod
    @traced("agent:tool")
    def static_above(n: int) -> int:
        return n

    @traced("agent:tool")
    @staticmethod
    def static_below(n: int) -> int:
        return n

    @traced("agent:tool")
    async def amethod(self, n: int) -> int:
        return n


async def test_methods_of_every_kind_are_recorded_without_their_object() -> None:
    box = _Toolbox()
    async with recording() as r:
        functions = (
            box.method,
            box.of_the_class,
            _Toolbox.of_the_class,
            box.static_above,
            _Toolbox.static_above,
            box.static_below,
            _Toolbox.static_below,
            traced("agent:tool")(box.method),
        )
        for n, function in enumerate(functions):
            assert function(n) == n
        assert await box.amethod(8) == 8
    # The last of them is decorated twice.
    payloads = [span.payload for span in r.run.spans.values()]
    assert payloads == [{"n": n} for n in (*range(8), 7, 8)]


async def test_only_the_object_of_a_method_is_left_out_not_a_parameter_that_is_called_so() -> None:
    @traced("agent:tool")
    def plain(self: str) -> None: ...

    @traced("agent:tool")
    async def aplain(cls: str) -> None: ...

    class Nested:
        @traced("agent:tool")
        def method(self, n: int) -> Callable[[int], None]:
            @traced("agent:tool")
            def inner(self: int) -> None: ...

            return inner

    async with recording() as r:
        plain("a")
        await aplain("b")
        Nested().method(1)(2)
    payloads = [span.payload for span in r.run.spans.values()]
    assert payloads == [{"self": "a"}, {"cls": "b"}, {"n": 1}, {"self": 2}]


async def test_a_function_that_is_an_object_keeps_what_it_can_do() -> None:
    class Counting:
        """Has a method beside its call."""

        called = 0
        shown = "text"

        def __call__(self, n: int) -> int:
            self.called += 1
            return n

        def calls(self) -> int:
            return self.called

    @traced("agent:tool")
    @lru_cache
    def double(n: int) -> int:
        return 2 * n

    class Box:
        @traced("agent:tool")
        @lru_cache  # noqa: B019 - it is tried here
        def cached(self, n: int) -> int:
            return n

    counted: Any = traced("agent:tool")(Counting())
    async with recording() as r:
        assert (double(1), double(1), double(2)) == (2, 2, 4)
        assert double.cache_info().hits == 1
        assert double.cache_parameters() == {"maxsize": 128, "typed": False}
        double.cache_clear()
        assert double.cache_info().currsize == 0
        box = Box()
        assert (box.cached(1), box.cached(1), Box.cached.cache_info().hits) == (1, 1, 1)
        assert (counted(1), counted.calls()) == (1, 1)
    assert len(r.run.spans) == 6


# The function itself


async def _coroutine(n: int) -> int:
    """A coroutine function."""
    return n


def _plain(n: int) -> int:
    """A function."""
    return n


def _generator(n: int) -> Iterator[int]:
    """A generator function."""
    yield n


async def _async_generator(n: int) -> AsyncIterator[int]:
    """An async generator function."""
    yield n


def test_a_decorated_function_looks_like_itself() -> None:
    functions: list[Callable[..., Any]] = [_coroutine, _plain, _generator, _async_generator]
    for function in functions:
        decorated = traced("agent:tool")(function)
        assert decorated is not function
        assert inspect.signature(decorated) == inspect.signature(function)
        assert (decorated.__name__, decorated.__doc__) == (function.__name__, function.__doc__)
        for kind in (
            inspect.iscoroutinefunction,
            inspect.isgeneratorfunction,
            inspect.isasyncgenfunction,
        ):
            assert kind(decorated) == kind(function)
            assert kind(traced("agent:tool")(partial(function, 1))) == kind(function)


def test_misuse_is_a_clear_error_at_decoration() -> None:
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: traced(""), "schema_name must be the name of a span type, got ''"),
        (lambda: traced(3), r'got 3: write @traced or @traced\("agent:tool"\)'),  # type: ignore[call-overload]
        (lambda: traced(_Toolbox), "got the class _Toolbox: decorate its methods"),
        (lambda: traced(classmethod(_plain)), "a classmethod: put @traced below @classmethod"),  # type: ignore[call-overload]
        (lambda: traced("agent:tool", model="m"), "got model: only the standard types"),  # type: ignore[call-overload]
        (lambda: traced("agent:tool")(3), "for functions, got int"),  # type: ignore[type-var]
        (lambda: traced("agent:tool")(_Toolbox), "the class _Toolbox: decorate its methods"),
        (
            lambda: traced("agent:tool")(classmethod(_plain)),  # type: ignore[type-var]
            "a classmethod: put @traced below @classmethod",
        ),
        (
            lambda: traced("agent:tool", exclude=("key", "m"))(lambda key, n: None),
            r"exclude names 'm', which is no parameter of .*<lambda>: it has 'key', 'n'",
        ),
        (
            lambda: traced("agent:tool", exclude=["m"])(lambda: None),
            "exclude names 'm', .* it has none",
        ),
        (lambda: traced("agent:tool", exclude="key"), "exclude must be a collection .*, got 'key'"),
        *(
            (
                lambda wrong=wrong: traced("agent:tool", exclude=wrong),
                "exclude must be a collection",
            )
            for wrong in (5, None, True, b"key")
        ),
        *(
            (
                lambda wrong=wrong: traced("agent:tool", capture_result=wrong),
                "capture_result must be True or False, got",
            )
            for wrong in (0, None, "no", [])
        ),
        (lambda: traced("agent:tool", reduce="")(_generator), "reduce must be a function"),  # type: ignore[arg-type]
        (lambda: traced("agent:tool", reduce="".join)(_plain), "generators, and _plain is none"),
        (lambda: traced("agent:tool", reduce="".join)(_coroutine), "_coroutine is none"),
    ]
    for decorate, message in cases:
        with pytest.raises(PrefactorValueError, match=message):
            decorate()


async def test_a_handle_is_misused_as_clearly() -> None:
    async with recording() as r:
        with pytest.raises(PrefactorValueError, match=r'write @traced or @traced\("agent:tool"\)'):
            r.instance.traced(b"agent:tool")  # type: ignore[call-overload]


async def test_a_function_of_a_run_whose_client_has_closed_works_as_ever() -> None:
    async with recording() as r:

        @r.instance.traced("agent:tool")
        def double(number: int) -> int:
            return 2 * number

        @r.instance.traced("agent:tool")
        async def triple(number: int) -> int:
            return 3 * number

        assert double(1) == 2
    assert double(2) == 4
    assert await triple(2) == 6
    assert r.run.shape == ("complete", [("agent:tool", "complete", [])])


async def test_a_thread_knows_the_run_of_the_span_that_is_open_in_it() -> None:
    async with recording() as r:

        @traced("agent:llm")
        def work() -> None:
            assert current_instance() is r.instance

        def main() -> None:
            assert current_instance() is None
            with r.instance.span("agent:tool"):
                work()

        thread = Thread(target=main)
        thread.start()
        await anyio.to_thread.run_sync(thread.join)
    assert r.run.shape == (
        "complete",
        [("agent:tool", "complete", [("agent:llm", "complete", [])])],
    )
