"""LangSmith, as it exports to OpenTelemetry: ``langsmith.*`` beside ``gen_ai.*``."""

from __future__ import annotations

import re
from typing import Final

from prefactor_core.otel.dialect import LLM, RETRIEVAL, TOOL, Dialect

LANGSMITH: Final = Dialect(
    kinds={"langsmith.span.kind": {"llm": LLM, "tool": TOOL, "retriever": RETRIEVAL}},
    facts={
        "gen_ai.prompt": "input",
        "gen_ai.completion": "output",
        "langsmith.metadata.ls_provider": "provider",
        # A session of LangSmith is a project: these are its threads.
        "langsmith.metadata.thread_id": "conversation_id",
        "langsmith.metadata.session_id": "conversation_id",
        "langsmith.metadata.conversation_id": "conversation_id",
    },
)

_TRACEBACK: Final = "Traceback (most recent call last):"
_REPR: Final = re.compile(r"([\w.]+)\((.*)\)", re.DOTALL)


def error_of(message: str) -> tuple[str, str, str] | None:
    """Type, message and stack trace of an error; None unless LangSmith has put them into one
    text."""
    if _TRACEBACK not in message:
        return None
    text, traceback, lines = message.partition(_TRACEBACK)
    found = _REPR.fullmatch(text.strip())
    if found is None:
        return None
    kind, said = found.groups()
    if said[:1] in ("'", '"') and said.endswith(said[0]):
        said = said[1:-1]
    return kind, said, traceback + lines
