"""The scenarios of every instrumentation: a run of its own, in a run, failing, terminated."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import urllib.request
from collections.abc import Awaitable, Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from fake_model import QUESTION, fake_model
from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

from prefactor_core import open_prefactor
from prefactor_core.otel import PrefactorSpanProcessor
from prefactor_core.span_types import standard_types

URL = sys.argv[1]
# What instrumentations are told by variables.
os.environ |= dict(argument.split("=", 1) for argument in sys.argv[2:])
VERSION = {"name": "Compat", "external_identifier": "otel"}

stop: Callable[[], Awaitable[None]] | None = None
"""Terminates the run that goes on."""


async def height(mountain: str) -> str:
    """The height of a mountain in metres."""
    if mountain != "K2":
        raise ValueError(f"unknown mountain {mountain}")
    if stop is not None:
        await stop()
    return "8611"


def _call(path: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        f"{URL}/api/v1/{path}", data, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        return json.load(response)


def _runs(agent_id: str) -> list[str]:
    """The ids of an agent's runs, oldest first."""
    found = _call(f"agent_instance?agent_id={agent_id}")["summaries"]
    return [run["id"] for run in sorted(found, key=lambda run: run["inserted_at"])]


class Dump(SpanProcessor):
    """Writes what the spans say at the start of the first span inside, or at their own start, and
    at their end, for the tests of the tables."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._leaves: dict[int, Any] = {}
        self._at_start: dict[int, dict[str, Any]] = {}

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        self._leaves[span.context.span_id] = span
        self._at_start[span.context.span_id] = dict(span.attributes)
        parent = span.parent and self._leaves.pop(span.parent.span_id, None)
        if parent is not None:
            self._at_start[span.parent.span_id] = dict(parent.attributes)

    def on_end(self, span: Any) -> None:
        ids = span.context.span_id, span.parent and span.parent.span_id
        self._leaves.pop(ids[0], None)
        entry = {
            "name": span.name,
            "scope": span.instrumentation_scope.name,
            "ids": ids,
            "status": [span.status.status_code.name, span.status.description],
            "start": self._at_start.pop(span.context.span_id),
            "end": dict(span.attributes),
            "events": [[event.name, dict(event.attributes or {})] for event in span.events],
        }
        with self._path.open("a") as file:
            file.write(json.dumps(entry, default=repr) + "\n")


async def run_scenarios(
    name: str,
    instrument: Callable[[TracerProvider, str], Callable[[str], Awaitable[Any]]],
    *,
    swallows: bool = False,
    provider: TracerProvider | None = None,
) -> None:
    """Run all scenarios and print the ids of the runs, by scenario.

    ``instrument``: given a tracer provider and the URL of a model, return the agent.
    ``swallows``: whether the framework goes on after an error of its instrumentation. Then only
    the scope of a run stops it. ``provider``: the framework's own tracer provider, if it has one.
    """
    global stop
    agent_id = f"compat-otel-{name}"
    if provider is None:
        provider = TracerProvider()
        trace.set_tracer_provider(provider)
    if dump := os.environ.get("COMPAT_DUMP"):
        provider.add_span_processor(Dump(dump))
    report: dict[str, Any] = {}
    options: dict[str, Any] = {"api_url": URL, "api_token": "token-of-compat"}
    with fake_model() as model:
        async with open_prefactor(schema_registry=standard_types(), **options) as client:
            processor = PrefactorSpanProcessor(client, agent_id, VERSION)
            provider.add_span_processor(processor)
            ask = instrument(provider, model)
            answer = await ask(QUESTION)
            report["answer"] = str(answer)
            await client.flush()
            report["opened"] = _runs(agent_id)[-1]
            async with client.agent_instance(agent_id, VERSION) as run:
                report["inside"] = run.id
                with run.span("otel:span", payload={"name": "by hand"}):
                    await ask(QUESTION)
            with suppress(Exception):
                await ask("How high is Olymp?")
            await client.flush()
            report["failing"] = _runs(agent_id)[-1]

            async def terminate() -> None:
                """Terminate the newest run once, and learn of it."""
                await client.flush()
                if "terminated" not in report:
                    report["terminated"] = run = _runs(agent_id)[-1]
                    path = f"agent_instance/{run}/terminate"
                    await asyncio.to_thread(_call, path, {"reason": "enough"})
                await client.flush()

            stop = terminate
            report["error"] = "none"
            scope = client.agent_instance(agent_id, VERSION) if swallows else nullcontext()
            try:
                async with scope:
                    await ask(f"{QUESTION} Ask again and again.")
            except Exception as error:
                report["error"] = type(error).__name__
            stop = None
        report["lost"] = client.statistics().lost
        report["given_up"] = processor.spans_given_up
    print(json.dumps(report))
