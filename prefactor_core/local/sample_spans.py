"""Sample spans, to see a run without an agent. Synchronous."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta, Raw, Struct

from prefactor_core.local.errors import invalid
from prefactor_core.local.requests import CreateSpanBody, SpanDetails
from prefactor_core.local.service import Service

_MOST: Final = 100
_DEFAULT: Final = 5

_SAMPLES: Final = (
    ("agent:llm_call", {"model": "sample"}, {"response": "A sample answer."}),
    ("agent:tool_call", {"tool": "sample"}, {"output": "A sample output."}),
)


class CreateTestSpansBody(Struct, kw_only=True):
    """POST agent_spans/create_test_spans."""

    agent_instance_id: str
    count: Annotated[int, Meta(extra_json_schema={"minimum": 1, "maximum": _MOST})] | None = None
    parent_span_id: str | None = None


class _Created(Struct):
    details: Raw


def create_test_spans(service: Service, body: CreateTestSpansBody) -> bytes:
    """POST agent_spans/create_test_spans: 1 to 100 complete spans, 5 by default."""
    count = _DEFAULT if body.count is None else body.count
    if not 1 <= count <= _MOST:
        raise invalid("count", f"must be from 1 to {_MOST}, got {count}")
    spans: list[Raw] = []
    for number in range(count):
        schema_name, payload, result = _SAMPLES[number % len(_SAMPLES)]
        details = SpanDetails(
            agent_instance_id=body.agent_instance_id,
            parent_span_id=body.parent_span_id,
            schema_name=schema_name,
            status="complete",
            payload=dict(payload),
            result_payload=dict(result),
        )
        answer = service.create_span(CreateSpanBody(details=details))
        spans.append(msgspec.json.decode(answer, type=_Created).details)
    return msgspec.json.encode(
        {"status": "success", "summaries": spans, "pagination": None, "sorting": None}
    )
