"""Forms of the values in requests, for the OpenAPI document alone. Pure.

Decoding does not check them: the checks of a request have better messages.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

from msgspec import Meta

from prefactor_core.models.lifecycle import OUTCOMES, SpanStatus

PURPOSES: Final = ["live", "smoke_test", "eval"]

Text = Annotated[str, Meta(extra_json_schema={"minLength": 1, "pattern": r"\S"})]
Key = Annotated[str, Meta(extra_json_schema={"minLength": 1, "maxLength": 128})]
Time = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]
Outcome = Annotated[str, Meta(extra_json_schema={"enum": sorted(OUTCOMES)})]
Purpose = Annotated[str, Meta(extra_json_schema={"enum": PURPOSES})]
_PFID = "^[0-7][0-9abcdefghjkmnpqrstvwxyz]{31}$"
NewId = Annotated[str, Meta(extra_json_schema={"pattern": _PFID})]
Items = Annotated[
    list[dict[str, Any]],
    Meta(
        extra_json_schema={
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["_type", "idempotency_key"],
                "properties": {
                    "_type": {"type": "string"},
                    "idempotency_key": {"type": "string", "minLength": 8, "maxLength": 128},
                },
            },
        }
    ),
]
NewStatus = Annotated[str, Meta(extra_json_schema={"enum": [str(each) for each in SpanStatus]})]
