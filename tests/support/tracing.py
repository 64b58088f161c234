"""Spans of OpenTelemetry that PrefactorSpanProcessor records, and what the API stored of them."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Tracer
from support.harness import AGENT, FaultyApi, StoredRun, make_config, open_faulty_api, stored_runs

from prefactor_core import PrefactorCoreClient, open_prefactor
from prefactor_core.otel import PrefactorSpanProcessor


@dataclass
class Tracing:
    """A client with a processor; ``runs`` is what the API has once the block is left."""

    client: PrefactorCoreClient
    api: FaultyApi
    processor: PrefactorSpanProcessor
    provider: TracerProvider
    tracer: Tracer
    runs: list[StoredRun] = field(default_factory=list)

    @property
    def run(self) -> StoredRun:
        """The one run that was stored."""
        (run,) = self.runs
        return run

    def scoped(self, scope: str) -> Tracer:
        """The tracer of an instrumentation."""
        return self.provider.get_tracer(scope)


class Problems(logging.Handler):
    """Keeps what is logged."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(self.format(record))


def make_provider(**options: Any) -> TracerProvider:
    resource = Resource({"service.name": "Tested service", "service.version": "7"})
    return TracerProvider(resource=resource, shutdown_on_exit=False, **options)


@asynccontextmanager
async def tracing(
    *, loses: bool = False, provider: TracerProvider | None = None, **options: Any
) -> AsyncGenerator[Tracing]:
    """Record the spans of a tracer. ``loses``: whether operations may be lost."""
    provider = make_provider() if provider is None else provider
    problems = Problems(logging.WARNING)
    logging.getLogger("prefactor_core.otel").addHandler(problems)
    with anyio.fail_after(10):
        async with open_faulty_api() as api:
            async with open_prefactor(make_config(**options), asgi_app=api) as client:
                processor = PrefactorSpanProcessor(client, AGENT["agent_id"])
                provider.add_span_processor(processor)
                traced = Tracing(client, api, processor, provider, provider.get_tracer("tests"))
                yield traced
            assert loses or client.statistics().lost == 0, client.statistics()
            traced.runs = await stored_runs(api)
    assert problems.messages == []
