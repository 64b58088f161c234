"""Dialect: the tables by which the attributes of one family of instrumentations are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from msgspec import Struct

RUN: Final = "agent:run"
LLM: Final = "agent:llm_call"
TOOL: Final = "agent:tool_call"
RETRIEVAL: Final = "agent:retrieval"
OTHER: Final = "otel:span"
"""The span type of a span that is none of the others."""


class Dialect(Struct, frozen=True, kw_only=True):
    """What attributes mean. The names of facts are those of :mod:`~prefactor_core.otel.steps`.

    ``kinds``: attributes that say what a step is, with the span type of each value (in lower case).
    ``facts``: attributes, with the name of the fact that the value is; the first attribute of a
    fact counts.
    ``lists``: prefixes of indexed attributes (``llm.input_messages.0.message.role``), with the name
    of the fact that the list is.
    ``names``: words of the names of spans, as chat in ``openai.chat`` and in ``chat small-1``, with
    their span types; for spans whose instrumentation scope begins with ``scope``, unless their
    attributes say otherwise. ``*`` is any word.
    ``late``: instrumentation scopes that set nearly all attributes as a span ends. Such a span is
    recorded at its end.
    """

    kinds: Mapping[str, Mapping[str, str]] = {}
    facts: Mapping[str, str] = {}
    lists: Mapping[str, str] = {}
    names: Mapping[str, str] = {}
    scope: str = ""
    late: frozenset[str] = frozenset()
