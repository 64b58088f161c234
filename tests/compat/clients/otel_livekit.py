"""A session of LiveKit, which emits spans of OpenTelemetry itself: a text turn with a tool, without
audio or a room. Argument: the URL of the API.

Prints one line of JSON: the ids of the runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from livekit.agents import Agent, AgentSession, ToolError, function_tool
from livekit.agents.telemetry import set_tracer_provider
from livekit.plugins import openai
from opentelemetry.sdk.trace import TracerProvider
from otel_scenarios import height, run_scenarios


@function_tool(name="height")
async def height_or_reason(mountain: str) -> str:
    """The height of a mountain in metres."""
    try:
        return await height(mountain)
    except ValueError as error:
        # LiveKit shows no other error, neither to the model nor in its spans.
        raise ToolError(str(error)) from error


class Climber(Agent):
    """Its name is what LiveKit calls it."""


def instrument(provider: TracerProvider, model_url: str) -> Callable[[str], Awaitable[Any]]:
    set_tracer_provider(provider)

    async def ask(question: str) -> Any:
        model = openai.LLM(model="small-1", base_url=model_url, api_key="none")
        agent = Climber(instructions="Be brief.", tools=[height_or_reason])
        async with AgentSession(llm=model, max_tool_steps=200) as session:
            await session.start(agent)
            result = await session.run(user_input=question)
        return result.events[-1].item.text_content

    return ask


asyncio.run(run_scenarios("livekit", instrument))
