"""The memory of open spans and traced generators is bounded and counted."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Iterator
from contextvars import copy_context
from typing import Any

import anyio
import pytest
from support.harness import AGENT, make_config, open_faulty_api, recording, stored_run
from support.interruptions import in_the_middle

from prefactor_core import AgentInstanceHandle, SpanContext, open_prefactor, redact_keys, traced
from prefactor_core.export.identity import Identities
from prefactor_core.operations.identifiers import generate
from prefactor_core.recording.span_index import SpanIndex
from prefactor_core.recording.span_record import SpanRecord

BIG = {"text": "x" * 100_000}


class Item:
    """An item of a generator, of a type that JSON does not have."""

    def __repr__(self) -> str:
        return "an item"


async def test_payloads_of_open_spans_are_counted_until_they_are_recorded() -> None:
    async with recording() as r:
        spans = [r.instance.span("agent:llm", payload=BIG) for _ in range(5)]
        for span in spans:
            span.__enter__()
        assert r.client.statistics().open_bytes == 5 * 100_011
        spans[0].start_nowait()
        assert r.client.statistics().open_bytes == 4 * 100_011
        assert r.client.statistics().pending_bytes > 100_011
        spans[1].start_nowait({"text": "short"})  # the others are waiting for it, as its parents
        assert r.client.statistics().open_bytes == 3 * 100_011
        for span in reversed(spans):
            span.__exit__(None, None, None)
        assert r.client.statistics().open_bytes == 0
    statistics = r.client.statistics()
    assert (statistics.pending, statistics.pending_bytes, statistics.open_bytes) == (0, 0, 0)


async def test_open_spans_hold_no_more_payload_than_the_buffer() -> None:
    with anyio.fail_after(20):
        async with open_faulty_api() as api:
            async with (
                open_prefactor(
                    make_config(queue={"max_pending_bytes": 1_000_000}), asgi_app=api
                ) as client,
                client.agent_instance(**AGENT) as run,
            ):
                spans = [run.span("agent:llm", payload=BIG) for _ in range(50)]
                for span in spans:
                    copy_context().run(span.__enter__)  # none is the parent of another
                statistics = client.statistics()
                assert 900_000 < statistics.open_bytes < 1_200_000
                for span in spans:
                    span.__exit__(None, None, None)
                    await client.flush()
                assert client.statistics().open_bytes == 0
            # The payloads of other spans leave no room: a marker is recorded, and no span is lost.
            assert client.statistics().lost == 0
            stored = await stored_run(api)
    payloads = [span.payload for span in stored.spans.values()]
    assert len(payloads) == 50
    assert payloads.count(BIG) == 10
    assert payloads.count({"$truncated": {"bytes": 100_011}}) == 40


async def test_a_later_payload_replaces_the_first_in_the_count() -> None:
    async with recording() as r:
        manager, run = r.client.span_manager, r.instance.id
        span_id = manager.prepare(run, "agent:llm", payload=BIG)
        manager.update_payload(span_id, {"text": "short"})
        assert r.client.statistics().open_bytes == len(b'{"text":"short"}')
        manager.start(span_id)
        assert r.client.statistics().open_bytes == 0
        manager.finish(span_id)


@pytest.mark.parametrize("keeps", ["items", "no payloads", "no result"])
async def test_a_traced_generator_keeps_no_item_alive(keeps: str) -> None:
    def items() -> Iterator[Item]:
        for _ in range(100):
            yield Item()

    async def async_items() -> AsyncIterator[Item]:
        for _ in range(100):
            yield Item()

    async with recording(capture_payloads=keeps != "no payloads") as r:
        trace = traced("agent:tool", capture_result=keeps != "no result")
        seen: list[weakref.ref[Item]] = []
        for item in (generator := trace(items)()):
            seen.append(weakref.ref(item))
            del item
            gc.collect(0)
            assert sum(reference() is not None for reference in seen) <= 1
        async for item in trace(async_items)():
            seen.append(weakref.ref(item))
            del item
            assert sum(reference() is not None for reference in seen) <= 1
        del generator
    results = [span.result for span in r.run.spans.values()]
    assert results == [{"items": ["an item"] * 100} if keeps == "items" else None] * 2


async def test_items_are_recorded_as_they_were_when_they_were_yielded() -> None:
    @traced("agent:tool")
    def growing() -> Iterator[list[int]]:
        shared: list[int] = []
        for number in range(3):
            shared.append(number)
            yield shared

    async with recording() as r:
        assert len(list(growing())) == 3
    assert r.run.named("agent:tool").result == {"items": [[0], [0, 1], [0, 1, 2]]}


@pytest.mark.parametrize(
    ("redact", "cuts"),
    [(None, True), (redact_keys(), True), (lambda fields: fields, False)],
    ids=["plain", "by name", "redacted"],
)
async def test_items_take_at_most_the_bytes_of_one_payload_and_the_rest_is_counted(
    redact: Any, cuts: bool
) -> None:
    @traced("agent:tool")
    def stream() -> Iterator[str]:
        for _ in range(1_000):
            yield "x" * 90

    @traced("agent:llm")
    def one() -> Iterator[str]:
        yield "y" * 20_000

    async with recording(max_payload_bytes=10_000, redact=redact) as r:
        assert len(list(stream())) == 1_000
        assert len(list(one())) == 1
    result = r.run.named("agent:tool").result
    assert result["items"] == ["x" * 90] * len(result["items"])
    assert 100 < len(result["items"]) < 110
    assert result["items_left_out"] == 1_000 - len(result["items"])
    result = r.run.named("agent:llm").result
    if cuts:  # to its first characters, as any payload
        (text,) = result["items"]
        assert text.startswith("yyy")
        assert text.endswith("characters truncated]")
    else:  # nothing is cut before redact= has seen it
        assert result == {"items": [], "items_left_out": 1}


@pytest.mark.virtual_time
async def test_a_span_that_others_start_while_it_waits_for_its_place_takes_none() -> None:
    """Else each such span would make the buffer smaller, until nothing had a place in it."""
    queue = {"when_full": "wait", "max_pending_operations": 4, "batch_window": 0.0}
    async with open_faulty_api() as api:
        async with (
            open_prefactor(make_config(queue=queue), asgi_app=api) as client,
            client.agent_instance(**AGENT) as run,
        ):
            for _ in range(5):
                await client.flush()
                api.away = True
                for _ in range(4):
                    run.span("agent:tool").complete_nowait()
                assert client.statistics().pending == 4
                span = run.span("agent:run").detached()

                async def enter(span: SpanContext[Any] = span) -> None:
                    async with span:
                        pass

                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(enter)
                    await anyio.sleep(0.1)
                    span.start_nowait()  # it cannot wait, and is dropped
                    api.away = False
            with anyio.fail_after(60):
                async with run.span("agent:llm"):
                    pass
        assert client.statistics().dropped == {"full": 5}
        assert "agent:llm" in {span.name for span in (await stored_run(api)).spans.values()}


def test_a_span_is_found_by_the_id_of_the_api_while_other_threads_open_and_end_spans() -> None:
    identities = Identities()
    identities.given_ids = False
    run = identities.add(generate(0))
    index = SpanIndex(identities)
    wanted = SpanRecord(run, generate(0), "agent:llm")
    of_run = index.by_run[run.recorded_id] = {}
    index.spans[wanted.recorded_id] = of_run[wanted.recorded_id] = wanted
    api_id = generate(0)
    run.span_made(wanted.recorded_id, api_id)
    over = threading.Event()

    def come_and_go() -> None:
        while not over.is_set():
            other = SpanRecord(run, generate(0), "agent:tool")
            of_run[other.recorded_id] = other
            over.is_set()  # a call: here the other thread may have its turn
            del of_run[other.recorded_id]

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        for _ in range(20_000):
            assert index.find(api_id) is wanted
    finally:
        over.set()
        sys.setswitchinterval(interval)
        thread.join(20)


async def test_a_finaliser_that_opens_a_span_in_the_middle_of_the_end_of_a_run_is_no_harm() -> None:
    """Wherever in it that is: while it looks for the open spans, say."""
    opened = list[SpanContext[Any]]()

    def open_another(run: AgentInstanceHandle) -> None:
        opened.append(run.span("agent:llm", payload=BIG).detached().__enter__())

    with anyio.fail_after(20):
        async with open_faulty_api() as api, open_prefactor(make_config(), asgi_app=api) as client:
            places = 0
            while len(opened) == places:
                places += 1
                run = await client.create_agent_instance(**AGENT)
                for _ in range(3):
                    run.span("agent:tool").detached().__enter__()
                with in_the_middle(places, lambda run=run: open_another(run)):
                    run.finish_nowait()
            for span in opened:
                span.complete_nowait()
            assert client.statistics().open_bytes == 0
        assert places > 50
    assert client.statistics().pending == 0
    assert set(client.statistics().dropped) <= {"run_ended"}
