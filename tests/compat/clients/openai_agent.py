"""An agent on OpenAI's client, whose own spans and those of its tools are made by hand."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from openai import AsyncOpenAI
from opentelemetry.trace import TracerProvider
from otel_scenarios import height

MOUNTAIN = {"type": "object", "properties": {"mountain": {"type": "string"}}}
TOOLS: Any = [{"type": "function", "function": {"name": "height", "parameters": MOUNTAIN}}]


def openai_agent(
    provider: TracerProvider,
    model_url: str,
    *,
    agent: Mapping[str, str],
    tool: Mapping[str, str],
) -> Callable[[str], Awaitable[Any]]:
    """``agent``, ``tool``: the attributes of their spans."""
    client = AsyncOpenAI(base_url=model_url, api_key="none")
    tracer = provider.get_tracer("agent")

    async def ask(question: str) -> Any:
        messages: list[Any] = [{"role": "user", "content": question}]
        with tracer.start_as_current_span("climber", attributes=agent):
            for _ in range(200):
                request = {"model": "small-1", "messages": messages, "tools": TOOLS}
                answer = await client.chat.completions.create(**request)
                message = answer.choices[0].message
                if not message.tool_calls:
                    return await in_parts(request)
                arguments = json.loads(message.tool_calls[0].function.arguments)
                with tracer.start_as_current_span("height", attributes=tool):
                    result = await height(arguments["mountain"])
                messages.append(message.model_dump(exclude_none=True))
                messages.append({"role": "tool", "tool_call_id": "call-1", "content": result})
        return None

    async def in_parts(request: dict[str, Any]) -> str:
        """The answer as a stream."""
        options = {"stream": True, "stream_options": {"include_usage": True}}
        parts = await client.chat.completions.create(**request, **options)
        deltas = [part.choices[0].delta async for part in parts if part.choices]
        return "".join(delta.content or "" for delta in deltas)

    return ask
