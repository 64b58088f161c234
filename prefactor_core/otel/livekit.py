"""LiveKit agents: ``lk.*`` beside ``gen_ai.*``."""

from __future__ import annotations

from typing import Final

from prefactor_core.otel.dialect import LLM, OTHER, TOOL, Dialect

LIVEKIT: Final = Dialect(
    facts={
        "lk.function_tool.name": "tool",
        "lk.function_tool.id": "call_id",
        "lk.function_tool.arguments": "arguments",
        "lk.function_tool.output": "output",
        "lk.function_tool.is_error": "failure",
        "lk.chat_ctx": "messages",
        "lk.response.text": "answer",
        "lk.response.function_calls": "tool_calls",
        "lk.response.ttft": "first_token",
        "lk.agent_label": "agent",
        "lk.user_input": "input",
        "lk.instructions": "system",
        # The same, in versions that mark what may be personal.
        "lk.pii.function_tool.arguments": "arguments",
        "lk.pii.function_tool.output": "output",
        "lk.pii.chat_ctx": "messages",
        "lk.pii.response.text": "answer",
        "lk.pii.response.function_calls": "tool_calls",
        "lk.pii.user_input": "input",
        "lk.pii.instructions": "system",
    },
    # The spans around and inside of a request to a model name that, too.
    names={"llm_request": LLM, "function_tool": TOOL, "*": OTHER},
    scope="livekit",
)
