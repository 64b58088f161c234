"""pydantic-ai and Logfire: their own attributes beside ``gen_ai.*``."""

from __future__ import annotations

from typing import Final

from prefactor_core.otel.dialect import Dialect

PYDANTIC_AI: Final = Dialect(
    facts={
        "agent_name": "agent",
        "final_result": "output",
        "pydantic_ai.all_messages": "messages",
        "all_messages_events": "messages",
        "tool_arguments": "arguments",
        "tool_response": "output",
        "logfire.msg": "message",
    },
)
