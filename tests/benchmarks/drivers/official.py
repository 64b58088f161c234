"""Driver of the official SDK, prefactor-core 0.1.0 and 0.5.3, with its default settings."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

from job import Bodies, Job, begin, read_job, write_report
from loads import run_load
from measure import Measurement, now
from prefactor_http.config import HttpClientConfig

from prefactor_core import PrefactorCoreClient, PrefactorCoreConfig, SchemaRegistry


class Recorder:
    """Records spans in one run. There is no way to record one without waiting for the API."""

    def __init__(self, instance: Any, bodies: Bodies) -> None:
        self._instance = instance
        self._bodies = bodies

    def plain(self, add: Callable[[int], None]) -> None:
        raise NotImplementedError

    async def awaited(self, add: Callable[[int], None]) -> None:
        bodies, began = self._bodies, now()
        try:
            async with self._instance.span("agent:llm") as span:
                await span.start(bodies.payload)
                await span.complete(bodies.result)
        finally:
            add(now() - began)

    async def turning(self, add: Callable[[int], None]) -> None:
        bodies, began = self._bodies, now()
        paused = resumed = began
        try:
            async with self._instance.span("agent:llm") as span:
                await span.start(bodies.payload)
                paused = now()
                await asyncio.sleep(0)
                resumed = now()
                await span.complete(bodies.result)
        finally:
            add(now() - resumed + paused - began)


@asynccontextmanager
async def open_run(job: Job) -> AsyncGenerator[Any]:
    """A run in a client of its own."""
    registry = SchemaRegistry()
    registry.register("agent:llm", {"type": "object"})
    config = PrefactorCoreConfig(
        http_config=HttpClientConfig(api_url=job.api_url, api_token="token-of-the-benchmarks"),
        schema_registry=registry,
    )
    client = PrefactorCoreClient(config)
    await client.initialize()
    arguments: dict[str, Any] = {"agent_id": "benchmarks", "agent_version": {"name": "Benchmarks"}}
    if "environment_id" in inspect.signature(client.create_agent_instance).parameters:
        arguments["environment_id"] = "benchmarks"
    instance = await client.create_agent_instance(**arguments)
    try:
        yield instance
    finally:
        await client.close()


def _forget(_nanoseconds: int) -> None:
    pass


async def main(job: Job) -> None:
    bodies = Bodies(job.payload_bytes)
    async with open_run(job) as instance:
        await instance.start()
        recorder = Recorder(instance, bodies)
        for _ in range(job.warm_up):
            await recorder.awaited(_forget)
        await instance.finish()

    measurement = Measurement(job.time_limit)
    try:
        async with open_run(job) as instance:
            begin(job)
            measurement.start()
            await instance.start()
            await run_load(job, Recorder(instance, bodies), measurement)
            await instance.finish()
    except Exception as error:  # 0.5.3 raises on closing what it could not tell before
        measurement.fail(error)
    write_report(measurement.report())


if __name__ == "__main__":
    asyncio.run(main(read_job()))
