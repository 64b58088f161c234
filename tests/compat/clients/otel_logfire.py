"""An agent of pydantic-ai under a span of Logfire, which has a tracer provider of its own.
Argument: the URL of the API.

Prints one line of JSON: the ids of the runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import logfire
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from otel_scenarios import height, run_scenarios
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider


def instrument(_provider: TracerProvider, model_url: str) -> Callable[[str], Awaitable[Any]]:
    logfire.instrument_pydantic_ai()
    model = OpenAIChatModel("small-1", provider=OpenAIProvider(base_url=model_url, api_key="none"))
    agent = Agent(model, name="climber", tools=[height])

    async def ask(question: str) -> Any:
        with logfire.span("asked {question}", question=question) as span:
            answer = (await agent.run(question)).output
            logfire.info("answered {answer}", answer=answer)
            span.set_attribute("answer", answer)
        return answer

    return ask


logfire.configure(send_to_logfire=False, console=False, inspect_arguments=False)
provider: Any = trace.get_tracer_provider()
asyncio.run(run_scenarios("logfire", instrument, provider=provider))
