"""Spans that do harm: secrets in texts of JSON, other threads, too much of everything."""

from __future__ import annotations

import json
from pathlib import Path

from support.process import program
from support.tracing import tracing

CHAT = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "small-1"}
LATE = "openinference.instrumentation.langchain"


async def test_secrets_are_redacted_in_attributes_that_are_texts_of_json() -> None:
    secret = json.dumps({"settings": [{"api_key": "open-sesame"}]})
    async with tracing() as t:
        with t.tracer.start_as_current_span("work", attributes={"program.settings": secret}) as s:
            s.add_event("configured", {"settings": secret})
            s.set_attribute("program.late", secret)
    stored = t.run.named("otel:span")
    assert "open-sesame" not in json.dumps([stored.payload, stored.result])
    kept = stored.payload["attributes"]["program.settings"]
    assert kept == {"settings": [{"api_key": "[redacted]"}]}


async def test_texts_that_are_no_json_stay_as_they_are() -> None:
    texts = {"a": "{not json", "b": "[1, 2", "c": "plain", "d": '"quoted"', "e": "7"}
    async with tracing() as t:
        t.tracer.start_span("work", attributes=texts).end()
    assert t.run.named("otel:span").payload["attributes"] == texts


async def test_a_processor_that_a_provider_has_twice_records_each_span_once() -> None:
    async with tracing() as t:
        t.provider.add_span_processor(t.processor)
        with t.tracer.start_as_current_span("work"):
            t.tracer.start_span("chat", attributes=CHAT).end()
    llm_call = ("agent:llm_call", "complete", [])
    assert t.run.shape == ("complete", [("otel:span", "complete", [llm_call])])


async def test_spans_that_wait_for_their_parent_are_bounded_by_their_bytes() -> None:
    async with tracing(loses=True, queue={"max_pending_bytes": 200_000}) as t:
        tracer = t.scoped(LATE)
        with tracer.start_as_current_span("chain"):
            for _ in range(10):
                tracer.start_span("step", attributes={"output.value": 5_000 * "x"}).end()
            assert t.client.statistics().accepted == 2  # of the run: all spans wait
            for _ in range(20):
                tracer.start_span("step", attributes={"output.value": 20_000 * "x"}).end()
            assert t.client.statistics().accepted > 12
    statistics = t.client.statistics()
    assert statistics.accepted == statistics.delivered + statistics.lost


async def test_a_span_that_starts_as_another_thread_closes_the_client_is_no_problem() -> None:
    async with tracing() as t:  # which checks that nothing is logged
        t.client.instance_manager.close()
        t.tracer.start_span("chat", attributes=CHAT).end()
    assert t.runs == []


def test_force_flush_does_not_wait_for_a_loop_that_has_closed(tmp_path: Path) -> None:
    code = """
import asyncio, threading
from opentelemetry.sdk.trace import TracerProvider
from prefactor_core.otel import PrefactorSpanProcessor

client = client_of()
loop = asyncio.new_event_loop()
loop.run_until_complete(client.initialize())
processor = PrefactorSpanProcessor(client, "tested-agent")
provider = TracerProvider()
provider.add_span_processor(processor)
provider.get_tracer("tests").start_span("work").end()
loop.close()
# In the loop's own thread it never waits.
thread = threading.Thread(target=lambda: print(processor.force_flush(3_600_000)))
thread.start()
thread.join()
"""
    with program(code, [None, None], tmp_path) as process:
        assert process.wait()[:2] == (0, "False")
