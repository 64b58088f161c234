"""Driver of this client, with its default settings. Forms: ``with`` and ``awaited``."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from cost import DEPTH, Form, measure_rounds
from job import Bodies, Job, begin, read_job, write_report
from loads import System, run_load
from measure import Measurement, now
from memory import resident_memory

import prefactor_core
from prefactor_core import (
    AgentInstanceHandle,
    HttpClientConfig,
    PrefactorCoreClient,
    PrefactorCoreConfig,
    SchemaRegistry,
    open_prefactor,
)
from prefactor_core.span_types import LLMCall, LLMResult, TokenUsage, standard_types

_EARLY = 10_000
"""Spans after which the memory is read for the first time."""

_MOST_PENDING = 4_000
"""Pending operations at which the growing load pauses: it does not measure the buffer."""


class WithForm:
    """``with instance.span(...)``; spans go to the runs in turn."""

    def __init__(self, instances: list[AgentInstanceHandle], bodies: Bodies) -> None:
        self._next = itertools.cycle([instance.span for instance in instances]).__next__
        self._bodies = bodies

    def plain(self, add: Callable[[int], None]) -> None:
        bodies, open_span = self._bodies, self._next()
        began = now()
        with open_span("agent:llm", payload=bodies.payload) as span:
            span.set_result(bodies.result)
        add(now() - began)

    async def awaited(self, add: Callable[[int], None]) -> None:
        self.plain(add)

    async def turning(self, add: Callable[[int], None]) -> None:
        bodies, open_span = self._bodies, self._next()
        began = now()
        with open_span("agent:llm", payload=bodies.payload) as span:
            paused = now()
            await asyncio.sleep(0)
            resumed = now()
            span.set_result(bodies.result)
        add(now() - resumed + paused - began)


class AwaitedForm:
    """``async with instance.span(...)``, with ``start`` and ``complete``."""

    def __init__(self, instances: list[AgentInstanceHandle], bodies: Bodies) -> None:
        self._next = itertools.cycle([instance.span for instance in instances]).__next__
        self._bodies = bodies

    def plain(self, add: Callable[[int], None]) -> None:
        raise NotImplementedError

    async def awaited(self, add: Callable[[int], None]) -> None:
        bodies, open_span = self._bodies, self._next()
        began = now()
        async with open_span("agent:llm") as span:
            await span.start(bodies.payload)
            await span.complete(bodies.result)
        add(now() - began)

    async def turning(self, add: Callable[[int], None]) -> None:
        bodies, open_span = self._bodies, self._next()
        began = now()
        async with open_span("agent:llm") as span:
            await span.start(bodies.payload)
            paused = now()
            await asyncio.sleep(0)
            resumed = now()
            await span.complete(bodies.result)
        add(now() - resumed + paused - began)


def cost_forms(instance: AgentInstanceHandle, bodies: Bodies) -> dict[str, Form]:
    """Ways to record so many spans, by their names."""
    payload, result = bodies.payload, bodies.result

    def record(spans: int) -> None:
        for _ in range(spans):
            with instance.span("agent:llm", payload=payload) as span:
                span.set_result(result)

    async def record_awaited(spans: int) -> None:
        for _ in range(spans):
            async with instance.span("agent:llm") as span:
                await span.start(payload)
                await span.complete(result)

    def record_typed(spans: int) -> None:
        # The objects are part of the cost: an agent makes them for each call.
        for _ in range(spans):
            call = LLMCall(
                model=payload["model"],
                prompt=payload["prompt"],
                temperature=payload["temperature"],
                max_tokens=payload["max_tokens"],
            )
            with instance.span(call) as span:
                span.set_result(
                    LLMResult(
                        response=result["response"],
                        finish_reason=result["finish_reason"],
                        token_usage=TokenUsage(prompt_tokens=63, completion_tokens=87),
                    )
                )

    def record_nested(spans: int) -> None:
        def nest(depth: int) -> None:
            with instance.span("agent:llm", payload=payload) as span:
                if depth > 1:
                    nest(depth - 1)
                span.set_result(result)

        for _ in range(spans // DEPTH):
            nest(DEPTH)

    return {
        "with": record,
        "awaited": record_awaited,
        "typed": record_typed,
        "nested": record_nested,
    }


@asynccontextmanager
async def open_client(job: Job) -> AsyncGenerator[PrefactorCoreClient]:
    registry = standard_types() if job.load == "cost" else SchemaRegistry()
    registry.register("agent:llm", {"type": "object"})
    http = HttpClientConfig(api_url=job.api_url, api_token="token-of-the-benchmarks")
    config = PrefactorCoreConfig(http_config=http, schema_registry=registry)
    if job.drain_timeout is not None:
        config.drain_timeout = job.drain_timeout
    async with open_prefactor(config) as client:
        yield client


async def open_runs(
    job: Job, client: PrefactorCoreClient, scopes: AsyncExitStack
) -> list[AgentInstanceHandle]:
    version = {"name": "Benchmarks", "external_identifier": "v1"}
    return [
        await scopes.enter_async_context(client.agent_instance("benchmarks", version))
        for _ in range(job.instances)
    ]


def make_form(job: Job, instances: list[AgentInstanceHandle], bodies: Bodies) -> System:
    return (AwaitedForm if job.form == "awaited" else WithForm)(instances, bodies)


async def grow(
    job: Job, client: PrefactorCoreClient, form: System, measurement: Measurement
) -> tuple[float | None, float | None]:
    """Record with a turn after every 100 spans; return the memory early and late, in MB."""

    async def pending_at_most(operations: int) -> None:
        # No event says when this changes. The time limit ends the wait: the API may be slow.
        while client.statistics().pending > operations and not measurement.over():  # noqa: ASYNC110
            await asyncio.sleep(0.002)

    async def memory_when_delivered() -> float | None:
        await pending_at_most(0)
        return resident_memory()

    early = None
    while measurement.recorded < job.spans and not measurement.over():
        # Only every tenth time is kept: a million of them would take memory themselves.
        for number in range(min(100, job.spans - measurement.recorded)):
            form.plain(_forget if number % 10 else measurement.add)
            measurement.recorded += 1
        await asyncio.sleep(0)
        await pending_at_most(_MOST_PENDING)
        if measurement.recorded == min(_EARLY, job.spans):
            early = await memory_when_delivered()
    return early, await memory_when_delivered()


def _forget(_nanoseconds: int) -> None:
    pass


async def main(job: Job) -> None:
    bodies = Bodies(job.payload_bytes)
    if job.load == "cost":
        async with open_client(job) as client, AsyncExitStack() as scopes:
            (instance,) = await open_runs(job, client, scopes)
            package = Path(prefactor_core.__file__).parent
            await measure_rounds(cost_forms(instance, bodies), client.flush, package)
        return
    if job.warm_up:
        async with open_client(job) as client, AsyncExitStack() as scopes:
            form = make_form(job, await open_runs(job, client, scopes), bodies)
            for _ in range(job.warm_up):
                await form.awaited(_forget)

    measurement = Measurement(job.time_limit)
    early = late = None
    async with open_client(job) as client:
        async with AsyncExitStack() as scopes:
            form = make_form(job, await open_runs(job, client, scopes), bodies)
            begin(job)
            measurement.start()
            if job.load == "growing":
                early, late = await grow(job, client, form, measurement)
            else:
                await run_load(job, form, measurement)
    report = measurement.report()
    report.early_mb, report.late_mb = early, late
    write_report(report)


if __name__ == "__main__":
    asyncio.run(main(read_job()))
