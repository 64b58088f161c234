"""Spans: the skeleton of a run, what changed in it, and one span whole. Synchronous."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from sqlite3 import Connection, Row
from typing import Final

import msgspec
from msgspec import Raw

from prefactor_core.exceptions import in_message
from prefactor_core.local.errors import invalid, not_found
from prefactor_core.local.viewer.runs import revision, run_row
from prefactor_core.local.viewer.schema_versions import schema_version

FIELDS: Final = (
    *("id", "parent", "name", "status", "start", "end"),
    *("flags", "error", "tokens", "cost", "size", "label"),
)
"""The fields of a row of a skeleton, in their order."""

_MOST_ANCESTORS: Final = 100
"""The most ancestors of a span, the nearest ones: all those of a deep run would fill its export."""

_MOST_PAYLOADS: Final = 100
"""The most spans whose payloads one request may ask for."""

_PAYLOADS_BYTES: Final = 2_000_000
"""About the most bytes of an answer with payloads; one span always fits."""

_LABEL_CHARACTERS: Final = 80
_ERROR_CHARACTERS: Final = 200

# Fields whose text says in a few words what a span did, the best first.
_LABELS: Final = (
    *("model", "tool", "query", "agent", "rating", "name", "title", "input", "prompt"),
    *("question", "task", "message", "text", "url", "inputs.model", "inputs.ai.model.id"),
)


def _text(column: str, path: str) -> str:
    """SQL for the text at ``path`` of the JSON in ``column``; NULL for any other value: an object
    there may be a sensitive value."""
    return (
        f"CASE json_type({column}, '$.{path}') WHEN 'text' "
        f"THEN nullif(json_extract({column}, '$.{path}'), '') END"
    )


def _first_text(column: str, *paths: str) -> str:
    return f"coalesce({', '.join(_text(column, path) for path in paths)}, NULL)"


# SQLite builds the JSON of each row: Python neither decodes a field nor encodes it again.
# json_valid: SQLite refuses JSON that is nested deeper than 1,000 levels.
_SKELETON: Final = f"""
SELECT CAST(json_array(
    id, parent_span_id, schema_name, status, started_at, finished_at, json_array_length(flags),
    CASE WHEN status = 'failed' AND json_valid(result_payload) THEN substr(
        coalesce({_first_text("result_payload", "error.type", "error.error_type")} || ': ', '')
        || coalesce({_first_text("result_payload", "error.message", "error", "message")}, ''),
        1, {_ERROR_CHARACTERS}) END,
    tokens, cost, length(CAST(payload AS BLOB)) + coalesce(length(CAST(result_payload AS BLOB)), 0),
    CASE WHEN json_valid(payload) THEN
        substr({_first_text("payload", *_LABELS)}, 1, {_LABEL_CHARACTERS}) END
) AS BLOB) FROM agent_spans
"""

# The bound also ends a circle, which a file from elsewhere may have.
_ANCESTORS: Final = """
WITH RECURSIVE above (id, name, parent_id, distance) AS (
    SELECT id, schema_name, parent_span_id, 1 FROM agent_spans WHERE id = ?1
    UNION ALL
    SELECT s.id, s.schema_name, s.parent_span_id, distance + 1
    FROM above JOIN agent_spans AS s ON s.id = above.parent_id WHERE distance < ?2
)
SELECT id, name FROM above ORDER BY distance DESC
"""


def skeleton(db: Connection, run_id: str) -> bytes:
    """All spans of a run, without their payloads, by id."""
    run_row(db, run_id)
    rows = db.execute(f"{_SKELETON} WHERE agent_instance_id = ? ORDER BY id", (run_id,))
    return _shape(revision(db), (row for (row,) in rows))


def changes(db: Connection, run_id: str, query: Mapping[str, str]) -> bytes:
    """The spans of a run that changed after the revision ``after``, in the order of the changes,
    and the run: the shape of a skeleton, with ``run``."""
    run = run_row(db, run_id)
    after = revision_of(query.get("after", "0"), "after")
    rows = db.execute(
        f"{_SKELETON} WHERE agent_instance_id = ? AND revision > ? ORDER BY revision, id",
        (run_id, after),
    )
    more = b',"run":' + msgspec.json.encode(run)
    return _shape(revision(db), (row for (row,) in rows), more)


def _shape(revision: int, rows: Iterable[bytes], more: bytes = b"") -> bytes:
    fields = msgspec.json.encode(FIELDS)
    return b'{"revision":%d,"fields":%b,"rows":[%b]%b}' % (
        revision,
        fields,
        b",".join(rows),
        more,
    )


def revision_of(text: str, name: str) -> int:
    """The revision that a client names. Raises :class:`ApiError` (422) if it is no number."""
    if not text.isdecimal() or len(text) > 18:
        raise invalid(name, f"must be a revision, got {in_message(text)}")
    return int(text)


def run_of_span(db: Connection, span_id: str) -> str:
    """The id of the run of a span. Raises :class:`ApiError` (404) if it is unknown."""
    return str(_span(db, span_id)["agent_instance_id"])


def span_details(db: Connection, span_id: str) -> bytes:
    """A span with its payload and its result, as text that is exactly what is stored."""
    span = _span(db, span_id)
    query = "SELECT agent_schema_version_id FROM agent_instances WHERE id = ?"
    (version_id,) = db.execute(query, (span["agent_instance_id"],)).fetchone()
    version = schema_version(db, version_id)
    shown = version.span_type(span["schema_name"])
    params_schema, result_schema = version.json_schemas(span["schema_name"])
    same = (
        *("id", "agent_instance_id", "parent_span_id", "schema_name", "status", "started_at"),
        *("finished_at", "inserted_at", "updated_at"),
    )
    details = {
        **{name: span[name] for name in same},
        "schema_title": shown.title,
        "sensitive_encoding": bool(span["sensitive_encoding"]),
        "flags": Raw(span["flags"].encode()),
        "summary": shown.summary(span["payload"], span["result_payload"]),
        "data_risk": shown.data_risk,
        "path": _ancestors(db, span["parent_span_id"]),
        "payload_text": span["payload"],
        "result_text": span["result_payload"],
        "params_schema": params_schema,
        "result_schema": result_schema,
    }
    return msgspec.json.encode({"span": details})


def payloads(db: Connection, query: Mapping[str, str]) -> bytes:
    """The payloads and results of the spans ``ids``, by id, with the same texts as
    :func:`span_details`.

    ``left`` has the ids that did not fit into the answer, for the next request; ids that are
    unknown are in neither list.
    """
    ids = sorted({id for id in query.get("ids", "").split(",") if id})
    if not 1 <= len(ids) <= _MOST_PAYLOADS:
        raise invalid("ids", f"must be 1 to {_MOST_PAYLOADS} ids of spans, divided by commas")
    rows = db.execute(
        "SELECT id, payload AS payload_text, result_payload AS result_text FROM agent_spans "
        f"WHERE id IN ({', '.join('?' * len(ids))}) ORDER BY id",
        ids,
    )
    spans: list[bytes] = []
    left: list[str] = []
    size = 0
    for row in rows:
        spans.append(msgspec.json.encode(dict(row)))
        size += len(spans[-1])
        if size >= _PAYLOADS_BYTES:
            left = [id for id in ids if id > row["id"]]
            break
    return b'{"spans":[%b],"left":%b}' % (b",".join(spans), msgspec.json.encode(left))


def _span(db: Connection, span_id: str) -> Row:
    row: Row | None = db.execute("SELECT * FROM agent_spans WHERE id = ?", (span_id,)).fetchone()
    if row is None:
        raise not_found("span", span_id)
    return row


def _ancestors(db: Connection, parent_id: str | None) -> list[dict[str, str]]:
    return [dict(row) for row in db.execute(_ANCESTORS, (parent_id, _MOST_ANCESTORS))]
