"""Driver of OpenTelemetry's SDK: BatchSpanProcessor, OTLP over HTTP, as its users set it up.

The payload and the result of a span are attributes that hold JSON.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

from job import Bodies, Job, begin, read_job, write_report
from loads import run_load
from measure import Measurement, now
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor


class Recorder:
    """Records spans with one tracer."""

    def __init__(self, provider: TracerProvider, bodies: Bodies) -> None:
        self._tracer = provider.get_tracer("benchmarks")
        self._bodies = bodies

    def plain(self, add: Callable[[int], None]) -> None:
        bodies, began = self._bodies, now()
        attributes = {"payload": json.dumps(bodies.payload)}
        with self._tracer.start_as_current_span("agent:llm", attributes=attributes) as span:
            span.set_attribute("result", json.dumps(bodies.result))
        add(now() - began)

    async def awaited(self, add: Callable[[int], None]) -> None:
        self.plain(add)

    async def turning(self, add: Callable[[int], None]) -> None:
        bodies, began = self._bodies, now()
        attributes = {"payload": json.dumps(bodies.payload)}
        with self._tracer.start_as_current_span("agent:llm", attributes=attributes) as span:
            paused = now()
            await asyncio.sleep(0)
            resumed = now()
            span.set_attribute("result", json.dumps(bodies.result))
        add(now() - resumed + paused - began)


def open_provider(job: Job) -> TracerProvider:
    exporter = OTLPSpanExporter(endpoint=f"{job.api_url}/v1/traces")
    processor = BatchSpanProcessor(exporter, max_queue_size=job.queue_size)
    provider = TracerProvider(resource=Resource.create({"service.name": "benchmarks"}))
    provider.add_span_processor(processor)
    return provider


def _forget(_nanoseconds: int) -> None:
    pass


async def main(job: Job) -> None:
    bodies = Bodies(job.payload_bytes)
    warm_up = open_provider(job)
    recorder = Recorder(warm_up, bodies)
    for _ in range(job.warm_up):
        recorder.plain(_forget)
    warm_up.shutdown()

    provider = open_provider(job)
    measurement = Measurement(job.time_limit)
    begin(job)
    measurement.start()
    await run_load(job, Recorder(provider, bodies), measurement)
    provider.shutdown()
    write_report(measurement.report())


if __name__ == "__main__":
    asyncio.run(main(read_job()))
