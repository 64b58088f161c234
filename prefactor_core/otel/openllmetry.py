"""OpenLLMetry (Traceloop): ``traceloop.*`` beside ``gen_ai.*``, and the older ``llm.*``."""

from __future__ import annotations

from typing import Final

from prefactor_core.otel.dialect import LLM, RUN, TOOL, Dialect

OPENLLMETRY: Final = Dialect(
    kinds={
        "traceloop.span.kind": {"tool": TOOL, "agent": RUN},
        "llm.request.type": {"chat": LLM, "completion": LLM},
    },
    facts={
        "traceloop.entity.input": "input",
        "traceloop.entity.output": "output",
        "traceloop.entity.name": "entity",
        "traceloop.association.properties.session_id": "conversation_id",
        "traceloop.association.properties.thread_id": "conversation_id",
        "llm.usage.total_tokens": "total_tokens",
        "gen_ai.completion.tool_calls": "tool_calls",
    },
    lists={"llm.request.functions.": "tools"},
    names={"chat": LLM, "completion": LLM},
    scope="opentelemetry.instrumentation.",
)
