"""An agent of OpenAI's Agents SDK with OpenInference. Argument: the URL of the API.

Prints one line of JSON: the ids of the runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from agents import Agent, OpenAIChatCompletionsModel, Runner, function_tool
from openai import AsyncOpenAI
from openinference.instrumentation.openai_agents import OpenAIAgentsInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from otel_scenarios import height, run_scenarios


def instrument(provider: TracerProvider, model_url: str) -> Callable[[str], Awaitable[Any]]:
    OpenAIAgentsInstrumentor().instrument(tracer_provider=provider)
    client = AsyncOpenAI(base_url=model_url, api_key="none")
    model = OpenAIChatCompletionsModel("small-1", client)
    tool = function_tool(height, failure_error_function=None)
    agent = Agent("climber", model=model, tools=[tool])

    async def ask(question: str) -> Any:
        return (await Runner.run(agent, question, max_turns=200)).final_output

    return ask


asyncio.run(run_scenarios("openai-agents", instrument, swallows=True))
