"""Usage: the tokens and the cost of a run, by model. Synchronous."""

from __future__ import annotations

from sqlite3 import Connection
from typing import Final

import msgspec

from prefactor_core.local.viewer.runs import run_row

_PARTS: Final = (
    *("prompt_tokens", "completion_tokens", "cache_read_tokens", "cache_write_tokens"),
    "reasoning_tokens",
)
_COUNTS: Final = (*_PARTS, "total_tokens")

_MOST: Final = 2**53
"""The largest amount; larger ones are no amounts."""


def _number(name: str) -> str:
    """SQL for a number of the token usage, which the result has, or else the payload."""
    path = f"'$.token_usage.{name}'"
    found = (
        f"WHEN json_type({column}, {path}) IN ('integer', 'real') "
        f"AND {column} ->> {path} BETWEEN 0 AND {_MOST} THEN {column} ->> {path}"
        for column in ("result_payload", "payload")
    )
    return f"total(CASE {' '.join(found)} END)"


def _model(column: str, path: str) -> str:
    return f"CASE json_type({column}, '{path}') WHEN 'text' THEN {column} ->> '{path}' END"


# Leaves only: an LLM call that has another one as its child reports the tokens of both. SQLite's
# total(), unlike sum(), does not fail where a sum of whole numbers is too large for one.
_USAGE: Final = f"""
SELECT coalesce({_model("result_payload", "$.model")}, {_model("payload", "$.model")},
        {_model("payload", "$.inputs.model")}, {_model("payload", "$.inputs.ai.model.id")}
    ) AS model,
    count(*) AS calls, {", ".join(f"{_number(name)} AS {name}" for name in _PARTS)},
    total(tokens) AS total_tokens, total(cost) AS cost
FROM agent_spans
WHERE agent_instance_id = ? AND NOT has_llm_child
    AND (schema_name IN ('llm_call', 'llm')
        OR schema_name GLOB '*:llm_call' OR schema_name GLOB '*:llm')
    AND json_valid(payload) AND json_valid(coalesce(result_payload, '{{}}'))
GROUP BY 1 ORDER BY total_tokens DESC, model
"""


def usage(db: Connection, run_id: str) -> bytes:
    """The tokens, in their parts, and the cost of the LLM calls of a run, by model."""
    run_row(db, run_id)
    models = [
        {name: int(value) if name in _COUNTS else value for name, value in dict(row).items()}
        for row in db.execute(_USAGE, (run_id,))
    ]
    return msgspec.json.encode({"models": models})
