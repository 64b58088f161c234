"""OpenAI's client with OpenTelemetry's current instrumentation. Argument: the URL of the API.

Prints one line of JSON: the ids of the runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from openai_agent import openai_agent
from opentelemetry.instrumentation.genai.openai import OpenAIInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from otel_scenarios import run_scenarios


def instrument(provider: TracerProvider, model_url: str) -> Callable[[str], Awaitable[Any]]:
    OpenAIInstrumentor().instrument(tracer_provider=provider)
    return openai_agent(
        provider,
        model_url,
        agent={"gen_ai.operation.name": "invoke_agent"},
        tool={"gen_ai.operation.name": "execute_tool"},
    )


asyncio.run(run_scenarios("genai-openai", instrument))
