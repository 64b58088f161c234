"""The semantic conventions of OpenTelemetry for generative AI: ``gen_ai.*``.

Also the older names of the same, which instrumentations still emit. The messages may be attributes,
indexed attributes or events (Strands).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from prefactor_core.otel.dialect import LLM, RETRIEVAL, RUN, TOOL, Dialect

GEN_AI: Final = Dialect(
    kinds={
        "gen_ai.operation.name": {
            "chat": LLM,
            "generate_content": LLM,
            "text_completion": LLM,
            "execute_tool": TOOL,
            "retrieval": RETRIEVAL,
            "invoke_agent": RUN,
        }
    },
    facts={
        "gen_ai.request.model": "model",
        "gen_ai.response.model": "response_model",
        "gen_ai.provider.name": "provider",
        "gen_ai.system": "provider",
        "gen_ai.request.temperature": "temperature",
        "gen_ai.request.top_p": "top_p",
        "gen_ai.request.max_tokens": "max_tokens",
        "gen_ai.system_instructions": "system",
        "gen_ai.tool.definitions": "tools",
        "gen_ai.input.messages": "messages",
        "gen_ai.output.messages": "answers",
        "gen_ai.response.id": "response_id",
        "gen_ai.response.finish_reasons": "finish_reason",
        "gen_ai.response.time_to_first_chunk": "first_token",
        "gen_ai.usage.input_tokens": "prompt_tokens",
        "gen_ai.usage.prompt_tokens": "prompt_tokens",
        "gen_ai.usage.output_tokens": "completion_tokens",
        "gen_ai.usage.completion_tokens": "completion_tokens",
        "gen_ai.usage.total_tokens": "total_tokens",
        "gen_ai.usage.cache_read.input_tokens": "cache_read_tokens",
        "gen_ai.usage.cache_read_input_tokens": "cache_read_tokens",
        "gen_ai.usage.cache_creation.input_tokens": "cache_write_tokens",
        "gen_ai.usage.cache_creation_input_tokens": "cache_write_tokens",
        "gen_ai.usage.cache_write_input_tokens": "cache_write_tokens",
        "gen_ai.usage.cache_write.input_tokens": "cache_write_tokens",
        "gen_ai.usage.reasoning.output_tokens": "reasoning_tokens",
        "gen_ai.usage.reasoning_tokens": "reasoning_tokens",
        "gen_ai.tool.name": "tool",
        "gen_ai.tool.call.id": "call_id",
        "gen_ai.tool.call.arguments": "arguments",
        "gen_ai.tool.call.result": "output",
        "gen_ai.agent.name": "agent",
        "gen_ai.conversation.id": "conversation_id",
        "gen_ai.retrieval.query.text": "query",
        "gen_ai.data_source.id": "source",
        "gen_ai.request.top_k": "top_k",
        "gen_ai.retrieval.top_k": "top_k",
        "gen_ai.retrieval.documents": "documents",
        "error.type": "error_type",
        "gen_ai.tool.status": "failure",
    },
    lists={
        "gen_ai.prompt.": "messages",
        "gen_ai.completion.": "answers",
    },
    names={"*": LLM},
    scope="opentelemetry.instrumentation.openai_v2",
)

ROLES: Final[Mapping[str, str]] = {
    "gen_ai.system.message": "system",
    "gen_ai.user.message": "user",
    "gen_ai.assistant.message": "assistant",
    "gen_ai.tool.message": "tool",
}
"""The events that are messages to a model, with the roles of these."""

CHOICE: Final = "gen_ai.choice"
"""The event that is an answer of a model."""

DETAILS: Final = "gen_ai.client.inference.operation.details"
"""The event whose attributes are those of its span."""
