"""LangSmith, as it exports to OpenTelemetry: ``langsmith.*`` beside ``gen_ai.*``."""

from __future__ import annotations

from typing import Final

from prefactor_core.otel.dialect import LLM, RETRIEVAL, TOOL, Dialect

LANGSMITH: Final = Dialect(
    kinds={"langsmith.span.kind": {"llm": LLM, "tool": TOOL, "retriever": RETRIEVAL}},
    facts={
        "gen_ai.prompt": "input",
        "gen_ai.completion": "output",
        "langsmith.trace.session_id": "conversation_id",
    },
)
