"""The description of an exception: its type, its message and its stacktrace."""

from __future__ import annotations

import gc
import json
import re
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NoReturn
from weakref import ref

import anyio
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.cases import for_each
from support.examples import examples
from support.harness import recording
from support.virtual_time import virtual_time

from prefactor_core import AgentInstanceHandle
from prefactor_core.exceptions import PrefactorValueError
from prefactor_core.payloads.capture import Capture
from prefactor_core.payloads.error_description import describe_error
from prefactor_core.schema_registry import SchemaRegistry


class ToolError(Exception):
    pass


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        raise error from cause
    except type(error) as caught:
        return caught


def test_an_error_is_described_by_type_message_and_stacktrace() -> None:
    cause = raised(KeyError("city"))
    described = describe_error(raised(ValueError("no such city"), cause))
    assert (described["type"], described["message"]) == ("ValueError", "no such city")
    stacktrace = str(described["stacktrace"])
    assert stacktrace.index("KeyError: 'city'") < stacktrace.index("ValueError: no such city")
    assert "raise error from cause" in stacktrace
    assert described.keys() == {"type", "message", "stacktrace"}


def test_the_type_of_an_error_that_is_not_builtin_has_its_module() -> None:
    assert describe_error(ToolError())["type"] == f"{__name__}.ToolError"


def test_describing_an_error_leaves_it_as_it_is() -> None:
    cause = KeyError("city")
    error = raised(ToolError("x"), cause)
    traceback = error.__traceback__
    describe_error(error)
    assert (error.__cause__, error.__traceback__, error.args) == (cause, traceback, ("x",))


class RaisingTextError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class NumberTextError(Exception):
    def __str__(self) -> str:
        return 7


class RaisingNotesError(Exception):
    @property
    def __notes__(self) -> list[str]:
        raise RuntimeError("no notes")


@for_each(
    "error",
    [
        RaisingTextError(),
        NumberTextError(),
        RaisingNotesError("x"),
        ValueError("\ud800"),
        ExceptionGroup("many", [RaisingTextError(), ValueError()]),
        KeyboardInterrupt(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_every_error_can_be_described_and_captured(error: BaseException) -> None:
    described = json.loads(bytes(Capture()(describe_error(raised(error)))))
    assert described["type"].endswith(type(error).__qualname__)
    assert all(isinstance(part, str) for part in described.values())


@for_each("error", [RaisingTextError(), NumberTextError()])
def test_an_error_without_a_text_is_unprintable(error: Exception) -> None:
    assert describe_error(error)["message"] == "<unprintable>"


def test_a_slow_text_of_an_error_leaves_its_traceback() -> None:
    gate, asked = threading.Event(), []

    class SlowError(Exception):
        def __str__(self) -> str:
            asked.append(1)
            gate.wait()
            return "late"

    try:
        described = describe_error(raised(SlowError()))
    finally:
        gate.set()
    assert described["message"] == f"<slow {SlowError.__qualname__}>"
    assert "raise error from cause" in str(described["stacktrace"])
    assert asked == [1]


# Bounds


def deep(depth: int) -> NoReturn:
    if depth:
        deep(depth - 1)
    raise ValueError("deep")


def raised_again(times: int) -> BaseException:
    error = ValueError("again")
    for _ in range(times):
        with suppress(ValueError):
            raise error
    return error


def chained(length: int) -> BaseException:
    error: BaseException = KeyError("root")
    for number in range(length):
        error = raised(ValueError(f"number {number}"), error)
    return error


def wide(width: int) -> BaseException:
    return ExceptionGroup("wide", [ValueError(f"number {number}") for number in range(width)])


def nested(depth: int) -> BaseException:
    error: Exception = ValueError("inside")
    for _ in range(depth):
        error = ExceptionGroup("around", [error, chained_exception(20)])
    return error


def chained_exception(length: int) -> Exception:
    error = chained(length)
    assert isinstance(error, Exception)
    return error


def noted(notes: int) -> BaseException:
    error = ValueError("noted")
    for number in range(notes):
        error.add_note(f"note {number} " + "x" * 5_000)
    return error


SIZES: list[Callable[[int], BaseException]] = [
    raised_again,
    chained,
    wide,
    nested,
    noted,
    lambda size: ValueError("x" * size * 1_000),
]


@given(st.sampled_from(SIZES), st.integers(1, 200))
@example(raised_again, 5_000)
@example(wide, 5_000)
@example(nested, 60)
def test_a_description_is_bounded_and_says_what_is_missing(
    make: Callable[[int], BaseException], size: int
) -> None:
    described = describe_error(make(size))
    message, stacktrace = str(described["message"]), str(described["stacktrace"])
    assert len(message) <= 10_100
    assert len(stacktrace) <= 50_100
    assert "<unprintable>" not in stacktrace
    if size > 60:
        assert "left out …" in message + stacktrace


def test_of_a_deep_stack_both_ends_are_kept() -> None:
    try:
        deep(100)
    except ValueError as error:
        lines = str(describe_error(error)["stacktrace"]).splitlines()
    assert "in test_of_a_deep_stack_both_ends_are_kept" in lines[1]
    assert "  … 52 frames left out …" in lines
    assert lines[-2:] == ['    raise ValueError("deep")', "ValueError: deep"]


def test_of_a_long_chain_the_root_and_the_last_ones_are_kept() -> None:
    stacktrace = str(describe_error(chained(40))["stacktrace"])
    named = [line for line in stacktrace.splitlines() if line.startswith(("KeyError", "Value"))]
    assert named == [
        "KeyError: 'root'",
        *(f"ValueError: number {number}" for number in (0, 1, 35, 36, 37, 38, 39)),
    ]
    assert "… 33 exceptions left out …" in stacktrace
    assert str(describe_error(chained(100))["stacktrace"]).startswith("… more exceptions left out")


def test_a_circle_of_causes_ends() -> None:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    stacktrace = str(describe_error(first)["stacktrace"])
    assert stacktrace.count("ValueError: ") == 2


def test_notes_and_members_of_groups_are_described() -> None:
    error = ExceptionGroup("many", [ValueError("one"), KeyError("two")])
    error.add_note("a note")
    assert describe_error(error)["stacktrace"] == (
        "ExceptionGroup: many (2 sub-exceptions)\n"
        "a note\n"
        "  1 of 2:\n"
        "    ValueError: one\n"
        "  2 of 2:\n"
        "    KeyError: 'two'\n"
    )


def test_a_suppressed_context_is_not_described() -> None:
    def fails(shown: bool) -> NoReturn:
        try:
            raise KeyError("first")
        except KeyError as error:
            raise ValueError("second") from (error if shown else None)

    for shown in (True, False):
        with pytest.raises(ValueError, match="second") as caught:
            fails(shown)
        assert ("KeyError" in str(describe_error(caught.value)["stacktrace"])) is shown


@pytest.mark.parametrize(("lines", "shown"), [(10, True), (100_000, False)])
def test_no_large_file_is_read_for_a_line_of_it(tmp_path: Path, lines: int, shown: bool) -> None:
    file = tmp_path / "generated.py"
    file.write_text("raise ValueError('here')\n" + "# and so on\n" * lines)
    try:
        exec(compile(file.read_text(), str(file), "exec"), {})
    except ValueError as error:
        stacktrace = str(describe_error(error)["stacktrace"])
    assert f'File "{file}", line 1, in <module>' in stacktrace
    assert ("raise ValueError('here')" in stacktrace) is shown


# Once


class TellingError(Exception):
    """Counts how often it is asked."""

    def __init__(self, text: str = "asked") -> None:
        super().__init__(text)
        self.asked = 0

    def __str__(self) -> str:
        self.asked += 1
        return str(self.args[0])


class SlottedError(Exception):
    """Has no weak references, as those that are built in."""

    __slots__ = ()

    def __str__(self) -> str:
        return str(self.args[0])


KINDS: dict[str, Callable[[str], Exception]] = {
    "built in": ValueError,
    "of a class": TellingError,
    "with slots": SlottedError,
    "without arguments": lambda text: (ValueError if text.endswith("1") else KeyError)(),
}


async def nested_spans(
    run: AgentInstanceHandle, form: str, depth: int, work: Callable[[], object]
) -> None:
    if depth == 0:
        work()
    elif form == "with":
        with run.span("agent:tool"):
            await nested_spans(run, form, depth - 1, work)
    elif form == "async with":
        async with run.span("agent:tool"):
            await nested_spans(run, form, depth - 1, work)
    elif form == "context manager":
        with context_of(run):
            await nested_spans(run, form, depth - 1, work)
    elif form == "async context manager":
        async with async_context_of(run):
            await nested_spans(run, form, depth - 1, work)
    else:
        await run.traced("agent:tool")(nested_spans)(run, form, depth - 1, work)


@contextmanager
def context_of(run: AgentInstanceHandle) -> Generator[None]:
    with run.span("agent:tool"):
        yield


@asynccontextmanager
async def async_context_of(run: AgentInstanceHandle) -> AsyncGenerator[None]:
    async with run.span("agent:tool"):
        yield


@pytest.mark.virtual_time
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "form", ["with", "async with", "context manager", "async context manager", "traced"]
)
async def test_an_error_is_described_once_however_many_spans_it_leaves(
    form: str, kind: str
) -> None:
    error = KINDS[kind]("the only one")

    def fails() -> NoReturn:
        raise error

    async with recording() as r:
        with pytest.raises(type(error)) as caught:
            await nested_spans(r.instance, form, 100, fails)
        assert caught.value is error
    assert not isinstance(error, TellingError) or error.asked == 1
    kept = [span.result["error"] for span in r.run.spans.values()]
    assert len(kept) == 100
    assert all(error == kept[0] for error in kept)
    assert "in fails" in kept[0]["stacktrace"]


@pytest.mark.virtual_time
async def test_a_run_keeps_the_description_of_its_spans() -> None:
    async with recording() as r:
        error = TellingError()
        for _ in range(3):
            r.instance.create_span_nowait("agent:run")
        with pytest.raises(TellingError):
            async with r.client.agent_instance("other", {"name": "Other"}) as other:
                other.create_span_nowait("agent:run")
                with other.span("agent:llm"):
                    raise error
    assert error.asked == 1


@contextmanager
def counted() -> Generator[list[int]]:
    """How many calls were made, in Python and in C."""
    count = [0]

    def note(frame: FrameType, event: str, argument: object) -> None:
        count[0] += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        yield count
    finally:
        sys.setprofile(None)


def unwound(run: AgentInstanceHandle, way: str, depth: int) -> None:
    with run.span("agent:tool"):
        if depth == 0:
            raise ValueError("innermost")
        try:
            unwound(run, way, depth - 1)
        except Exception as error:
            match way:
                case "as it is":
                    raise
                case "wrapped":
                    raise ValueError(f"at {depth}") from error
                case _:
                    raise ExceptionGroup(f"at {depth}", [error]) from None


@pytest.mark.virtual_time
@pytest.mark.parametrize("way", ["as it is", "wrapped", "grouped"])
async def test_twice_as_many_spans_cost_an_error_twice_as_much(way: str) -> None:
    calls: list[int] = []
    async with recording() as r:
        for depth in (10, 75, 150):  # first, files are read and caches filled
            with counted() as count, suppress(Exception):
                unwound(r.instance, way, depth)
            calls.append(count[0])
    assert calls[2] <= 2.3 * calls[1]


@pytest.mark.virtual_time
@pytest.mark.parametrize("form", ["function", "async function", "generator", "async generator"])
async def test_the_stack_of_a_traced_function_begins_with_the_function(form: str) -> None:
    def fails() -> NoReturn:
        try:
            raise KeyError("cause")
        except KeyError as cause:
            raise ToolError("traced") from cause

    async def fails_later() -> NoReturn:
        fails()

    def yields() -> Generator[int]:
        yield 1
        fails()

    async def yields_later() -> AsyncGenerator[int]:
        yield 1
        fails()

    with anyio.fail_after(10):
        async with recording() as r:
            traced = r.instance.traced("agent:tool")
            with pytest.raises(ToolError):
                match form:
                    case "function":
                        traced(fails)()
                    case "async function":
                        await traced(fails_later)()
                    case "generator":
                        list(traced(yields)())
                    case _:
                        async for _ in traced(yields_later)():
                            pass
    (stacktrace,) = [s.result["error"]["stacktrace"] for s in r.run.spans.values()]
    frames = re.findall(r'^  File ".*", line \d+, in (.*)$', stacktrace, re.MULTILINE)
    outer = {
        "function": [],
        "async function": ["fails_later"],
        "generator": ["yields"],
        "async generator": ["yields_later"],
    }
    assert frames == ["fails", *outer[form], "fails"]


def test_globals_that_raise_leave_the_traceback() -> None:
    class Raising(dict[str, Any]):
        def get(self, *_: object) -> NoReturn:
            raise RuntimeError("no names")

    try:
        exec("raise ValueError('here')", Raising())
    except ValueError as error:
        error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next
        stacktrace = str(describe_error(error)["stacktrace"])
    assert 'File "<string>", line 1, in <module>' in stacktrace


def test_an_error_of_this_library_keeps_the_frames_of_the_library() -> None:
    registry = SchemaRegistry()
    registry.register_type("agent:tool", {})
    try:
        registry.register_type("agent:tool", {})
    except PrefactorValueError as error:
        whole = str(describe_error(error)["stacktrace"])
        error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next
        inner = str(describe_error(error)["stacktrace"])
    assert "in test_an_error_of_this_library" in whole
    assert "in register_type" in whole
    assert "in register_type" in inner


async def test_an_endless_recursion_of_traced_functions_is_described_once() -> None:
    async with recording() as r:

        @r.instance.traced("agent:tool")
        def again() -> None:
            again()

        with pytest.raises(RecursionError):
            again()
    kept = [span.result.get("error") for span in r.run.spans.values() if span.result]
    stacktraces = {error["stacktrace"] for error in kept if error and error["stacktrace"]}
    assert len(stacktraces) == 1
    assert "again()" in stacktraces.pop()
    (root,) = r.run.roots
    assert root.result["error"]["message"].startswith("maximum recursion depth exceeded")


def at_depth(depth: int, function: Callable[[], object]) -> object:
    return at_depth(depth - 1, function) if depth else function()


def test_what_was_described_with_too_little_stack_is_described_again_with_more() -> None:
    since = datetime(2020, 1, 1, tzinfo=UTC)
    frame, depth = sys._getframe(), 0
    while frame := frame.f_back:  # type: ignore[assignment]
        depth += 1
    for room in range(1, 150):
        error = raised(TellingError())
        with suppress(RecursionError):
            at_depth(sys.getrecursionlimit() - depth - room, partial(describe_error, error, since))
        described = describe_error(error, since)
        assert described["message"] == "asked"
        assert "raise error from cause" in str(described["stacktrace"])


@pytest.mark.parametrize("make", [ValueError, TellingError])
def test_a_description_keeps_no_frame_alive(make: Callable[[str], Exception]) -> None:
    class Local:
        pass

    def fails() -> NoReturn:
        local = Local()
        locals_.append(ref(local))
        raise make("x")

    locals_: list[ref[Local]] = []
    gc.disable()
    try:
        try:
            fails()
        except Exception as error:
            describe_error(error, datetime(2020, 1, 1, tzinfo=UTC))
        assert locals_[0]() is None
    finally:
        gc.enable()


@pytest.mark.virtual_time
async def test_an_error_is_not_taken_for_one_like_it_that_was_raised_elsewhere() -> None:
    def elsewhere() -> NoReturn:
        raise TimeoutError

    def here() -> NoReturn:
        raise TimeoutError

    async with recording() as r:
        for _ in range(10):  # some of them at the address of the one before
            with suppress(TimeoutError), r.instance.span("agent:run"):
                with suppress(TimeoutError), r.instance.span("agent:llm"):
                    elsewhere()
                here()
    for name, where in (("agent:run", "in here"), ("agent:llm", "in elsewhere")):
        kept = [span.result["error"] for span in r.run.spans.values() if span.name == name]
        assert all(where in error["stacktrace"] for error in kept)


@pytest.mark.virtual_time
async def test_an_error_that_is_raised_again_later_is_described_again() -> None:
    error = TellingError()
    async with recording() as r:
        for text in ("first", "second"):
            error.args = (text,)
            with (
                suppress(TellingError),
                r.instance.span("agent:tool"),
                r.instance.span("agent:llm"),
            ):
                raise error
    kept = {
        name: [s.result["error"]["message"] for s in r.run.spans.values() if s.name == name]
        for name in ("agent:tool", "agent:llm")
    }
    assert kept == {"agent:tool": ["first", "second"], "agent:llm": ["first", "second"]}


@pytest.mark.virtual_time
@pytest.mark.parametrize("kind", KINDS)
async def test_an_error_that_is_caught_and_raised_elsewhere_is_described_by_its_new_place(
    kind: str,
) -> None:
    error = KINDS[kind]("kept by a module")  # for all its uses

    def elsewhere() -> NoReturn:
        raise error

    def here() -> NoReturn:
        raise error

    async with recording() as r:
        for _ in range(3):
            with suppress(type(error)), r.instance.span("agent:run"):
                with suppress(type(error)), r.instance.span("agent:llm"):
                    elsewhere()
                here()
    stacktraces: dict[str, list[str]] = {
        name: [s.result["error"]["stacktrace"] for s in r.run.spans.values() if s.name == name]
        for name in ("agent:run", "agent:llm")
    }
    # As Python tells it: the newest place first, what it came through before that after it.
    assert all(0 < text.find("in here") < text.find("in else") for text in stacktraces["agent:run"])
    first, *others = stacktraces["agent:llm"]
    assert "in here" not in first
    assert all(0 < text.find("in elsewhere") < text.find("in here") for text in others)


@pytest.mark.virtual_time
@pytest.mark.parametrize("kind", KINDS)
async def test_an_error_that_two_wait_for_is_described_by_the_way_that_each_got_it(
    kind: str,
) -> None:
    future: Future[None] = Future()

    def one() -> None:
        future.result()

    def other() -> None:
        future.result()

    async with recording() as r:
        first, second = r.instance.span("agent:run"), r.instance.span("agent:llm")
        first.__enter__()
        second.__enter__()
        error = KINDS[kind]("shared")
        future.set_exception(error)
        for span, wait in ((second, other), (first, one)):
            try:
                wait()
            except type(error) as caught:
                span.__exit__(type(caught), caught, caught.__traceback__)
                error.__traceback__ = None  # as a task does it for each who waits
    for name, where in (("agent:run", "in one"), ("agent:llm", "in other")):
        (stacktrace,) = [
            s.result["error"]["stacktrace"] for s in r.run.spans.values() if s.name == name
        ]
        assert [text for text in ("in one", "in other") if text in stacktrace] == [where]


# No error is taken for another


@dataclass(frozen=True)
class Block:
    """Children one after the other, which may raise, and then this; in a span or in none."""

    children: tuple[Block, ...] = ()
    span: bool = True
    caught: Literal["forgotten", "raise", "raise error", "raise from"] = "forgotten"
    raises: bool = False


blocks = st.recursive(
    st.builds(Block, span=st.booleans(), raises=st.just(True)),
    lambda inner: st.builds(
        Block,
        children=st.lists(inner, max_size=4).map(tuple),
        span=st.booleans(),
        caught=st.sampled_from(["forgotten", "raise", "raise error", "raise from"]),
        raises=st.booleans(),
    ),
    max_leaves=12,
)


class Agent:
    def __init__(self, run: AgentInstanceHandle, kind: str) -> None:
        self.run = run
        self.kind = kind
        self.count = 0
        self.expected: dict[str, tuple[str, str]] = {}

    def error(self) -> Exception:
        self.count += 1
        return KINDS[self.kind](f"number {self.count}")

    def does(self, block: Block) -> None:
        span = self.run.span("agent:tool") if block.span else nullcontext()
        try:
            # All blocks are this one, and errors come one after the other at the same address.
            with span:
                for child in block.children:
                    try:
                        self.does(child)
                    except Exception as error:
                        if block.caught == "raise":
                            raise
                        if block.caught == "raise error":
                            raise error
                        if block.caught == "raise from":
                            raise self.error() from error
                if block.raises:
                    raise self.error()
        except Exception as error:
            if not isinstance(span, nullcontext):
                self.expected[span.id] = type(error).__name__, str(error)
            raise


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@settings(max_examples=examples(60))
@given(blocks, st.sampled_from([*KINDS]))
@example(
    Block((Block(raises=True), Block(span=False, raises=True)), caught="forgotten"), "built in"
)
@example(Block((Block(raises=True),), raises=True), "without arguments")
@example(Block((Block((Block(raises=True), Block(span=False, raises=True))),)), "without arguments")
@example(Block((Block(raises=True),) * 3, raises=True), "built in")
@example(Block((Block(raises=True),) * 3, raises=True), "with slots")
def test_each_span_keeps_the_error_that_ended_it(backend: str, block: Block, kind: str) -> None:
    async def main() -> None:
        async with recording() as r:
            agent = Agent(r.instance, kind)
            with suppress(Exception):
                agent.does(block)
        stored: dict[str, Any] = r.run.spans
        errors = {id_: span.result["error"] for id_, span in stored.items() if span.result}
        kept = {
            id_: (error["type"].rpartition(".")[2], error["message"])
            for id_, error in errors.items()
        }
        assert kept == agent.expected

    anyio.run(main, backend=backend, backend_options=virtual_time(backend))
