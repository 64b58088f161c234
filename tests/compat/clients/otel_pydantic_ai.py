"""An agent of pydantic-ai, which emits spans of OpenTelemetry itself. Argument: the URL of the API.

Prints one line of JSON: the ids of the runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from opentelemetry.sdk.trace import TracerProvider
from otel_scenarios import height, run_scenarios
from pydantic_ai import Agent
from pydantic_ai.models.instrumented import InstrumentationSettings
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider


def instrument(provider: TracerProvider, model_url: str) -> Callable[[str], Awaitable[Any]]:
    model = OpenAIChatModel("small-1", provider=OpenAIProvider(base_url=model_url, api_key="none"))
    Agent.instrument_all(InstrumentationSettings(tracer_provider=provider))
    agent = Agent(model, name="climber", tools=[height])

    async def ask(question: str) -> Any:
        return (await agent.run(question)).output

    return ask


asyncio.run(run_scenarios("pydantic-ai", instrument))
