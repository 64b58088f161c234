"""Our own spans inside of spans of OpenTelemetry, and those inside of ours: one tree."""

from __future__ import annotations

import contextvars
import logging
import threading
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import anyio
import anyio.to_thread
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import Tracer
from support.examples import examples
from support.harness import AGENT, stored_runs, terminate
from support.tracing import Problems, make_provider, tracing

import prefactor_core
from prefactor_core import PrefactorTerminatedError, current_instance, current_span, traced
from prefactor_core.context_stack.finders import finders
from prefactor_core.otel import PrefactorSpanProcessor
from prefactor_core.testing import RecordedSpan, open_recording

CHAT = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "small-1"}
AGENT_SPAN = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "Climber"}


@traced
def height(mountain: str) -> int:
    return 8611


async def test_a_traced_call_finds_the_run_and_the_span_of_opentelemetry() -> None:
    async with tracing() as t:
        with t.tracer.start_as_current_span("agent", attributes=AGENT_SPAN):
            with t.tracer.start_as_current_span("work"):
                height("K2")
            with prefactor_core.span("agent:tool_call"):
                pass
            instance = current_instance()
            assert instance is not None
            async with instance.span("agent:retrieval"):
                pass
        assert current_instance() is None
    assert t.run.shape == (
        "complete",
        [
            (
                "agent:run",
                "complete",
                [
                    ("otel:span", "complete", [("agent:tool_call", "complete", [])]),
                    ("agent:tool_call", "complete", []),
                    ("agent:retrieval", "complete", []),
                ],
            )
        ],
    )
    assert t.run.named("agent:run").payload["agent"] == "Climber"


async def test_the_innermost_span_of_either_kind_is_the_parent() -> None:
    async with tracing() as t:
        async with t.client.agent_instance(**AGENT) as instance:
            with (
                t.tracer.start_as_current_span("1"),
                instance.span("step:2"),
                t.tracer.start_as_current_span("3"),
                t.tracer.start_as_current_span("4"),
                instance.span("step:5"),
                instance.span("step:6") as innermost,
                t.tracer.start_as_current_span("7"),
            ):
                assert current_span() is innermost  # those of OpenTelemetry are none of ours
                height("K2")
            with instance.span("step:8"):
                pass
    chain, (first, last) = [], t.run.roots
    while True:
        chain.append(first.payload.get("name", first.name))
        if not first.children:
            break
        (first,) = first.children
    assert chain == ["1", "step:2", "3", "4", "step:5", "step:6", "7", "agent:tool_call"]
    assert last.name == "step:8"


async def test_a_parent_that_is_named_counts() -> None:
    async with tracing() as t:
        async with t.client.agent_instance(**AGENT) as instance:
            with instance.span("step:1") as outer, t.tracer.start_as_current_span("2"):
                with instance.span("step:3", parent_span_id=outer.id):
                    pass
                instance.span("step:4").begin().end()
    (root,) = t.run.roots
    assert sorted(child.name for child in root.children) == ["otel:span", "step:3"]
    assert t.run.named("otel:span").children[0].name == "step:4"


async def test_a_run_that_is_opened_inside_has_what_is_inside_of_it() -> None:
    async with tracing() as t:
        with t.tracer.start_as_current_span("service"):
            async with t.client.agent_instance(**AGENT) as instance:
                assert current_instance() is instance
                with t.tracer.start_as_current_span("chat", attributes=CHAT):
                    height("K2")
            height("Eiger")
    assert sorted(run.shape for run in t.runs) == [
        (
            "complete",
            [("agent:llm_call", "complete", [("agent:tool_call", "complete", [])])],
        ),
        ("complete", [("otel:span", "complete", [("agent:tool_call", "complete", [])])]),
    ]


async def test_a_span_that_is_made_current_again_is_the_parent() -> None:
    async with tracing() as t:
        async with t.client.agent_instance(**AGENT) as instance:
            older = t.tracer.start_span("older")
            with instance.span("step:1"):
                with trace.use_span(older):
                    height("K2")
                height("Eiger")
            older.end()
    assert t.run.shape == (
        "complete",
        [
            ("otel:span", "complete", [("agent:tool_call", "complete", [])]),
            ("step:1", "complete", [("agent:tool_call", "complete", [])]),
        ],
    )


async def test_the_run_of_a_root_lasts_as_long_as_our_spans_inside() -> None:
    async with tracing() as t:
        with t.tracer.start_as_current_span("work"):
            instance = current_instance()
            assert instance is not None
            first, second = instance.span("step:1").begin(), instance.span("step:2").begin()
        first.end()
        assert not instance.ended
        second.cancel_nowait()
        assert instance.ended
    assert t.run.shape == (
        "complete",
        [("otel:span", "complete", [("step:1", "complete", []), ("step:2", "cancelled", [])])],
    )


async def test_a_task_that_outlives_its_span_stays_in_the_tree() -> None:
    async def work() -> None:
        await ended.wait()
        height("K2")

    ended = anyio.Event()
    async with tracing() as t:
        with t.tracer.start_as_current_span("agent", attributes=AGENT_SPAN):
            async with anyio.create_task_group() as group:
                with t.tracer.start_as_current_span("work"):
                    group.start_soon(work)
                ended.set()
    (root,) = t.run.roots
    assert root.children[0].children[0].name == "agent:tool_call"


async def test_a_task_that_outlives_the_run_is_outside_of_a_run() -> None:
    async def work() -> None:
        await ended.wait()
        assert current_instance() is None
        height("K2")

    ended = anyio.Event()
    async with tracing() as t:
        async with anyio.create_task_group() as group:
            with t.tracer.start_as_current_span("agent", attributes=AGENT_SPAN):
                group.start_soon(work)
            ended.set()
    assert t.run.shape == ("complete", [("agent:run", "complete", [])])


async def test_inside_of_a_span_that_is_not_sampled_there_is_no_run() -> None:
    async with tracing(provider=make_provider(sampler=ALWAYS_OFF)) as t:
        with t.tracer.start_as_current_span("chat", attributes=CHAT):
            assert current_instance() is None
            height("K2")
    assert t.runs == []


async def test_after_the_end_of_its_run_a_span_is_found_no_more() -> None:
    async with tracing() as t:
        async with t.client.agent_instance(**AGENT):
            span = t.tracer.start_span("work")
        with trace.use_span(span, end_on_exit=True):
            assert current_instance() is None
            height("K2")
    assert t.run.shape == ("complete", [("otel:span", "cancelled", [])])


async def test_a_terminated_run_stops_our_own_spans_inside() -> None:
    async with tracing() as t:
        with pytest.raises(PrefactorTerminatedError, match="over budget"):
            with t.tracer.start_as_current_span("agent", attributes=AGENT_SPAN):
                height("K2")
                await t.client.flush()
                (run,) = await stored_runs(t.api)
                await terminate(t.api, run.id)
                for _ in range(100):
                    height("K2")
                    await t.client.flush()
    assert t.run.status == "terminated"


async def test_each_client_finds_its_own_spans() -> None:
    async with tracing() as a, tracing(provider=a.provider) as b:
        with a.tracer.start_as_current_span("work"):
            found = current_instance()
            assert found is not None
            for t in (a, b):
                async with t.client.agent_instance(**AGENT) as instance:
                    with a.tracer.start_as_current_span("inner"):
                        with instance.span("step:1"):
                            pass
            height("K2")
    inside = ("complete", [("otel:span", "complete", [("step:1", "complete", [])])])
    assert inside in [run.shape for run in a.runs]
    assert inside in [run.shape for run in b.runs]
    with_height = [run for run in (*a.runs, *b.runs) if "agent:tool_call" in str(run.shape)]
    assert [run.id for run in with_height] == [found.id]


async def test_the_context_of_opentelemetry_is_enough_in_another_thread() -> None:
    def work() -> None:
        with trace.use_span(span):
            height("K2")

    async with tracing() as t:
        async with t.client.agent_instance(**AGENT):
            with t.tracer.start_as_current_span("work") as span:
                thread = threading.Thread(target=lambda: contextvars.Context().run(work))
                thread.start()
                await anyio.to_thread.run_sync(thread.join)
    assert t.run.shape == (
        "complete",
        [("otel:span", "complete", [("agent:tool_call", "complete", [])])],
    )


async def test_generators_are_inside_of_the_span_that_is_current_while_they_run() -> None:
    @traced("agent:stream")
    async def items() -> AsyncIterator[int]:
        for number in range(2):
            with t.tracer.start_as_current_span(f"item {number}"):
                height("K2")
            yield number

    async with tracing() as t:
        with t.tracer.start_as_current_span("agent", attributes=AGENT_SPAN):
            async for _ in items():
                height("Eiger")
    (root,) = t.run.roots
    stream, *others = root.children
    assert [child.name for child in others] == 2 * ["agent:tool_call"]
    assert [[child.name for child in item.children] for item in stream.children] == 2 * [
        ["agent:tool_call"]
    ]


async def test_inject_names_the_span_that_is_current() -> None:
    async with tracing() as t:
        with t.tracer.start_as_current_span("work"):
            headers: dict[str, str] = {}
            await t.client.flush()  # the API has given the run its id
            t.client.inject(headers)
    assert t.run.id in headers["baggage"]
    assert t.run.roots[0].id in headers["baggage"]


async def test_nothing_is_asked_once_the_client_is_closed() -> None:
    async with tracing() as t:
        with t.tracer.start_as_current_span("work"):
            assert len(finders) == 1
        span = t.tracer.start_span("work")
    assert not finders
    with trace.use_span(span):
        assert current_instance() is None


async def test_nothing_is_asked_after_the_shutdown_of_the_processor() -> None:
    async with tracing() as t:
        async with t.client.agent_instance(**AGENT) as instance:
            with t.tracer.start_as_current_span("work"):
                t.provider.shutdown()
                assert not finders
                assert current_instance() is instance
                height("K2")
    assert [root.name for root in t.run.roots] == ["otel:span", "agent:tool_call"]


# --- Any nesting

Tree = list[tuple[str, "Tree"]]
words = st.lists(
    st.sampled_from(["ours", "traced", "otel", "otel", "again", "begun", "thread", "leave"]),
    min_size=8,
    max_size=40,
)


class Nesting:
    """Plays words: each opens a block, of a span or in a thread, or leaves the innermost one.

    ``again`` makes the current span of OpenTelemetry current once more.
    """

    def __init__(self, tracer: Tracer, words: list[str]) -> None:
        self.tracer, self.words = tracer, iter(words)
        self.number = 0

    def play(self) -> Tree:
        """Play to the end of a block; the spans that were opened in it, with those inside."""
        tree: Tree = []
        for word in self.words:
            if word == "leave":
                break
            self.number += 1
            name = f"step:{self.number}"
            if word == "begun":
                prefactor_core.span(name).begin().end()
                tree.append((name, []))
            elif word == "thread":
                context = contextvars.copy_context()
                with ThreadPoolExecutor(1) as thread:
                    tree += thread.submit(context.run, self.play).result()
            elif word == "again":
                with trace.use_span(trace.get_current_span(), end_on_exit=False):
                    tree += self.play()
            elif word == "traced":
                tree.append((name, traced(name)(self.play)()))
            else:
                step: AbstractContextManager[Any] = (
                    prefactor_core.span(name)
                    if word == "ours"
                    else self.tracer.start_as_current_span(name)
                )
                with step:
                    tree.append((name, self.play()))
        return sorted(tree)


def stored(spans: Sequence[RecordedSpan]) -> Tree:
    return sorted(
        (span.payload.get("name", span.schema_name), stored(span.children)) for span in spans
    )


@settings(max_examples=examples(30))  # each opens a client
@given(words, st.booleans())
def test_any_nesting_of_both_kinds_is_stored_as_it_was(words: list[str], has_run: bool) -> None:
    problems = Problems(logging.WARNING)
    logging.getLogger("prefactor_core").addHandler(problems)
    with open_recording() as recording:
        with recording.open_sync() as client, ExitStack() as blocks:
            provider = make_provider()
            provider.add_span_processor(PrefactorSpanProcessor(client, "tested-agent"))
            tracer = provider.get_tracer("tests")
            if has_run:
                blocks.enter_context(client.agent_instance("tested-agent", {"name": "Tested"}))
            else:
                blocks.enter_context(tracer.start_as_current_span("root"))
            nesting = Nesting(tracer, words)
            played = sorted(step for _ in words for step in nesting.play())
        roots = stored(recording.run.roots)
    assert roots == (played if has_run else [("root", played)])
    assert problems.messages == []
    logging.getLogger("prefactor_core").removeHandler(problems)
