"""An agent of LangChain with OpenInference. Argument: the URL of the API.

Prints one line of JSON: the ids of the runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from langchain.agents import create_agent
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from openinference.instrumentation.langchain import LangChainInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from otel_scenarios import height, run_scenarios


def instrument(provider: TracerProvider, model_url: str) -> Callable[[str], Awaitable[Any]]:
    LangChainInstrumentor().instrument(tracer_provider=provider)
    model = ChatOpenAI(model="small-1", base_url=model_url, api_key="none")
    agent: Any = create_agent(model, tools=[tool(height)], name="climber")

    async def ask(question: str) -> Any:
        asked = {"messages": [{"role": "user", "content": question}]}
        done = await agent.ainvoke(asked, config={"recursion_limit": 10_000})
        return done["messages"][-1].content

    return ask


asyncio.run(run_scenarios("langchain", instrument, swallows=True))
