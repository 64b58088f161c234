"""OpenInference (Arize): ``openinference.span.kind`` and ``llm.*``, ``tool.*``, ``retrieval.*``."""

from __future__ import annotations

from typing import Final

from prefactor_core.otel.dialect import LLM, RETRIEVAL, RUN, TOOL, Dialect

OPENINFERENCE: Final = Dialect(
    kinds={
        "openinference.span.kind": {
            "llm": LLM,
            "tool": TOOL,
            "retriever": RETRIEVAL,
            "agent": RUN,
        }
    },
    facts={
        "llm.model_name": "model",
        "llm.provider": "provider",
        "llm.system": "provider",
        "llm.invocation_parameters": "parameters",
        "llm.finish_reason": "finish_reason",
        "llm.token_count.prompt": "prompt_tokens",
        "llm.token_count.completion": "completion_tokens",
        "llm.token_count.total": "total_tokens",
        "llm.token_count.prompt_details.cache_read": "cache_read_tokens",
        "llm.token_count.prompt_details.cache_write": "cache_write_tokens",
        "llm.token_count.completion_details.reasoning": "reasoning_tokens",
        "tool.name": "tool",
        "tool_call.id": "call_id",
        "tool.parameters": "parameters",
        "agent.name": "agent",
        "session.id": "conversation_id",
        "input.value": "input",
        "output.value": "output",
    },
    lists={
        "llm.input_messages.": "messages",
        "llm.output_messages.": "answers",
        "llm.tools.": "tools",
        "retrieval.documents.": "documents",
    },
    late=frozenset({"openinference.instrumentation.langchain"}),
)
