"""Usage: the tokens and the cost that the span of an LLM call reports. Pure."""

from __future__ import annotations

from typing import Any, Final, NamedTuple, cast

import msgspec
from msgspec import Struct

_MOST: Final = 2**53
"""Larger amounts are no amounts: every reader of JSON has numbers up to this one."""


class Usage(NamedTuple):
    """Tokens, and cost in US dollars; None where a span does not say."""

    tokens: int | None = None
    cost: float | None = None


class _Reported(Struct):
    token_usage: object = None
    cost: object = None


def is_llm_call(schema_name: str) -> bool:
    """Whether spans of this name are calls of a model: ``agent:llm_call``, ``langchain:llm``."""
    return schema_name.rpartition(":")[2] in ("llm_call", "llm")


def usage_of(payload: str, result: str | None) -> Usage:
    """Usage from the JSON of a span of an LLM call: its result's, or else its payload's tokens."""
    asked = msgspec.json.decode(payload, type=_Reported)
    if result is None:
        return Usage(_tokens(asked.token_usage))
    answered = msgspec.json.decode(result, type=_Reported)
    tokens = _tokens(answered.token_usage)
    if tokens is None:
        tokens = _tokens(asked.token_usage)
    return Usage(tokens, _amount(answered.cost))


def _tokens(reported: object) -> int | None:
    if not isinstance(reported, dict):
        return None
    usage = cast("dict[str, Any]", reported)
    total = _amount(usage.get("total_tokens"))
    if total is None:
        parts = [_amount(usage.get(name)) for name in ("prompt_tokens", "completion_tokens")]
        if parts == [None, None]:
            return None
        total = sum(part or 0 for part in parts)
    return int(total)


def _amount(value: object) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _MOST:
        return value
    return None
