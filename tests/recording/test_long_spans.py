"""Spans that stay open are reported while they run; those that do not stay one operation."""

from __future__ import annotations

import asyncio
import logging
import math
import sys
import threading
from collections.abc import AsyncGenerator
from contextlib import ExitStack, asynccontextmanager
from contextvars import copy_context
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from support.forks import needs_fork
from support.forks import run as run_script
from support.harness import (
    AGENT,
    FaultyApi,
    Recording,
    make_config,
    open_faulty_api,
    recording,
    stored_run,
)
from support.virtual_time import virtual_time

from prefactor_core import PrefactorCoreClient, QueueConfig, SpanContext, open_prefactor
from prefactor_core.local import Faults, LocalPrefactor, open_local_prefactor
from prefactor_core.recording import long_spans
from prefactor_core.span_types import LLMCall, LLMResult, TokenUsage, ToolCall, standard_types

SECOND = {"report_after": 1.0, "batch_window": 0.0}
PAYLOAD = {"prompt": "what is it?"}
USAGE = TokenUsage(prompt_tokens=12, completion_tokens=5, total_tokens=17)


async def stored(api: FaultyApi) -> dict[str, str]:
    """The status of each span that the API has by now, by name."""
    return {span.name: span.status for span in (await stored_run(api)).spans.values()}


def creates(api: FaultyApi) -> list[str]:
    """The names of the spans, in the order in which the API was told of them."""
    return [
        call.body["details"]["schema_name"]
        for call in api.operations
        if call.name == "agent_spans" and call.status == 200
    ]


def finishes(api: FaultyApi) -> int:
    """How many spans were ended by a finish."""
    return sum("agent_spans/" in call.path and call.name == "finish" for call in api.operations)


def refusals(api: FaultyApi) -> dict[str, int]:
    assert isinstance(api.app, LocalPrefactor)
    return dict(api.app.refusals)


def nothing_is_held(client: PrefactorCoreClient) -> None:
    statistics = client.statistics()
    assert (statistics.pending, statistics.pending_bytes, statistics.open_bytes) == (0, 0, 0)
    assert statistics.accepted == statistics.delivered + sum(statistics.dropped.values())


@pytest.mark.virtual_time
async def test_a_span_is_reported_a_second_after_its_entering_and_ends_with_a_finish() -> None:
    async with recording(queue={"report_after": QueueConfig().report_after}) as r:
        with r.instance.span("agent:llm", payload=PAYLOAD) as span:
            await anyio.sleep(0.95)
            assert await stored(r.api) == {}
            await anyio.sleep(0.5)  # a quarter after its time, and the batch window
            assert await stored(r.api) == {"agent:llm": "active"}
            assert (await stored_run(r.api)).named("agent:llm").payload == PAYLOAD
            span.set_result({"answer": "it is that"})
    stored_span = r.run.named("agent:llm")
    assert (stored_span.status, stored_span.result) == ("complete", {"answer": "it is that"})
    assert (creates(r.api), finishes(r.api)) == (["agent:llm"], 1)
    nothing_is_held(r.client)


@pytest.mark.virtual_time
async def test_its_start_is_its_entering_and_not_the_report() -> None:
    async with recording(queue=SECOND) as r:
        with r.instance.span("agent:llm") as span:
            entered = span.as_model().created_at
            await anyio.sleep(1.5)
            assert span.as_model().started_at == entered


@pytest.mark.virtual_time
async def test_short_spans_stay_one_operation_however_long_the_run_is() -> None:
    async with recording(queue=SECOND) as r:
        for _ in range(12):
            with r.instance.span("agent:tool"):
                await anyio.sleep(0.7)
    assert (len(creates(r.api)), finishes(r.api)) == (12, 0)


@pytest.mark.virtual_time
async def test_a_long_span_between_short_ones_is_reported_alone() -> None:
    async with recording(queue=SECOND) as r:
        for _ in range(3):
            with r.instance.span("agent:tool"):
                await anyio.sleep(0.7)
        with r.instance.span("agent:run"):
            await anyio.sleep(1.3)
            assert await stored(r.api) == {"agent:tool": "complete", "agent:run": "active"}
    assert finishes(r.api) == 1


@pytest.mark.virtual_time
async def test_ancestors_are_reported_first() -> None:
    async with recording(queue=SECOND) as r:
        with r.instance.span("agent:run").detached() as outer:
            await anyio.sleep(0.4)
            with r.instance.span("agent:llm", outer.id):
                await anyio.sleep(0.4)
                with r.instance.span("agent:tool"):
                    await anyio.sleep(0.5)
                    assert await stored(r.api) == {"agent:run": "active"}
                    await anyio.sleep(1)
                    assert await stored(r.api) == dict.fromkeys(
                        ("agent:run", "agent:llm", "agent:tool"), "active"
                    )
    assert creates(r.api) == ["agent:run", "agent:llm", "agent:tool"]
    assert refusals(r.api) == {}


@pytest.mark.virtual_time
async def test_with_infinity_no_span_is_reported_before_its_end() -> None:
    async with recording(queue={"report_after": math.inf}) as r:
        with r.instance.span("agent:run"):
            await anyio.sleep(9)
            assert await stored(r.api) == {}
    assert finishes(r.api) == 0


@pytest.mark.virtual_time
async def test_with_zero_a_span_is_reported_at_its_entering() -> None:
    async with recording(queue={"report_after": 0, "batch_window": 0}) as r:
        with r.instance.span("agent:run", payload=PAYLOAD):
            accepted = r.client.statistics().accepted
            with r.instance.span("agent:llm"):
                assert r.client.statistics().accepted == accepted + 1
                await anyio.sleep(0.1)
                assert await stored(r.api) == {"agent:run": "active", "agent:llm": "active"}
    assert (creates(r.api), finishes(r.api)) == (["agent:run", "agent:llm"], 2)
    assert r.run.named("agent:run").payload == PAYLOAD


@pytest.mark.virtual_time
async def test_a_payload_that_comes_after_the_report_is_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "prefactor_core")
    async with recording(queue=SECOND) as r:
        with r.instance.span("agent:llm") as span:
            await anyio.sleep(1.5)
            span.start_nowait(PAYLOAD)
    (warning,) = caplog.messages
    assert "report_after" in warning
    assert r.run.named("agent:llm").payload == {}


# Payloads that are filled in from the result


@asynccontextmanager
async def typed_recording(report_after: float) -> AsyncGenerator[Recording]:
    queue = {"report_after": report_after, "batch_window": 0}
    async with recording(schema_registry=standard_types(), queue=queue) as r:
        yield r


@pytest.mark.virtual_time
@pytest.mark.parametrize("report_after", [0, 1])
async def test_a_payload_that_is_filled_in_from_the_result_waits_for_it(
    report_after: float,
) -> None:
    async with typed_recording(report_after) as r:
        with r.instance.span(LLMCall(model="small-1")) as call:
            await anyio.sleep(3)
            assert await stored(r.api) == {}
            call.complete_nowait(LLMResult(response="Hi", token_usage=USAGE))
    span = r.run.named("agent:llm_call")
    assert span.status == "complete"
    assert span.payload["token_usage"]["total_tokens"] == 17
    assert finishes(r.api) == 0


@pytest.mark.virtual_time
@pytest.mark.parametrize("report_after", [0, 1])
async def test_its_descendants_wait_as_well_and_others_do_not(report_after: float) -> None:
    async with typed_recording(report_after) as r:
        with r.instance.span(ToolCall(tool="ask")), ExitStack() as inside:
            call = inside.enter_context(r.instance.span(LLMCall(model="small-1")))
            below = inside.enter_context(r.instance.span("agent:agent_loop"))
            inside.enter_context(r.instance.span("agent:guardrail"))
            await anyio.sleep(3)
            assert await stored(r.api) == {"agent:tool_call": "active"}
            call.complete_nowait(LLMResult(response="Hi", token_usage=USAGE))
            assert below.is_open
            # Nothing above them waits for a result now.
            await anyio.sleep(3)
            if report_after:
                assert set((await stored(r.api)).values()) == {"active", "complete"}
                assert len(await stored(r.api)) == 4
    assert r.run.named("agent:llm_call").payload["token_usage"]["total_tokens"] == 17
    assert refusals(r.api) == {}


@pytest.mark.virtual_time
@pytest.mark.parametrize("report_after", [0, 1])
async def test_once_started_neither_it_nor_its_descendants_wait(report_after: float) -> None:
    async with typed_recording(report_after) as r:
        with r.instance.span(LLMCall(model="small-1")) as call:
            call.start_nowait()
            with r.instance.span(ToolCall(tool="ask")):
                await anyio.sleep(1.5)
                assert await stored(r.api) == {
                    "agent:llm_call": "active",
                    "agent:tool_call": "active",
                }


@pytest.mark.virtual_time
async def test_a_deep_tree_below_it_is_looked_through_once() -> None:
    """Not once for each of its spans, which would hold the loop."""
    depth, lines = 1_000, 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal lines
        if frame.f_code.co_filename != long_spans.__file__:
            return None
        lines += event == "line"
        return trace

    async with typed_recording(1) as r:
        with ExitStack() as inside:
            inside.enter_context(r.instance.span(LLMCall(model="small-1")))
            for _ in range(depth):
                inside.enter_context(r.instance.span("agent:agent_loop"))
            # A task that has begun is traced from its next call on.
            sys.settrace(trace)
            try:
                await anyio.sleep(1.3)
            finally:
                sys.settrace(None)
            assert await stored(r.api) == {}
    assert depth < lines < 50 * depth


@pytest.mark.virtual_time
async def test_the_children_of_a_call_that_was_skipped_wait_for_nothing() -> None:
    async with typed_recording(1) as r:
        with r.instance.span(LLMCall(model="small-1")) as call, r.instance.span("agent:agent_loop"):
            call.cancel_nowait()
            await anyio.sleep(1.5)
            assert (await stored(r.api))["agent:agent_loop"] == "active"
    assert refusals(r.api) == {}


# Other threads, many spans, one timer


@pytest.mark.virtual_time
async def test_a_span_that_another_thread_opens_is_reported() -> None:
    opened = list[SpanContext[Any]]()
    async with recording(queue=SECOND) as r:
        await anyio.sleep(3)  # the reporter sleeps: nothing is open
        thread = threading.Thread(
            target=lambda: opened.append(r.instance.span("agent:tool").__enter__())
        )
        thread.start()
        thread.join(10)
        await anyio.sleep(1.5)
        assert await stored(r.api) == {"agent:tool": "active"}
        opened[0].complete_nowait()
    assert r.run.named("agent:tool").status == "complete"


async def test_many_spans_are_reported_in_slices_with_turns_of_the_loop_in_between() -> None:
    many = 2_000
    async with recording(queue={"report_after": 0.02, "batch_window": 3600.0}) as r:
        before = r.client.statistics().accepted
        spans = [r.instance.span("agent:tool") for _ in range(many)]
        for span in spans:
            copy_context().run(span.__enter__)
        accepted = [before]
        while accepted[-1] < before + many:
            await anyio.lowlevel.checkpoint()
            accepted.append(r.client.statistics().accepted)
        most = max(after - before for before, after in pairwise(accepted))
        # Trio runs the tasks of a turn in any order: two slices may follow on each other.
        assert most <= 500
        for span in spans:
            span.complete_nowait()


def tasks_alive(backend: str) -> int:
    if backend == "asyncio":
        return len(asyncio.all_tasks())
    import trio

    return trio.lowlevel.current_statistics().tasks_living


@pytest.mark.virtual_time
async def test_no_span_has_a_task_of_its_own(anyio_backend_name: str) -> None:
    async with recording(queue=SECOND) as r:
        await anyio.sleep(0.1)
        before = tasks_alive(anyio_backend_name)
        with ExitStack() as inside:
            for _ in range(100):
                inside.enter_context(r.instance.span("agent:tool"))
            for _ in range(8):
                await anyio.sleep(0.3)
                assert tasks_alive(anyio_backend_name) <= before


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_timer_stands_still_while_every_open_span_is_reported(backend: str) -> None:
    turns = 0

    def at_turn() -> None:
        nonlocal turns
        turns += 1

    async def main() -> int:
        async with recording(queue=SECOND) as r:
            with r.instance.span("agent:run"):
                await anyio.sleep(2)
                assert await stored(r.api) == {"agent:run": "active"}
                before = turns
                await anyio.sleep(6)
                return turns - before

    # Three ticks a second would be 18 turns at least.
    assert anyio.run(main, backend=backend, backend_options=virtual_time(backend, at_turn)) < 12


# The exit


@pytest.mark.virtual_time
@pytest.mark.parametrize("open_for", [0.0, 0.51, 2.0])
async def test_the_exit_waits_for_no_report_and_loses_nothing(open_for: float) -> None:
    async with recording(queue={"report_after": 1.0}) as r:
        span = r.instance.span("agent:llm", payload=PAYLOAD).detached().__enter__()
        await anyio.sleep(open_for)
        left = anyio.current_time()
    assert anyio.current_time() - left < 0.1
    assert not span.is_open
    assert r.run.shape == ("complete", [("agent:llm", "cancelled", [])])
    nothing_is_held(r.client)


@pytest.mark.virtual_time
async def test_a_run_that_ends_takes_its_long_spans_with_it() -> None:
    async with recording(queue=SECOND) as r:
        run = await r.client.create_agent_instance(**AGENT)
        reported, not_yet = run.span("agent:llm"), run.span("agent:tool")
        reported.detached().__enter__()
        await anyio.sleep(1.5)
        not_yet.detached().__enter__()
        await anyio.sleep(0.5)
        run.finish_nowait()
        accepted = r.client.statistics().accepted
        await anyio.sleep(3)
        assert r.client.statistics().accepted == accepted
    (ended,) = (stored for stored in r.runs if stored.spans)
    assert ended.status == "complete"
    assert {span.name: span.status for span in ended.spans.values()} == {
        "agent:llm": "cancelled",
        "agent:tool": "cancelled",
    }
    assert refusals(r.api) == {}


# A full buffer, an outage, a fork


@pytest.mark.virtual_time
async def test_a_long_span_that_finds_the_buffer_full_is_dropped_whole_and_counted() -> None:
    queue = {**SECOND, "max_pending_operations": 4}
    async with open_faulty_api() as api:
        async with (
            open_prefactor(make_config(queue=queue), asgi_app=api) as client,
            client.agent_instance(**AGENT) as instance,
        ):
            await anyio.sleep(0.1)
            api.away = True
            for _ in range(4):
                with instance.span("agent:tool").detached():
                    pass
            with instance.span("agent:run"):
                await anyio.sleep(2)
                assert client.statistics().dropped == {"full": 1}
                api.away = False
                await anyio.sleep(8)
                with instance.span("agent:llm"):
                    pass
        shape = (await stored_run(api)).shape
    assert ("agent:llm", "complete", []) in shape[1]
    assert "agent:run" not in str(shape)
    assert client.statistics().dropped == {"full": 1}
    nothing_is_held(client)


@pytest.mark.virtual_time
async def test_a_long_span_that_waited_for_its_place_is_reported_there() -> None:
    queue = {**SECOND, "max_pending_operations": 4, "when_full": "wait"}
    async with recording(queue=queue) as r:
        for _ in range(3):
            async with r.instance.span("agent:run"), r.instance.span("agent:llm"):
                async with r.instance.span("agent:tool"):
                    await anyio.sleep(1.3)
                    assert set((await stored(r.api)).values()) <= {"active", "complete"}
                    assert len((await stored_run(r.api)).roots) > 0
    assert len(r.run.spans) == 9
    assert refusals(r.api) == {}
    nothing_is_held(r.client)


@pytest.mark.virtual_time
async def test_what_is_reported_during_an_outage_is_delivered_after_it() -> None:
    async with recording(queue=SECOND) as r:
        await anyio.sleep(0.1)
        r.api.away = True
        with r.instance.span("agent:run"), r.instance.span("agent:llm"):
            await anyio.sleep(2)
            assert r.client.statistics().pending >= 2
            r.api.away = False
            await anyio.sleep(4)
            assert await stored(r.api) == {"agent:run": "active", "agent:llm": "active"}
    assert r.run.shape == (
        "complete",
        [("agent:run", "complete", [("agent:llm", "complete", [])])],
    )
    assert refusals(r.api) == {}


@pytest.mark.virtual_time
async def test_long_spans_are_reported_to_an_api_that_makes_all_ids() -> None:
    async with open_local_prefactor(":memory:", faults=Faults(given_ids=False)) as app:
        api = FaultyApi(app)
        async with (
            open_prefactor(make_config(queue=SECOND, drain_timeout=60), asgi_app=api) as client,
            client.agent_instance(**AGENT) as instance,
        ):
            with instance.span("agent:run") as outer:
                with instance.span("agent:llm"), instance.span("agent:tool"):
                    await anyio.sleep(5)
                    assert set((await stored(api)).values()) == {"active"}
                    assert len(await stored(api)) == 3
                    assert outer.id in (await stored_run(api)).spans
        assert (await stored_run(api)).shape == (
            "complete",
            [
                (
                    "agent:run",
                    "complete",
                    [("agent:llm", "complete", [("agent:tool", "complete", [])])],
                )
            ],
        )
    nothing_is_held(client)


@pytest.mark.virtual_time
async def test_long_spans_of_a_run_that_waits_for_its_registration_follow_it() -> None:
    async with open_local_prefactor(":memory:") as app:
        api = FaultyApi(app, away=True)
        config = make_config(queue=SECOND, registration_timeout=0.5, drain_timeout=60)
        async with open_prefactor(config, asgi_app=api) as client:
            instance = await client.create_agent_instance(**AGENT)
            with instance.span("agent:run"), instance.span("agent:llm") as inner:
                await anyio.sleep(2)
                api.away = False
                await client.flush()
                assert await stored(api) == {"agent:run": "active", "agent:llm": "active"}
                assert inner.id in (await stored_run(api)).spans
            await instance.finish()
        assert (await stored_run(api)).shape == (
            "complete",
            [("agent:run", "complete", [("agent:llm", "complete", [])])],
        )
        assert refusals(api) == {}
    nothing_is_held(client)


@needs_fork
def test_a_fork_reports_no_span_of_its_parent_and_the_parent_does(tmp_path: Path) -> None:
    script = """
import asyncio

async def active(api):
    with anyio.fail_after(30):
        while not any(span.status == "active" for span in (await stored_run(api)).roots):
            await anyio.sleep(0.02)

async def main():
    queue = {"report_after": 0.1, "batch_window": 0.0}
    async with open_faulty_api() as api:
        async with open_prefactor(make_config(queue=queue), asgi_app=api) as client:
            async with client.agent_instance(**AGENT) as instance:
                async with instance.span("agent:run"):
                    accepted = client.statistics().accepted
                    child = os.fork()
                    if child == 0:
                        time.sleep(0.3)
                        same = client.statistics().accepted == accepted
                        os._exit(3 if same else 4)
                    assert wait_for(child) == 3
                    await active(api)
        assert (await stored_run(api)).shape == ("complete", [("agent:run", "complete", [])])
        assert not api.app.refusals
    assert client.statistics().lost == 0

asyncio.run(main())
"""
    run_script(script, tmp_path)
