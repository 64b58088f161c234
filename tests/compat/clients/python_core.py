"""Runs of prefactor-core as published, 0.1.0 or 0.5.3. Argument: the URL of the API.

Prints one line of JSON: the ids of the runs, and why the second one was terminated.
"""

from __future__ import annotations

import asyncio
import json
import sys
import urllib.request
from typing import Any

from prefactor_http.config import HttpClientConfig

from prefactor_core import PrefactorCoreClient, PrefactorCoreConfig, SchemaRegistry

URL = sys.argv[1]
OBJECT = {"type": "object"}


def span_types() -> SchemaRegistry:
    registry = SchemaRegistry()
    for name in ("agent:run", "agent:llm_call", "agent:tool_call"):
        registry.register(name, OBJECT)
    if hasattr(registry, "register_quality_schema"):
        registry.register_quality_schema("review", OBJECT)  # without a template
        registry.register_quality_schema("score", OBJECT, template="{{points}} of 10")
    return registry


async def record(client: PrefactorCoreClient) -> str:
    """A run with nested spans, one that failed, one that was cancelled, and quality."""
    run = await client.create_agent_instance(
        agent_id="compat-core", agent_version={"name": "Compat", "external_identifier": "1"}
    )
    await run.start()
    async with run.span("agent:run") as outer:
        await outer.start({"question": "Which mountain is higher?"})
        async with run.span("agent:llm_call") as call:
            await call.start({"model": "small-1"})
            await call.complete({"token_usage": {"total_tokens": 38}})
        async with run.span("agent:tool_call") as tool:
            await tool.start({"tool_name": "convert"})
            await tool.fail({"error": "unknown unit"})
        async with run.span("agent:tool_call") as unneeded:
            await unneeded.cancel()
        await outer.complete({"answer": "K2"})
    if hasattr(run, "record_quality"):
        await run.record_quality("review", {"by": "a person"})
        await run.record_quality("score", {"points": 7})
    await run.finish()
    return str(run.id)


async def be_stopped(client: PrefactorCoreClient) -> dict[str, Any]:
    """A run that an operator terminates between two spans."""
    run = await client.create_agent_instance(
        agent_id="compat-core", agent_version={"name": "Compat", "external_identifier": "1"}
    )
    await run.start()
    async with run.span("agent:run") as span:
        await span.start({})
        await asyncio.to_thread(terminate, str(run.id))
    monitor = client._termination_monitor
    await asyncio.wait_for(monitor.get_termination_event().wait(), 20)
    reason = monitor.termination_reason
    await run.finish()
    return {"terminated": str(run.id), "reason": reason}


def terminate(run: str) -> None:
    """Terminate ``run``, as an operator does."""
    request = urllib.request.Request(
        f"{URL}/api/v1/agent_instance/{run}/terminate",
        json.dumps({"reason": "enough"}).encode(),
        {"Content-Type": "application/json"},
    )
    urllib.request.urlopen(request, timeout=10).close()


def make_client() -> PrefactorCoreClient:
    http = HttpClientConfig(api_url=URL, api_token="token-of-compat")
    return PrefactorCoreClient(PrefactorCoreConfig(http_config=http, schema_registry=span_types()))


async def main() -> None:
    async with make_client() as client:
        report: dict[str, Any] = {"run": await record(client)}
    # After a run, 0.5.3 ignores control signals for a second. A new client does not.
    if hasattr(client, "_termination_monitor"):
        async with make_client() as client:
            report |= await be_stopped(client)
    print(json.dumps(report))


asyncio.run(main())
