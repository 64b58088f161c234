"""Driver of OpenTelemetry's SDK: BatchSpanProcessor, OTLP over HTTP, as its users set it up.

Forms: ``flat`` attributes, each with a primitive value, and ``json``.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import opentelemetry.sdk.trace
from cost import Form, measure_rounds
from job import Bodies, Job, begin, read_job, write_report
from loads import run_load
from measure import Measurement, now
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

Fields: TypeAlias = dict[str, Any]


class Recorder:
    """Records spans with one tracer, whose attributes ``payload`` and ``result`` give."""

    def __init__(
        self, provider: TracerProvider, payload: Callable[[], Fields], result: Callable[[], Fields]
    ) -> None:
        self._tracer = provider.get_tracer("benchmarks")
        self._payload = payload
        self._result = result

    def plain(self, add: Callable[[int], None]) -> None:
        began = now()
        with self._tracer.start_as_current_span("agent:llm", attributes=self._payload()) as span:
            span.set_attributes(self._result())
        add(now() - began)

    async def awaited(self, add: Callable[[int], None]) -> None:
        self.plain(add)

    async def turning(self, add: Callable[[int], None]) -> None:
        began = now()
        with self._tracer.start_as_current_span("agent:llm", attributes=self._payload()) as span:
            paused = now()
            await asyncio.sleep(0)
            resumed = now()
            span.set_attributes(self._result())
        add(now() - resumed + paused - began)


def make_recorder(job: Job, provider: TracerProvider, bodies: Bodies) -> Recorder:
    if job.form == "flat":
        return Recorder(provider, lambda: bodies.flat_payload, lambda: bodies.flat_result)
    return Recorder(
        provider,
        lambda: {"payload": json.dumps(bodies.payload)},
        lambda: {"result": json.dumps(bodies.result)},
    )


def cost_forms(provider: TracerProvider, bodies: Bodies) -> dict[str, Form]:
    """Ways to record so many spans, by their names."""
    tracer = provider.get_tracer("benchmarks")

    def record_flat(spans: int) -> None:
        payload, result = bodies.flat_payload, bodies.flat_result
        for _ in range(spans):
            with tracer.start_as_current_span("agent:llm", attributes=payload) as span:
                span.set_attributes(result)

    def record_json(spans: int) -> None:
        payload, result = bodies.payload, bodies.result
        for _ in range(spans):
            attributes = {"payload": json.dumps(payload)}
            with tracer.start_as_current_span("agent:llm", attributes=attributes) as span:
                span.set_attributes({"result": json.dumps(result)})

    return {"flat": record_flat, "json": record_json}


def open_provider(job: Job) -> TracerProvider:
    # A batch is retried for so many seconds; ten by default.
    exporter = OTLPSpanExporter(endpoint=f"{job.api_url}/v1/traces", timeout=job.drain_timeout)
    processor = BatchSpanProcessor(exporter, max_queue_size=job.queue_size)
    provider = TracerProvider(resource=Resource.create({"service.name": "benchmarks"}))
    provider.add_span_processor(processor)
    return provider


def _forget(_nanoseconds: int) -> None:
    pass


async def main(job: Job) -> None:
    bodies = Bodies(job.payload_bytes)
    if job.load == "cost":
        provider = open_provider(job)

        async def flush() -> None:
            provider.force_flush()

        package = Path(opentelemetry.sdk.trace.__file__).parents[2]
        await measure_rounds(cost_forms(provider, bodies), flush, package)
        provider.shutdown()
        return
    warm_up = open_provider(job)
    recorder = make_recorder(job, warm_up, bodies)
    for _ in range(job.warm_up):
        recorder.plain(_forget)
    warm_up.shutdown()

    provider = open_provider(job)
    measurement = Measurement(job.time_limit)
    begin(job)
    measurement.start()
    await run_load(job, make_recorder(job, provider, bodies), measurement)
    provider.shutdown()
    write_report(measurement.report())


if __name__ == "__main__":
    asyncio.run(main(read_job()))
