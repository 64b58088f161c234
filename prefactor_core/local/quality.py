"""The quality payloads of a run, as stored and as answered. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec
from msgspec import Raw, Struct

from prefactor_core.local.pagination import Answer
from prefactor_core.local.store import Row
from prefactor_core.local.versions import SchemaVersion


class Quality(Struct):
    """A quality payload of a run, as stored."""

    payload: Raw
    flags: list[str]


def with_quality(
    stored: str, schema: SchemaVersion, name: str, payload: dict[str, object] | None
) -> str:
    """The stored payloads, with another ``payload`` of this name, or none for None.

    Raises :class:`ApiError` (422) for a name that ``schema`` does not have.
    """
    schema.quality(name)
    recorded = msgspec.json.decode(stored, type=dict[str, Quality])
    if payload is None:
        recorded.pop(name, None)
    else:
        flags = schema.check.quality(name, payload)
        recorded[name] = Quality(Raw(msgspec.json.encode(payload)), flags)
    return msgspec.json.encode(recorded).decode()


def quality_of(row: Row, schema: Callable[[], SchemaVersion]) -> Answer:
    """What the details of the run ``row`` say of its quality. ``schema`` is called if there is
    any."""
    recorded = msgspec.json.decode(row["quality"], type=dict[str, Quality])
    summaries: dict[str, str] = {}
    for name, quality in recorded.items():
        summary = schema().quality(name).summary(quality.payload)
        if summary is not None:  # official clients reject null here
            summaries[name] = summary
    return {
        "quality_payloads": {name: quality.payload for name, quality in recorded.items()},
        "quality_summaries": summaries,
        "quality_flags": {name: quality.flags for name, quality in recorded.items()},
        **_unnamed_quality(row, schema, recorded, summaries),
    }


def _unnamed_quality(
    row: Row,
    schema: Callable[[], SchemaVersion],
    recorded: Mapping[str, Quality],
    summaries: Mapping[str, str],
) -> Answer:
    """The quality as older readers know it: the one payload that PUT agent_instance/{id} stored,
    or else all named ones together."""
    if row["quality_payload"] is not None:
        payload = Raw(row["quality_payload"].encode())
        summary = schema().unnamed_quality.summary(payload)
        return {"quality_payload": payload, "quality_summary": summary}
    payloads = {name: quality.payload for name, quality in recorded.items()}
    summary = "; ".join(f"{name}: {text}" for name, text in summaries.items())
    return {"quality_payload": payloads or None, "quality_summary": summary or None}
