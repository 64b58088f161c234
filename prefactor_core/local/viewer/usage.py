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


def _number(name: str) -> str:
    """SQL for a number of the token usage, which the result has, or else the payload."""
    path = f"'$.token_usage.{name}'"
    found = (
        f"WHEN json_type({column}, {path}) IN ('integer', 'real') THEN {column} ->> {path}"
        for column in ("result_payload", "payload")
    )
    return f"CASE {' '.join(found)} ELSE 0 END"


def _model(column: str, path: str) -> str:
    return f"CASE json_type({column}, '{path}') WHEN 'text' THEN {column} ->> '{path}' END"


# Leaves only: an LLM call that has another one as its child reports the tokens of both.
_USAGE: Final = f"""
SELECT coalesce({_model("result_payload", "$.model")}, {_model("payload", "$.model")},
        {_model("payload", "$.inputs.model")}, {_model("payload", "$.inputs.ai.model.id")}
    ) AS model,
    count(*) AS calls, {", ".join(f"sum({_number(name)}) AS {name}" for name in _PARTS)},
    coalesce(sum(tokens), 0) AS total_tokens, coalesce(sum(cost), 0.0) AS cost
FROM agent_spans
WHERE agent_instance_id = ? AND NOT has_llm_child
    AND (schema_name IN ('llm_call', 'llm')
        OR schema_name LIKE '%:llm\\_call' ESCAPE '\\' OR schema_name LIKE '%:llm')
    AND json_valid(payload) AND json_valid(coalesce(result_payload, '{{}}'))
GROUP BY 1 ORDER BY total_tokens DESC, model
"""


def usage(db: Connection, run_id: str) -> bytes:
    """The tokens, in their parts, and the cost of the LLM calls of a run, by model."""
    run_row(db, run_id)
    models = [dict(row) for row in db.execute(_USAGE, (run_id,))]
    return msgspec.json.encode({"models": models})
