"""Search: a text in the spans of a run, and in all runs. Synchronous.

There is no index of words: it would slow down each write and make the file larger, and SQLite reads
1,000,000 spans in about a second.
"""

from __future__ import annotations

from collections.abc import Mapping
from sqlite3 import Connection
from typing import Final

import msgspec

from prefactor_core.local.errors import invalid
from prefactor_core.local.viewer.runs import run_row

_MOST_HITS: Final = 10_000

_MOST_CHARACTERS: Final = 500
"""The most characters of a text that is looked for."""

# ?1: the text as it is. ?2: patterns of it, for a column; ?3: inside a JSON string; ?4: at the
# beginning. LIKE takes upper and lower case of ASCII letters for the same.
_SPAN_HAS_TEXT: Final = r"""(
    s.id = ?1 OR s.schema_name LIKE ?2 ESCAPE '\' OR s.payload LIKE ?3 ESCAPE '\'
    OR s.result_payload LIKE ?3 ESCAPE '\')"""

RUN_HAS_TEXT: Final = rf"""(
    r.id LIKE ?4 ESCAPE '\' OR a.name LIKE ?2 ESCAPE '\' OR r.agent_id LIKE ?2 ESCAPE '\'
    OR r.external_identifier LIKE ?2 ESCAPE '\' OR r.termination_reason LIKE ?2 ESCAPE '\'
    OR EXISTS (
        SELECT 1 FROM agent_spans AS s WHERE s.agent_instance_id = r.id AND {_SPAN_HAS_TEXT}))"""
"""SQL: whether a run ``r`` of an agent ``a`` has a text: :func:`text_values`.

It is looked for at the beginning of the run's id; in its agent's name and id, its own name, the
reason of its termination; in the ids, names, payloads and results of its spans.
"""


def text_values(text: str) -> tuple[str, str, str, str]:
    """The values of ``text`` for :data:`RUN_HAS_TEXT`.

    Raises :class:`ApiError` (422) for a text of more than 500 characters.
    """
    if len(text) > _MOST_CHARACTERS:
        raise invalid("q", f"must have at most {_MOST_CHARACTERS} characters, has {len(text)}")
    column, json = _escaped(text), _escaped(msgspec.json.encode(text)[1:-1].decode())
    return text, f"%{column}%", f"%{json}%", f"{column}%"


def _escaped(text: str) -> str:
    for special in "\\%_":
        text = text.replace(special, f"\\{special}")
    return text


def search(db: Connection, run_id: str, query: Mapping[str, str]) -> bytes:
    """The ids of the spans that have the text ``q``, in the order of their starts."""
    run_row(db, run_id)
    text = query.get("q", "").strip()
    if not text:
        raise invalid("q", "is required", "required")
    found = db.execute(
        f"SELECT id FROM agent_spans AS s WHERE agent_instance_id = ?5 AND {_SPAN_HAS_TEXT} "
        "ORDER BY coalesce(started_at, inserted_at), id LIMIT ?6",
        (*text_values(text), run_id, _MOST_HITS + 1),
    ).fetchall()
    ids = [row["id"] for row in found[:_MOST_HITS]]
    return msgspec.json.encode({"spans": ids, "more": len(found) > _MOST_HITS})
