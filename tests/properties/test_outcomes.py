"""How a body ends, by what holds its spans and its run: what is recorded, and what goes on."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator
from contextlib import aclosing, closing, suppress
from contextvars import copy_context
from typing import Any, NamedTuple

import anyio
import anyio.lowlevel
import pytest
import trio
from support.harness import AGENT

from prefactor_core import (
    AgentInstanceHandle,
    PrefactorCoreClient,
    PrefactorTerminatedError,
    SpanContextStack,
    SyncPrefactorClient,
    current_instance,
    traced,
)
from prefactor_core.models.statistics import Statistics
from prefactor_core.testing import RecordedRun, Recording, open_recording

# An inner span in an outer span in a run in a client. The fence is the cancel scope, time-out or
# handler that the end of the body meets: around the client, around the spans in their run, around
# the inner span, or in that around the body. A span is left open where nobody ends it but the
# scopes around.
#
# The body may be cancelled by another task or by itself; time out by anyio, or be too slow for the
# backend's own time-out; be stopped by the API, and hear of it in a wait or at its next span, or
# look if it was by check(); raise as it unwinds from that, or be stopped and cancelled both.
# Interrupted is SIGINT, and exits SystemExit.
#
# What leaves the block of the run, and what leaves the program:
#   same: the very object that left the body
#   stop: one PrefactorTerminatedError with the reason that was given; over it: with what left the
#         body as its context
#   rest: a group of the error of the body alone, without the cancellations
TABLE = """
the body           fence   inner      outer      left open  run         leaves the run  the program
returns            -       complete   complete   cancelled  complete    -               -
raises             -       failed     failed     failed     failed      same            same
raises             spans   failed     failed     cancelled  complete    -               -
raises             inner   failed     complete   cancelled  complete    -               -
raises             body    complete   complete   cancelled  complete    -               -
raises in a group  -       failed     failed     failed     failed      same            same
raises cancelled   client  failed     failed     failed     failed      same            rest
is cancelled       client  cancelled  cancelled  cancelled  cancelled   same            -
is cancelled       spans   cancelled  cancelled  cancelled  complete    -               -
is cancelled       inner   cancelled  complete   cancelled  complete    -               -
is cancelled       body    complete   complete   cancelled  complete    -               -
cancels itself     client  cancelled  cancelled  cancelled  cancelled   same            -
cancels itself     spans   cancelled  cancelled  cancelled  complete    -               -
cancels itself     inner   cancelled  complete   cancelled  complete    -               -
times out          client  cancelled  cancelled  cancelled  cancelled   same            time-out
times out          spans   cancelled  cancelled  failed     failed      time-out        time-out
times out          body    failed     failed     failed     failed      same            same
is too slow        client  cancelled  cancelled  cancelled  cancelled   same            too slow
is too slow        spans   cancelled  cancelled  failed     failed      too slow        too slow
is stopped         -       cancelled  cancelled  cancelled  terminated  stop            stop
looks if stopped   -       cancelled  cancelled  cancelled  terminated  same            same
raises stopped     -       failed     failed     cancelled  terminated  stop over it    stop over it
is both            client  cancelled  cancelled  cancelled  terminated  same            -
is interrupted     -       cancelled  cancelled  cancelled  cancelled   same            Ctrl-C
exits              -       failed     failed     failed     failed      same            same
"""

# Left early: by who iterates it, in the task that began it.
GENERATOR_TABLE = """
the generator has         inner      outer      run
async with                cancelled  cancelled  complete
with                      cancelled  cancelled  complete
with, synchronous         cancelled  cancelled  complete
decorated                 cancelled  cancelled  complete
decorated, synchronous    cancelled  cancelled  complete
by hand                   cancelled  cancelled  complete
left open                 cancelled  cancelled  complete
the run too               cancelled  cancelled  cancelled
the client too            cancelled  cancelled  cancelled
"""

# In a program without a loop. Nothing is cancelled there: a body that was stopped learns of it at
# its next span or look, or does not, and then the block of the run says it.
SYNC_TABLE = """
the body           inner      outer      left open  run         leaves the run and the program
returns            complete   complete   cancelled  complete    -
raises             failed     failed     failed     failed      same
raises a group     failed     failed     failed     failed      same
is stopped         cancelled  cancelled  cancelled  terminated  same
looks if stopped   cancelled  cancelled  cancelled  terminated  same
goes on stopped    complete   complete   cancelled  terminated  stop, or - without a block
is interrupted     cancelled  cancelled  cancelled  cancelled   same
exits              failed     failed     failed     failed      same
"""


class Row(NamedTuple):
    """A row of the first table."""

    way: str
    fence: str
    inner: str
    outer: str
    left_open: str
    run: str
    leaves_run: str
    leaves_program: str


def rows_of(table: str) -> list[list[str]]:
    return [re.split("  +", line) for line in table.strip().splitlines()[1:]]


ROWS = [Row(*cells) for cells in rows_of(TABLE)]
TIMED = ("times out", "is too slow")
BLOCK_ONLY = ("raises stopped", "is both")  # without a block, who is stopped is not cancelled

AsyncBody = Callable[[], Coroutine[Any, Any, None]]
AsyncSteps = Callable[[AgentInstanceHandle], Awaitable[None]]
SyncSteps = Callable[[AgentInstanceHandle], None]
Form = tuple[
    Callable[[PrefactorCoreClient, AsyncSteps], Awaitable[None]],
    Callable[[AgentInstanceHandle, str, AsyncBody], Awaitable[None]],
]
SyncForm = tuple[
    Callable[[SyncPrefactorClient, SyncSteps], None],
    Callable[[AgentInstanceHandle, str, Callable[[], None]], None],
]
"""What holds a run, and what holds a span."""


def left_over() -> object:
    """What this context still takes for open."""
    return SpanContextStack.get_stack(), current_instance()


class Agent:
    """An agent whose body ends in one way, and what was seen of that.

    ``raised``: what left the body. ``left_run``: what left the run.
    """

    def __init__(self, recording: Recording, row: Row, form: Form) -> None:
        self.recording = recording
        self.way, self.place = row.way, row.fence
        self.hold_run, self.hold_span = form
        self.raised: BaseException | None = None
        self.left_run: BaseException | None = None

    async def main(self) -> None:
        self.waits = anyio.Event()
        try:
            with anyio.fail_after(10):
                await self.fenced("client", self.in_the_client)
        finally:
            self.left_over = left_over()

    async def in_the_client(self) -> None:
        async with self.recording.open() as self.client:
            try:
                await self.hold_run(self.client, self.in_the_run)
            except BaseException as error:
                self.left_run = error
                raise

    async def in_the_run(self, run: AgentInstanceHandle) -> None:
        self.run = run
        await self.fenced("spans", self.outer)

    async def outer(self) -> None:
        await self.hold_span(self.run, "agent:run", self.in_the_outer)

    async def in_the_outer(self) -> None:
        await self.fenced("inner", self.inner)

    async def inner(self) -> None:
        await self.hold_span(self.run, "agent:tool", self.in_the_inner)

    async def in_the_inner(self) -> None:
        try:
            await self.fenced("body", getattr(self, self.way.replace(" ", "_")))
        except BaseException as error:
            self.raised = error
            raise

    async def fenced(self, place: str, body: AsyncBody) -> None:
        """Call ``body``, in the fence if that is here."""
        if place != self.place:
            await body()
        elif self.way == "raises":
            with suppress(ValueError):
                await body()
        elif self.way == "times out":
            with anyio.fail_after(1):
                await body()
        elif self.way == "is too slow" and anyio.get_cancelled_exc_class() is trio.Cancelled:
            with trio.fail_after(1):
                await body()
        elif self.way == "is too slow":
            async with asyncio.timeout(1):
                await body()
        else:
            self.scope = anyio.CancelScope()
            if self.way != "is cancelled":
                with self.scope:
                    await body()
            else:
                async with anyio.create_task_group() as others:
                    others.start_soon(self.cancel_when_it_waits)
                    with self.scope:
                        await body()

    async def cancel_when_it_waits(self) -> None:
        await self.waits.wait()
        self.scope.cancel()

    # The ways

    async def returns(self) -> None:
        await anyio.lowlevel.checkpoint()

    async def raises(self) -> None:
        raise ValueError("mine")

    async def raises_in_a_group(self) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.sleep_forever)
            tasks.start_soon(self.raises)

    async def raises_cancelled(self) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.sleep_forever)
            self.scope.cancel()
            try:
                await anyio.sleep_forever()
            finally:
                raise ValueError("mine")

    async def is_cancelled(self) -> None:
        self.waits.set()
        await anyio.sleep_forever()

    async def cancels_itself(self) -> None:
        self.scope.cancel()
        await anyio.sleep_forever()

    async def times_out(self) -> None:
        await anyio.sleep_forever()

    is_too_slow = times_out

    async def is_stopped(self) -> None:
        await self.stop()
        while True:
            # The answer to one tells of it. Then the wait is cancelled, or the next one raises.
            with self.run.span("agent:llm"):
                await self.client.flush()

    async def looks_if_stopped(self) -> None:
        await self.stop()
        with self.run.span("agent:llm"):
            pass
        with anyio.CancelScope(shield=True):
            await self.client.flush()
        self.run.check()

    async def raises_stopped(self) -> None:
        try:
            await self.is_stopped()
        finally:
            raise ValueError("mine")

    async def is_both(self) -> None:
        with suppress(PrefactorTerminatedError):
            await self.looks_if_stopped()
        self.scope.cancel()
        await anyio.sleep_forever()

    async def stop(self) -> None:
        await self.client.flush()  # or the API does not know yet that the run is active
        self.recording.terminate(self.run.id, "enough")

    async def is_interrupted(self) -> None:
        signal.raise_signal(signal.SIGINT)
        await anyio.sleep_forever()  # asyncio makes a cancellation of it

    async def exits(self) -> None:
        raise SystemExit(3)


# What holds a span


async def async_with(run: AgentInstanceHandle, name: str, body: AsyncBody) -> None:
    async with run.span(name):
        await body()


async def plain_with(run: AgentInstanceHandle, name: str, body: AsyncBody) -> None:
    with run.span(name):
        await body()


async def decorated(run: AgentInstanceHandle, name: str, body: AsyncBody) -> None:
    await traced(name)(body)()


def stops() -> tuple[type[BaseException], ...]:
    """What a careful user takes for a stop, and not for a failure."""
    return KeyboardInterrupt, PrefactorTerminatedError, anyio.get_cancelled_exc_class()


async def by_hand(run: AgentInstanceHandle, name: str, body: AsyncBody) -> None:
    span = run.span(name)
    await span.start()
    try:
        await body()
    except stops():
        span.cancel_nowait()
        raise
    except BaseException as error:
        span.fail_nowait({"error": repr(error)})
        raise
    await span.complete()


async def left_open(run: AgentInstanceHandle, name: str, body: AsyncBody) -> None:
    await run.create_span(name)
    await body()


# What holds a run


async def in_a_block(client: PrefactorCoreClient, steps: AsyncSteps) -> None:
    async with client.agent_instance(**AGENT) as run:
        await steps(run)


async def run_by_hand(client: PrefactorCoreClient, steps: AsyncSteps) -> None:
    run = await client.create_agent_instance(**AGENT)
    await run.start()
    try:
        await steps(run)
    except stops():
        run.finish_nowait("cancelled")
        raise
    except BaseException:
        run.finish_nowait("failed")
        raise
    await run.finish()


async def run_left_open(client: PrefactorCoreClient, steps: AsyncSteps) -> None:
    run = await client.create_agent_instance(**AGENT)
    await run.start()
    await steps(run)


FORMS: dict[str, Form] = {
    "async with": (in_a_block, async_with),
    "with": (in_a_block, plain_with),
    "decorated": (in_a_block, decorated),
    "by hand in a block": (in_a_block, by_hand),
    "left open in a block": (in_a_block, left_open),
    "async with in a run by hand": (run_by_hand, async_with),
    "all by hand": (run_by_hand, by_hand),
    "all left open": (run_left_open, left_open),
}


def cases() -> list[Any]:
    return [
        pytest.param(
            row,
            form,
            marks=[pytest.mark.virtual_time] if row.way in TIMED else [],
            id=f"{row.way}, {row.fence}, {form}",
        )
        for row in ROWS
        for form, (hold_run, _) in FORMS.items()
        if hold_run is in_a_block or row.way not in BLOCK_ONLY
    ]


@pytest.mark.parametrize(("row", "form"), cases())
def test_a_body_is_recorded_as_it_ended_and_what_ended_it_goes_on(
    row: Row, form: str, anyio_backend_name: str, anyio_backend_options: dict[str, Any]
) -> None:
    with open_recording() as recording:
        agent = Agent(recording, row, FORMS[form])
        left = what_leaves(
            lambda: anyio.run(
                agent.main, backend=anyio_backend_name, backend_options=anyio_backend_options
            )
        )
        check_nothing_is_lost(agent.client.statistics())
        assert agent.left_over == ([], None)
        run = recording.run
    spans = [row.left_open] * 2 if FORMS[form][1] is left_open else [row.inner, row.outer]
    check_run(run, *spans, row.run)
    assert is_what(row.leaves_run, agent.left_run, agent.raised), agent.left_run
    assert is_what(row.leaves_program, left, agent.raised), left
    if isinstance(left, PrefactorTerminatedError):
        assert left.instance_id == run.id


def what_leaves(program: Callable[[], object]) -> BaseException | None:
    left = None
    try:
        program()
    except BaseException as error:
        left = error
    return left


def is_what(word: str, left: BaseException | None, raised: BaseException | None) -> bool:
    """Whether what has left a scope is what a table says."""
    match word:
        case "-":
            return left is None
        case "same":
            return raised is not None and left is raised
        case "stop":
            return isinstance(left, PrefactorTerminatedError) and left.reason == "enough"
        case "stop over it":
            assert left is not None
            return left.__context__ is raised and is_what("stop", left, raised)
        case "rest":
            assert isinstance(raised, BaseExceptionGroup)
            (mine,) = (error for error in raised.exceptions if isinstance(error, ValueError))
            return isinstance(left, ExceptionGroup) and left.exceptions == (mine,)
        case "time-out":
            return type(left) is TimeoutError
        case "too slow":
            return type(left) in (TimeoutError, trio.TooSlowError)
        case "Ctrl-C":
            return type(left) is KeyboardInterrupt
    raise AssertionError(word)


def check_run(run: RecordedRun, inner: str, outer: str, status: str) -> None:
    tool, agent = run.named("agent:tool"), run.named("agent:run")
    assert (tool.status, agent.status, run.status) == (inner, outer, status)
    assert (tool.parent_id, agent.parent_id) == (agent.id, None)
    for span in (tool, agent):
        assert span.started_at is not None
        assert span.finished_at is not None
        # Who failed says with what.
        assert ("error" in (span.result or {})) == (span.status == "failed")
    # The API ends a run that it stops, and the spans of it later.
    if status != "terminated":
        assert run.finished_at is not None
        assert all(span.finished_at <= run.finished_at for span in run.spans if span.finished_at)
    assert run.termination_reason == ("enough" if status == "terminated" else None)


def check_nothing_is_lost(statistics: Statistics) -> None:
    assert statistics.accepted == statistics.delivered, statistics
    assert statistics.lost == statistics.pending == 0


# Generators that are left early


async def with_async_with(run: AgentInstanceHandle) -> AsyncGenerator[int]:
    async with run.span("agent:run"), run.span("agent:tool"):
        yield 1
        pytest.fail("must not go on")


async def with_with(run: AgentInstanceHandle) -> AsyncGenerator[int]:
    with run.span("agent:run"), run.span("agent:tool"):
        yield 1
        pytest.fail("must not go on")


def synchronous_with_with(run: AgentInstanceHandle) -> Generator[int]:
    with run.span("agent:run"), run.span("agent:tool"):
        yield 1
        pytest.fail("must not go on")


@traced("agent:run")
async def with_decorator(run: AgentInstanceHandle) -> AsyncGenerator[int]:
    async with aclosing(inside_with_decorator()) as inside:
        async for item in inside:
            yield item


@traced("agent:tool")
async def inside_with_decorator() -> AsyncGenerator[int]:
    yield 1
    pytest.fail("must not go on")


@traced("agent:run")
def synchronous_with_decorator(run: AgentInstanceHandle) -> Generator[int]:
    yield from inside_synchronous_with_decorator()


@traced("agent:tool")
def inside_synchronous_with_decorator() -> Generator[int]:
    yield 1
    pytest.fail("must not go on")


async def with_spans_by_hand(run: AgentInstanceHandle) -> AsyncGenerator[int]:
    outer, inner = run.span("agent:run"), run.span("agent:tool")
    await outer.start()
    await inner.start()
    try:
        yield 1
        pytest.fail("must not go on")
    except GeneratorExit:
        inner.cancel_nowait()
        outer.cancel_nowait()
        raise


async def with_spans_left_open(run: AgentInstanceHandle) -> AsyncGenerator[int]:
    await run.create_span("agent:run")
    await run.create_span("agent:tool")
    yield 1
    pytest.fail("must not go on")


GENERATORS: dict[str, Callable[[AgentInstanceHandle], Any]] = {
    "async with": with_async_with,
    "with": with_with,
    "with, synchronous": synchronous_with_with,
    "decorated": with_decorator,
    "decorated, synchronous": synchronous_with_decorator,
    "by hand": with_spans_by_hand,
    "left open": with_spans_left_open,
}


async def with_a_run(client: PrefactorCoreClient) -> AsyncGenerator[int]:
    async with client.agent_instance(**AGENT) as run:
        async with run.span("agent:run"), run.span("agent:tool"):
            yield 1
            pytest.fail("must not go on")


async def with_a_client(client: PrefactorCoreClient) -> AsyncGenerator[int]:
    async with client, aclosing(with_a_run(client)) as inside:
        async for item in inside:
            yield item


async def take_one(items: Any) -> None:
    """Take one item, and leave the rest."""
    if isinstance(items, Generator):
        take_one_item(items)
        return
    async with aclosing(items):
        async for _ in items:
            break


def take_one_item(items: Generator[int]) -> None:
    with closing(items):
        next(items)


@pytest.mark.parametrize(
    ("has", "inner", "outer", "run_status"), rows_of(GENERATOR_TABLE), ids=lambda cell: cell
)
async def test_what_a_generator_holds_is_cancelled_when_that_is_left_early(
    has: str, inner: str, outer: str, run_status: str
) -> None:
    with open_recording() as recording, anyio.fail_after(10):
        client = recording.open()
        if has == "the client too":
            await take_one(with_a_client(client))
        elif has == "the run too":
            async with client:
                await take_one(with_a_run(client))
                assert left_over() == ([], None)
        else:
            async with client, client.agent_instance(**AGENT) as run:
                await take_one(GENERATORS[has](run))
                assert SpanContextStack.is_empty() == (has != "left open")
        assert left_over() == ([], None)
        check_nothing_is_lost(client.statistics())
        check_run(recording.run, inner, outer, run_status)


# Programs without a loop


class SyncAgent:
    """As :class:`Agent`, without a loop and without fences."""

    def __init__(self, recording: Recording, way: str, form: SyncForm) -> None:
        self.recording = recording
        self.way: Callable[[], None] = getattr(self, way.replace(" ", "_"))
        self.hold_run, self.hold_span = form
        self.raised: BaseException | None = None

    def main(self) -> None:
        try:
            with self.recording.open_sync() as self.client:
                self.hold_run(self.client, self.steps)
        finally:
            self.left_over = left_over()

    def steps(self, run: AgentInstanceHandle) -> None:
        self.run = run
        self.hold_span(run, "agent:run", self.outer)

    def outer(self) -> None:
        self.hold_span(self.run, "agent:tool", self.inner)

    def inner(self) -> None:
        try:
            self.way()
        except BaseException as error:
            self.raised = error
            raise

    def returns(self) -> None:
        pass

    def raises(self) -> None:
        raise ValueError("mine")

    def raises_a_group(self) -> None:
        raise BaseExceptionGroup("mine", [ValueError("mine"), KeyboardInterrupt()])

    def is_stopped(self) -> None:
        self.goes_on_stopped()
        with self.run.span("agent:llm"):
            pytest.fail("must not begin")

    def looks_if_stopped(self) -> None:
        self.goes_on_stopped()
        self.run.check()

    def goes_on_stopped(self) -> None:
        assert self.client.flush(timeout=10)
        self.recording.terminate(self.run.id, "enough")
        with self.run.span("agent:llm"):
            pass
        assert self.client.flush(timeout=10)

    def is_interrupted(self) -> None:
        signal.raise_signal(signal.SIGINT)
        pytest.fail("must not go on")

    def exits(self) -> None:
        raise SystemExit(3)


def sync_with(run: AgentInstanceHandle, name: str, body: Callable[[], None]) -> None:
    with run.span(name):
        body()


def sync_decorated(run: AgentInstanceHandle, name: str, body: Callable[[], None]) -> None:
    traced(name)(body)()


def sync_by_hand(run: AgentInstanceHandle, name: str, body: Callable[[], None]) -> None:
    span = run.span(name)
    span.start_nowait()
    try:
        body()
    except SYNC_STOPS:
        span.cancel_nowait()
        raise
    except BaseException as error:
        span.fail_nowait({"error": repr(error)})
        raise
    span.complete_nowait()


def sync_left_open(run: AgentInstanceHandle, name: str, body: Callable[[], None]) -> None:
    run.span(name).start_nowait()
    body()


def sync_in_a_block(client: SyncPrefactorClient, steps: SyncSteps) -> None:
    with client.agent_instance(**AGENT) as run:
        steps(run)


def sync_run_by_hand(client: SyncPrefactorClient, steps: SyncSteps) -> None:
    run = client.create_agent_instance(**AGENT)
    run.start_nowait()
    try:
        steps(run)
    except SYNC_STOPS:
        run.finish_nowait("cancelled")
        raise
    except BaseException:
        run.finish_nowait("failed")
        raise
    run.finish_nowait()


def sync_run_left_open(client: SyncPrefactorClient, steps: SyncSteps) -> None:
    run = client.create_agent_instance(**AGENT)
    run.start_nowait()
    steps(run)


SYNC_STOPS = (KeyboardInterrupt, PrefactorTerminatedError)
SYNC_FORMS: dict[str, SyncForm] = {
    "with": (sync_in_a_block, sync_with),
    "decorated": (sync_in_a_block, sync_decorated),
    "by hand in a block": (sync_in_a_block, sync_by_hand),
    "left open in a block": (sync_in_a_block, sync_left_open),
    "with in a run by hand": (sync_run_by_hand, sync_with),
    "all by hand": (sync_run_by_hand, sync_by_hand),
    "all left open": (sync_run_left_open, sync_left_open),
}


@pytest.mark.parametrize("form", SYNC_FORMS)
@pytest.mark.parametrize(
    ("way", "inner", "outer", "spans_left_open", "run_status", "leaves"),
    rows_of(SYNC_TABLE),
    ids=lambda cell: cell,
)
def test_without_a_loop_a_body_is_recorded_as_it_ended_too(
    way: str, inner: str, outer: str, spans_left_open: str, run_status: str, leaves: str, form: str
) -> None:
    with open_recording() as recording:
        agent = SyncAgent(recording, way, SYNC_FORMS[form])
        left = copy_context().run(what_leaves, agent.main)
        check_nothing_is_lost(agent.client.statistics())
        assert agent.left_over == ([], None)
        run = recording.run
    hold_run, hold_span = SYNC_FORMS[form]
    if hold_span is sync_left_open:
        inner = outer = spans_left_open
    check_run(run, inner, outer, run_status)
    if ", or " in leaves:
        leaves = "stop" if hold_run is sync_in_a_block else "-"
    assert is_what(leaves, left, agent.raised), left


def synchronous_with_spans_by_hand(run: AgentInstanceHandle) -> Generator[int]:
    outer, inner = run.span("agent:run"), run.span("agent:tool")
    outer.start_nowait()
    inner.start_nowait()
    try:
        yield 1
        pytest.fail("must not go on")
    except GeneratorExit:
        inner.cancel_nowait()
        outer.cancel_nowait()
        raise


def synchronous_with_a_run(client: SyncPrefactorClient) -> Generator[int]:
    with client.agent_instance(**AGENT) as run:
        yield from synchronous_with_with(run)


def synchronous_with_a_client(client: SyncPrefactorClient) -> Generator[int]:
    with client:
        yield from synchronous_with_a_run(client)


SYNC_GENERATORS = {
    "with": synchronous_with_with,
    "decorated": synchronous_with_decorator,
    "by hand": synchronous_with_spans_by_hand,
}


@pytest.mark.parametrize("has", [*SYNC_GENERATORS, "the run too", "the client too"])
def test_without_a_loop_what_a_generator_holds_is_cancelled_too(has: str) -> None:
    with open_recording() as recording:
        client = recording.open_sync()
        if has == "the client too":
            take_one_item(synchronous_with_a_client(client))
        elif has == "the run too":
            with client:
                take_one_item(synchronous_with_a_run(client))
        else:
            with client, client.agent_instance(**AGENT) as run:
                take_one_item(SYNC_GENERATORS[has](run))
                assert SpanContextStack.is_empty()
        assert left_over() == ([], None)
        check_nothing_is_lost(client.statistics())
        status = "complete" if has in SYNC_GENERATORS else "cancelled"
        check_run(recording.run, "cancelled", "cancelled", status)
