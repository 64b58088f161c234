"""An agent of Strands, which emits spans of OpenTelemetry itself. Argument: the URL of the API.

Prints one line of JSON: the ids of the runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from opentelemetry.sdk.trace import TracerProvider
from otel_scenarios import height, run_scenarios
from strands import Agent, tool
from strands.models.openai import OpenAIModel


def instrument(provider: TracerProvider, model_url: str) -> Callable[[str], Awaitable[Any]]:
    async def ask(question: str) -> Any:
        model = OpenAIModel(
            client_args={"base_url": model_url, "api_key": "none"}, model_id="small-1"
        )
        agent = Agent(model, tools=[tool(height)], name="climber", callback_handler=None)
        return str(await agent.invoke_async(question)).strip()

    return ask


asyncio.run(run_scenarios("strands", instrument))
