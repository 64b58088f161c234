"""OpenAI's client with OpenLLMetry's instrumentation. Argument: the URL of the API.

Prints one line of JSON: the ids of the runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from openai_agent import openai_agent
from opentelemetry.instrumentation.openai import OpenAIInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from otel_scenarios import run_scenarios


def instrument(provider: TracerProvider, model_url: str) -> Callable[[str], Awaitable[Any]]:
    OpenAIInstrumentor().instrument(tracer_provider=provider)
    return openai_agent(
        provider,
        model_url,
        agent={"traceloop.span.kind": "agent"},
        tool={"traceloop.span.kind": "tool"},
    )


asyncio.run(run_scenarios("openllmetry", instrument))
