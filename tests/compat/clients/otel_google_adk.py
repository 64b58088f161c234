"""An agent of Google's Agent Development Kit, which emits spans of OpenTelemetry itself.
Argument: the URL of the API.

Prints one line of JSON: the ids of the runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from google.adk.agents import LlmAgent
from google.adk.models import Gemini
from google.adk.runners import InMemoryRunner
from google.genai import Client
from google.genai.types import Content, HttpOptions, Part
from opentelemetry.sdk.trace import TracerProvider
from otel_scenarios import height, run_scenarios


def instrument(_provider: TracerProvider, model_url: str) -> Callable[[str], Awaitable[Any]]:
    options = HttpOptions(base_url=model_url.removesuffix("/v1"))
    model = Gemini(model="small-1", client=Client(api_key="none", http_options=options))
    agent = LlmAgent(name="climber", model=model, tools=[height], instruction="Be brief.")

    async def ask(question: str) -> Any:
        async with InMemoryRunner(agent, app_name="compat") as runner:
            session = await runner.session_service.create_session(app_name="compat", user_id="u")
            message = Content(role="user", parts=[Part(text=question)])
            events = runner.run_async(user_id="u", session_id=session.id, new_message=message)
            answers = [event async for event in events if event.is_final_response()]
        return answers[-1].content.parts[0].text

    return ask


asyncio.run(run_scenarios("google-adk", instrument))
