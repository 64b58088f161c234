"""Recording from threads: the operations, their order, and that no thread waits for another."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import Context
from functools import partial
from types import FrameType
from typing import Any, cast

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import pytest
from support.harness import (
    AGENT,
    Call,
    Recording,
    StoredRun,
    make_config,
    open_faulty_api,
    recording,
    stored_run,
    stored_runs,
)

from prefactor_core import (
    AgentInstanceHandle,
    ClientNotInitializedError,
    ClientScopeError,
    InMemoryQueue,
    Operation,
    PrefactorCoreClient,
    SpanContext,
    SpanContextStack,
    SpanNotFoundError,
    Statistics,
    current_span,
    open_prefactor,
)
from prefactor_core.local import LocalPrefactor

SECONDS = 20.0
"""After which a wait of these tests has failed."""

TOOL = ("agent:tool", "complete", [])
LLM = ("agent:llm", "complete", [TOOL])


@pytest.fixture
def hasty_threads() -> Generator[None]:
    """Threads take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


class Threads:
    """Threads that know nothing of the task that starts them: they have no context of it."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._futures: list[Future[Any]] = []

    def start(self, function: Callable[..., object], *args: object) -> None:
        self._futures.append(self._pool.submit(function, *args))

    async def join(self) -> None:
        """Wait until all have ended, while the loop goes on; raises what they raise."""
        for future in self._futures:
            await anyio.to_thread.run_sync(future.result, SECONDS)
        self._futures.clear()


@contextmanager
def open_threads(most: int = 8) -> Iterator[Threads]:
    with ThreadPoolExecutor(most) as pool:
        yield Threads(pool)


def wait(event: threading.Event | threading.Barrier) -> None:
    """Wait in a thread."""
    assert event.wait(SECONDS) is not False


async def wait_in_task(event: threading.Event) -> None:
    """Wait in a task, while the loop goes on."""
    assert await anyio.to_thread.run_sync(event.wait, SECONDS)


def record_llm_and_tool(instance: AgentInstanceHandle, times: int = 1) -> None:
    for _ in range(times):
        with instance.span("agent:llm"), instance.span("agent:tool"):
            pass


def refusals(r: Recording) -> dict[str, int]:
    """What the strict API did not take: none, if all comes in an order that it allows."""
    return cast("LocalPrefactor", r.api.app).refusals


def assert_balanced(statistics: Statistics) -> None:
    assert statistics.accepted == statistics.delivered + statistics.pending + statistics.lost
    assert statistics.pending >= 0
    assert statistics.pending_bytes >= 0


def assert_all_completed(statistics: Statistics) -> None:
    assert_balanced(statistics)
    open_counts = (statistics.pending, statistics.pending_bytes, statistics.in_flight)
    assert open_counts == (0, 0, 0)


@asynccontextmanager
async def run_of(client: PrefactorCoreClient) -> AsyncGenerator[AgentInstanceHandle]:
    async with client.agent_instance(**AGENT) as instance:
        yield instance


# --- Parents


async def test_a_span_in_a_worker_thread_is_below_the_span_of_the_task() -> None:
    async with recording() as r:
        async with r.instance.span("agent:run"):
            await anyio.to_thread.run_sync(record_llm_and_tool, r.instance)
            assert len(SpanContextStack.get_stack()) == 1
    assert r.run.shape == ("complete", [("agent:run", "complete", [LLM])])


async def test_the_loop_may_record_below_a_span_of_a_worker_thread() -> None:
    async def tool() -> None:
        async with r.instance.span("agent:tool"):
            pass

    def llm() -> None:
        with r.instance.span("agent:llm"):
            anyio.from_thread.run(tool)

    async with recording() as r:
        await anyio.to_thread.run_sync(llm)
    assert r.run.shape == ("complete", [LLM])


async def test_a_thread_without_the_tasks_context_begins_its_own_tree() -> None:
    async with recording() as r:
        with open_threads() as threads:
            async with r.instance.span("agent:run"):
                threads.start(record_llm_and_tool, r.instance)
                await threads.join()
    assert sorted(r.run.shape[1]) == [LLM, ("agent:run", "complete", [])]


async def test_a_thread_without_the_tasks_context_may_name_its_parent() -> None:
    def tool(parent: SpanContext) -> None:
        assert current_span() is None
        with r.instance.span("agent:tool", parent_span_id=parent.id) as span:
            assert current_span() is span

    async with recording() as r:
        with open_threads() as threads:
            async with r.instance.span("agent:llm") as span:
                threads.start(tool, span)
                await threads.join()
    assert r.run.shape == ("complete", [LLM])


async def test_a_pooled_thread_keeps_nothing_of_the_spans_of_its_last_job() -> None:
    def first() -> str:
        return r.client.create_span_nowait(r.instance.id, "agent:llm")

    def look() -> list[str]:
        return SpanContextStack.get_stack()

    async with recording() as r:
        with ThreadPoolExecutor(1) as pool:
            span_id = pool.submit(first).result(SECONDS)
            assert pool.submit(look).result(SECONDS) == [span_id]
            # Ended by another thread, and so by one that cannot reach the context.
            r.client.finish_span_nowait(span_id)
            assert pool.submit(look).result(SECONDS) == []
            pool.submit(record_llm_and_tool, r.instance).result(SECONDS)
    assert sorted(r.run.shape[1]) == [("agent:llm", "complete", []), LLM]


@pytest.mark.parametrize("other", ["asyncio", "trio"])
async def test_tasks_of_another_event_loop_record_with_the_same_client(other: str) -> None:
    async def step() -> None:
        async with r.instance.span("agent:llm") as span:
            await span.start({"n": 1})
            span_id = await r.instance.create_span("agent:tool")
            await r.instance.finish_span(span_id)
            await span.complete({"n": 2})

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(step)

    async with recording(queue={"when_full": "wait"}) as r:
        with open_threads() as threads:
            for _ in range(3):
                threads.start(partial(anyio.run, main, backend=other))
            await threads.join()
    assert r.run.shape == ("complete", [LLM] * 30)
    assert not refusals(r)


# --- Many threads at once


async def test_many_threads_and_the_loop_record_at_the_same_time(hasty_threads: None) -> None:
    each = 300
    started = threading.Barrier(8)

    def work() -> None:
        wait(started)
        record_llm_and_tool(r.instance, each)

    async def task() -> None:
        for _ in range(each):
            async with r.instance.span("agent:llm"):
                async with r.instance.span("agent:tool"):
                    pass

    async with recording(queue={"batch_window": 0.01}, drain_timeout=60) as r:
        with open_threads() as threads, anyio.fail_after(60):
            for _ in range(8):
                threads.start(work)
            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(task)
                tasks.start_soon(threads.join)
        recorded = r.client.statistics().accepted
    assert r.run.shape == ("complete", [LLM] * each * 11)
    assert not refusals(r)
    statistics = r.client.statistics()
    assert_all_completed(statistics)
    # A parent that starts before its child is two operations, the child one; and the finish of
    # the run comes after the last look.
    assert statistics.accepted == statistics.delivered == recorded + 1 == each * 11 * 3 + 3


async def test_if_several_threads_end_a_span_only_the_first_counts(hasty_threads: None) -> None:
    rounds, ends = 300, 4
    spans: list[SpanContext] = []
    together = threading.Barrier(ends + 1)

    def end(name: str) -> None:
        for number in range(rounds):
            wait(together)
            getattr(spans[number], name)()

    async with recording() as r:
        await r.client.flush()
        before = r.client.statistics().accepted
        with open_threads() as threads:
            for name in ("complete_nowait", "fail_nowait", "cancel_nowait", "start_nowait"):
                threads.start(end, name)
            for _ in range(rounds):
                spans.append(Context().run(r.instance.span("agent:tool").__enter__))
                await anyio.to_thread.run_sync(wait, together)
            await threads.join()
        # Each is one operation, or two if it was started first.
        assert rounds <= r.client.statistics().accepted - before <= 2 * rounds
    assert len(r.run.spans) == rounds
    assert {span.status for span in r.run.spans.values()} <= {"complete", "failed", "cancelled"}
    assert not refusals(r)
    assert_all_completed(r.client.statistics())


async def test_only_the_result_of_the_end_that_counts_is_recorded() -> None:
    looking, ended = threading.Event(), threading.Event()

    def redact(payload: dict[str, object]) -> dict[str, object]:
        if payload.get("by") == "the slow":
            looking.set()
            wait(ended)
        return payload

    async with recording(redact=redact) as r:
        with open_threads() as threads, r.instance.span("agent:tool") as span:
            span.set_result({"model": "m"})
            threads.start(span.fail_nowait, {"by": "the slow", "why": "late"})
            await wait_in_task(looking)
            span.complete_nowait({"by": "the fast"})
            ended.set()
            await threads.join()
    assert r.run.shape == ("complete", [TOOL])
    assert r.run.named("agent:tool").result == {"model": "m", "by": "the fast"}


async def test_a_parent_is_created_once_and_before_its_first_child(
    hasty_threads: None,
) -> None:
    rounds, children = 100, 4
    parents: list[SpanContext] = []
    together = threading.Barrier(children + 1)

    def child() -> None:
        for number in range(rounds):
            wait(together)
            with r.instance.span("agent:tool", parent_span_id=parents[number].id):
                pass

    async with recording() as r:
        with open_threads() as threads:
            for _ in range(children):
                threads.start(child)
            for _ in range(rounds):
                parents.append(Context().run(r.instance.span("agent:run").__enter__))
                await anyio.to_thread.run_sync(wait, together)
            await threads.join()
        for parent in parents:
            parent.complete_nowait()
    assert r.run.shape == ("complete", [("agent:run", "complete", [TOOL] * children)] * rounds)
    assert not refusals(r)


async def test_a_run_begins_once_whichever_thread_begins_it(hasty_threads: None) -> None:
    together = threading.Barrier(4)

    def begin(run: AgentInstanceHandle, number: int) -> None:
        wait(together)
        if number == 0:
            run.start_nowait()
        else:
            record_llm_and_tool(run)

    async with recording() as r:
        for _ in range(30):
            run = await r.client.create_agent_instance(**AGENT)
            with open_threads() as threads:
                for number in range(4):
                    threads.start(begin, run, number)
                await threads.join()
            await run.finish()
        assert r.client.statistics().accepted == 30 * (3 * 3 + 3) + 2
    assert [run.shape for run in r.runs[1:]] == [("complete", [LLM] * 3)] * 30
    assert not refusals(r)


# --- Every step, from a thread


async def test_every_step_can_be_done_in_a_thread() -> None:
    def agent(run: AgentInstanceHandle) -> None:
        run.start_nowait()
        with run.span("agent:run") as span:
            span.start_nowait({"n": 1})
            span.set_result({"n": 2})
            span.complete_nowait({"m": 3})
        with run.span("agent:tool") as span:
            span.fail_nowait({"reason": "no"})
        with run.span("agent:tool") as span:
            span.cancel_nowait()
        with pytest.raises(ValueError, match="no"), run.span("agent:tool"):
            raise ValueError("no")
        span_id = r.client.create_span_nowait(run.id, "agent:llm", payload={"n": 4})
        r.client.finish_span_nowait(span_id, {"n": 5})
        with pytest.raises(SpanNotFoundError):
            r.client.finish_span_nowait(span_id)
        run.finish_nowait("failed")

    async with recording() as r:
        run = await r.client.create_agent_instance(**AGENT)
        with open_threads() as threads:
            threads.start(agent, run)
            await threads.join()
        assert run.ended
    (stored,) = (run for run in r.runs if run.spans)
    names = [(span.name, span.status) for span in stored.roots]
    assert (stored.status, sorted(names)) == (
        "failed",
        sorted(
            [
                ("agent:run", "complete"),
                ("agent:tool", "failed"),
                ("agent:tool", "cancelled"),
                ("agent:tool", "failed"),
                ("agent:llm", "complete"),
            ]
        ),
    )
    assert (stored.named("agent:run").payload, stored.named("agent:run").result) == (
        {"n": 1},
        {"n": 2, "m": 3},
    )
    assert (stored.named("agent:llm").payload, stored.named("agent:llm").result) == (
        {"n": 4},
        {"n": 5},
    )
    assert not refusals(r)


async def test_calls_that_wait_for_the_api_or_the_loop_are_refused_in_another_loop() -> None:
    async def main() -> None:
        with pytest.raises(ClientScopeError, match=r"from_thread\.run"):
            await r.client.create_agent_instance(**AGENT)
        with pytest.raises(ClientScopeError, match=r"from_thread\.run"):
            async with r.client.agent_instance(**AGENT):
                pass
        with pytest.raises(ClientScopeError, match=r"from_thread\.run"):
            await r.client.flush()
        with pytest.raises(ClientScopeError, match="opened in another task"):
            await r.client.close()

    async with recording() as r:
        with open_threads() as threads:
            threads.start(anyio.run, main)
            await threads.join()
    assert r.run.shape == ("complete", [])


async def test_a_client_with_a_task_of_its_own_is_closed_in_its_own_loop() -> None:
    async def close() -> None:
        with pytest.raises(ClientScopeError, match="another event loop"):
            await client.close()

    with anyio.fail_after(SECONDS):
        async with open_faulty_api() as api:
            client = open_prefactor(make_config(), asgi_app=api)
            await client.initialize()
            with open_threads() as threads:
                threads.start(anyio.run, close)
                await threads.join()
            await client.close()


async def test_a_worker_thread_may_have_the_loop_make_calls_that_wait() -> None:
    def agent() -> None:
        run = anyio.from_thread.run(partial(r.client.create_agent_instance, **AGENT))
        record_llm_and_tool(run)
        run.finish_nowait()
        anyio.from_thread.run(r.client.flush)
        assert r.client.statistics().pending == 0

    async with recording() as r:
        await anyio.to_thread.run_sync(agent)
    assert [run.shape for run in r.runs if run.spans] == [("complete", [LLM])]


# --- The way to the loop


async def test_operations_of_a_thread_are_sent_while_the_loop_only_waits() -> None:
    arrived = threading.Event()

    def note(call: Call) -> None:
        arrived.set()

    async with recording(queue={"batch_window": 0.0}) as r:
        await r.client.flush()
        for _ in range(20):
            arrived.clear()
            r.api.faults["agent_spans"] = note
            with open_threads() as threads:
                threads.start(record_llm_and_tool, r.instance)
                await wait_in_task(arrived)
                await threads.join()
    assert r.run.shape == ("complete", [LLM] * 20)


async def test_flush_delivers_what_threads_have_recorded_before() -> None:
    async with recording(queue={"batch_window": 3600.0}) as r:
        for number in range(1, 30):
            # The loop has no turn in between.
            thread = threading.Thread(target=record_llm_and_tool, args=(r.instance,))
            thread.start()
            thread.join(SECONDS)
            await r.client.flush()
            statistics = r.client.statistics()
            assert (statistics.pending, statistics.accepted) == (0, 3 * number + 2)
            assert len((await stored_run(r.api)).spans) == 2 * number
    assert_all_completed(r.client.statistics())


async def test_no_thread_waits_for_an_api_that_hangs() -> None:
    async with recording(http={"request_timeout": 0.5}, queue={"retry_delay_base": 0.1}) as r:
        r.api.hanging = True
        with open_threads() as threads, anyio.fail_after(SECONDS):
            for _ in range(4):
                threads.start(record_llm_and_tool, r.instance, 100)
            await threads.join()
        assert r.client.statistics().pending == 1201
        r.api.hanging = False
    assert r.run.shape == ("complete", [LLM] * 400)


async def test_a_bound_holds_for_all_threads_together(hasty_threads: None) -> None:
    queue: dict[str, object] = {"batch_window": 3600.0, "max_pending_operations": 50}
    together = threading.Barrier(8)

    def work() -> None:
        wait(together)
        for _ in range(50):
            with instance.span("agent:tool"):
                pass
            assert_balanced(client.statistics())

    async with open_faulty_api() as api:
        async with open_prefactor(make_config(queue=queue), asgi_app=api) as client:
            async with run_of(client) as instance:
                with open_threads() as threads:
                    for _ in range(8):
                        threads.start(work)
                    await threads.join()
                statistics = client.statistics()
                assert (statistics.pending, statistics.dropped) == (50, {"full": 351})
                assert statistics.accepted == 402
        # Of 50 the first is the start of the run.
        assert (await stored_run(api)).shape == ("complete", [TOOL] * 49)
    assert_all_completed(client.statistics())


async def test_a_span_that_has_waited_for_its_place_may_start_in_a_thread() -> None:
    queue: dict[str, object] = {"max_pending_operations": 4, "when_full": "wait"}

    async def step() -> None:
        async with r.instance.span("agent:llm") as span:
            await anyio.to_thread.run_sync(span.start_nowait)

    async with recording(queue=queue) as r:
        async with anyio.create_task_group() as tasks:
            for _ in range(40):
                tasks.start_soon(step)
    assert r.run.shape == ("complete", [("agent:llm", "complete", [])] * 40)
    assert_all_completed(r.client.statistics())


class BrokenQueue(InMemoryQueue[Operation]):
    broken = False

    def put_nowait(self, item: Operation) -> None:
        if self.broken:
            raise OSError("the disk is full")
        super().put_nowait(item)


async def test_a_queue_that_takes_nothing_from_a_thread_is_logged_and_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    queue = BrokenQueue()
    async with open_faulty_api() as api:
        async with open_prefactor(make_config(), asgi_app=api, queue=queue) as client:
            async with run_of(client) as instance:
                await client.flush()
                queue.broken = True
                with open_threads() as threads:
                    threads.start(record_llm_and_tool, instance, 5)
                    await threads.join()
                await client.flush()
                assert client.statistics().dropped == {"queue": 15}
                queue.broken = False
                with open_threads() as threads:
                    threads.start(record_llm_and_tool, instance)
                    await threads.join()
        assert (await stored_run(api)).shape == ("complete", [LLM])
    assert_all_completed(client.statistics())
    assert "the disk is full" in caplog.records[0].getMessage()


async def test_statistics_balance_at_any_time_in_any_thread(hasty_threads: None) -> None:
    over = threading.Event()

    def look() -> None:
        for _ in range(10_000):
            if over.is_set():
                break
            assert_balanced(r.client.statistics())

    async with recording(queue={"batch_window": 0.0}) as r:
        with open_threads() as threads:
            for _ in range(2):
                threads.start(look)
            with open_threads() as recording_threads:
                for _ in range(4):
                    recording_threads.start(record_llm_and_tool, r.instance, 200)
                await recording_threads.join()
            over.set()
            await threads.join()
    assert_all_completed(r.client.statistics())


# --- The code of others


async def test_a_payload_that_is_slow_to_read_in_a_thread_delays_no_one_else() -> None:
    looking, go_on = threading.Event(), threading.Semaphore(0)

    def redact(payload: dict[str, object]) -> dict[str, object]:
        if payload.get("slow"):
            looking.set()
            assert go_on.acquire(timeout=SECONDS)
        return payload

    def slow() -> None:
        with r.instance.span("agent:llm", payload={"slow": True}) as span:
            span.complete_nowait({"slow": True})

    async with recording(redact=redact) as r:
        with open_threads() as threads:
            threads.start(slow)
            for _ in ("payload", "result"):
                await wait_in_task(looking)
                looking.clear()
                record_llm_and_tool(r.instance)
                await r.client.flush()
                go_on.release()
            await threads.join()
    assert sorted(r.run.shape[1]) == sorted([("agent:llm", "complete", []), LLM, LLM])


@pytest.mark.parametrize("way", ["run", "client"])
async def test_open_spans_are_read_at_the_end_while_threads_record(way: str) -> None:
    with open_threads() as threads:

        def redact(payload: dict[str, object]) -> dict[str, object]:
            if payload.get("left"):
                # Waits for a thread that records.
                done = threading.Event()
                threads.start(lambda: (record_elsewhere(), done.set()))
                wait(done)
            return payload

        def record_elsewhere() -> None:
            with pytest.raises(ClientNotInitializedError) if way == "client" else no_error():
                spans.pop().__enter__()

        async with open_faulty_api() as api:
            async with open_prefactor(make_config(redact=redact), asgi_app=api) as client:
                other = await client.create_agent_instance(**AGENT)
                run = await client.create_agent_instance(**AGENT)
                spans = [other.span("agent:tool")]
                run.span("agent:llm").__enter__().set_result({"left": True})
                if way == "run":
                    run.finish_nowait()
            await threads.join()
            runs = await stored_runs(api)
    assert ("cancelled", [("agent:llm", "cancelled", [])]) in [run.shape for run in runs] or (
        "complete",
        [("agent:llm", "cancelled", [])],
    ) in [run.shape for run in runs]
    assert_all_completed(client.statistics())


@contextmanager
def no_error() -> Iterator[None]:
    yield


class RecordingHandler(logging.Handler):
    """A handler that records, and waits for a thread that does."""

    def __init__(self, threads: Threads) -> None:
        super().__init__()
        self.threads = threads
        self.instance: AgentInstanceHandle | None = None
        self.messages: list[str] = []
        self.waits: list[bool] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())
        if self.instance is not None:
            done = threading.Event()
            self.threads.start(
                lambda instance: (record_llm_and_tool(instance), done.set()), self.instance
            )
            self.waits.append(done.wait(SECONDS / 4))


async def test_a_handler_of_the_log_may_wait_for_a_thread_that_records() -> None:
    queue: dict[str, object] = {"batch_window": 3600.0, "max_pending_operations": 3}
    logger = logging.getLogger("prefactor_core")
    with open_threads() as threads:
        handler = RecordingHandler(threads)
        logger.addHandler(handler)
        try:
            async with open_faulty_api() as api:
                async with open_prefactor(make_config(queue=queue), asgi_app=api) as client:
                    async with run_of(client) as instance:
                        handler.instance = instance
                        record_llm_and_tool(instance, 3)
                        await anyio.wait_all_tasks_blocked()
                        handler.instance = None
                        await threads.join()
        finally:
            logger.removeHandler(handler)
    assert "max_pending_operations" in handler.messages[0]
    # What a handler raises is dropped: asked for here.
    assert handler.waits == [True]
    assert_all_completed(client.statistics())


def interrupt(calls: int, function: Callable[[], object]) -> None:
    """Have ``function`` called in the middle of what follows, after so many calls: as a finaliser
    or the handler of a signal would be."""

    def profile(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls -= 1
        if calls == 0:
            sys.setprofile(None)
            function()

    sys.setprofile(profile)


async def test_a_span_may_be_ended_in_the_middle_of_any_step_of_its_own_thread() -> None:
    most = 120
    async with recording() as r:
        for calls in range(1, most):
            with r.instance.span("agent:llm") as parent:
                child = r.instance.span("agent:tool").__enter__()
                interrupt(calls, child.complete_nowait)
                parent.start_nowait()
                sys.setprofile(None)
                child.complete_nowait()
        # After some hand-over from a thread, too.
        for calls in range(1, most):
            parent = Context().run(r.instance.span("agent:llm").__enter__)
            child = r.instance.span("agent:tool", parent_span_id=parent.id).__enter__()
            thread = threading.Thread(target=parent.start_nowait)
            thread.start()
            thread.join(SECONDS)
            interrupt(calls, child.complete_nowait)
            await anyio.lowlevel.checkpoint()
            sys.setprofile(None)
            child.complete_nowait()
            parent.complete_nowait()
    assert not refusals(r)
    assert r.run.shape == ("complete", [LLM] * 2 * (most - 1))


@pytest.mark.parametrize("step", ["complete_nowait", "cancel_nowait", "start_nowait"])
async def test_a_span_may_be_ended_in_the_middle_of_any_step_of_itself(step: str) -> None:
    most = 100
    async with recording() as r:
        for calls in range(1, most):
            with r.instance.span("agent:tool") as span:
                interrupt(calls, partial(span.fail_nowait, {"reason": "no"}))
                getattr(span, step)()
                sys.setprofile(None)
    assert len(r.run.spans) == most - 1
    for stored in r.run.spans.values():
        assert (stored.result == {"reason": "no"}) == (stored.status == "failed")
    assert not refusals(r)


async def test_a_run_may_be_begun_in_the_middle_of_its_start() -> None:
    async with recording() as r:
        for calls in range(1, 60):
            run = await r.client.create_agent_instance(**AGENT)
            span = run.span("agent:tool").__enter__()
            interrupt(calls, span.complete_nowait)
            run.start_nowait()
            sys.setprofile(None)
            span.complete_nowait()
            await run.finish()
    assert [run.shape for run in r.runs if run.spans] == [("complete", [TOOL])] * 59
    assert not refusals(r)


async def test_a_span_is_opened_once_also_by_several_threads(hasty_threads: None) -> None:
    rounds, opens = 200, 3
    spans: list[SpanContext] = []
    together = threading.Barrier(opens + 1)

    def open_and_end(name: str) -> None:
        for number in range(rounds):
            wait(together)
            getattr(spans[number], name)()

    async with recording() as r:
        with open_threads() as threads:
            for name in ("complete_nowait", "start_nowait", "__enter__"):
                threads.start(open_and_end, name)
            for _ in range(rounds):
                spans.append(r.instance.span("agent:tool"))
                spans[-1].set_result({"n": 1})
                await anyio.to_thread.run_sync(wait, together)
            await threads.join()
    assert r.run.shape == ("complete", [TOOL] * rounds)
    assert [span.result for span in r.run.roots] == [{"n": 1}] * rounds
    assert not refusals(r)


# --- The end


async def test_a_client_may_close_while_threads_record(hasty_threads: None) -> None:
    recording_now, ended = threading.Barrier(5), list[BaseException]()

    def work(client: PrefactorCoreClient, instance: AgentInstanceHandle) -> None:
        span_id = ""
        wait(recording_now)
        try:
            while True:
                with instance.span("agent:llm") as span:
                    span_id = span.id
                    span.set_result({"n": 1})
                    with instance.span("agent:tool"):
                        time.sleep(0.0005)  # or all of the time goes into the delivery
        except ClientNotInitializedError as error:
            ended.append(error)
        with pytest.raises(ClientNotInitializedError):
            client.create_span_nowait(instance.id, "agent:tool")
        with pytest.raises(ClientNotInitializedError):
            client.finish_span_nowait(span_id)
        # Refused while the client still ends the run, and nothing to do after that.
        with suppress(ClientNotInitializedError):
            instance.finish_nowait()

    with open_threads() as threads, anyio.fail_after(60):
        for number in range(4):
            async with open_faulty_api() as api:
                config = make_config(drain_timeout=60)
                async with open_prefactor(config, asgi_app=api) as client:
                    run = await client.create_agent_instance(**AGENT)
                    for _ in range(4):
                        threads.start(work, client, run)
                    await anyio.to_thread.run_sync(wait, recording_now)
                    if number % 2:
                        await anyio.sleep(0.01)
                statistics = client.statistics()
                await threads.join()
                assert client.statistics() == statistics
                assert statistics.lost == 0
                assert_all_completed(statistics)
                assert not cast("LocalPrefactor", api.app).refusals
                stored = await stored_run(api)
                assert_ended(stored)
    assert len(ended) == 16


async def test_the_last_operations_of_a_thread_are_delivered_by_the_exit() -> None:
    def last() -> None:
        record_llm_and_tool(instance)
        instance.finish_nowait()

    async with open_faulty_api() as api:
        async with open_prefactor(make_config(), asgi_app=api) as client:
            instance = await client.create_agent_instance(**AGENT)
            # The loop has no turn until the client closes.
            thread = threading.Thread(target=last)
            thread.start()
            thread.join(SECONDS)
        assert (await stored_run(api)).shape == ("complete", [LLM])
    assert client.statistics().lost == 0


def assert_ended(run: StoredRun) -> None:
    """Every span has ended; at most the two that each thread had open have ended otherwise.

    ``failed``: the block of one that was still open has met the refusal of the next.
    """
    assert run.status in ("complete", "cancelled")
    statuses = [span.status for span in run.spans.values() if span.status != "complete"]
    assert set(statuses) <= {"cancelled", "failed"}
    assert len(statuses) <= 2 * 4


async def test_a_run_may_end_while_threads_record(hasty_threads: None) -> None:
    recording_now = threading.Barrier(5)

    def work(run: AgentInstanceHandle) -> None:
        wait(recording_now)
        for _ in range(1_000):
            if run.ended:
                break
            record_llm_and_tool(run)
            time.sleep(0.0005)  # or all of the time goes into the delivery

    async with open_faulty_api() as api:
        async with open_prefactor(make_config(drain_timeout=60), asgi_app=api) as client:
            with open_threads() as threads:
                for _ in range(5):
                    run = await client.create_agent_instance(**AGENT)
                    for _ in range(4):
                        threads.start(work, run)
                    await anyio.to_thread.run_sync(wait, recording_now)
                    await anyio.sleep(0.01)
                    run.finish_nowait()
                    await threads.join()
        for stored in await stored_runs(api):
            assert stored.status == "complete"
            assert_ended(stored)
    # A span that a thread opens after the end of its run is dropped, as in the loop.
    assert set(client.statistics().dropped) <= {"run_ended"}
    assert not api.app.refusals
    assert client.statistics().lost <= 5 * 4 * 3
    assert_all_completed(client.statistics())


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_thread_may_outlive_the_event_loop(backend: str) -> None:
    closed, opened = threading.Event(), threading.Event()
    found: list[object] = []

    def work() -> None:
        span = instance.span("agent:llm").__enter__()
        late = instance.span("agent:tool")
        opened.set()
        wait(closed)
        span.complete_nowait({"late": True})
        with pytest.raises(ClientNotInitializedError):
            late.__enter__()
        with pytest.raises(ClientNotInitializedError):
            instance.span("agent:tool")
        found.append(client.statistics())

    async def main() -> None:
        nonlocal client, instance
        async with open_faulty_api() as api:
            async with open_prefactor(make_config(), asgi_app=api) as client:
                async with run_of(client) as instance:
                    thread.start()
                    await wait_in_task(opened)
            runs.append(await stored_run(api))

    client: Any = None
    instance: Any = None
    runs: list[StoredRun] = []
    thread = threading.Thread(target=work)
    anyio.run(main, backend=backend)
    closed.set()
    thread.join(SECONDS)
    assert found == [client.statistics()]
    assert runs[0].shape == ("complete", [("agent:llm", "cancelled", [])])
