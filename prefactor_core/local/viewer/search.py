"""Search: a text in the spans of a run, and in all runs, without an index. Synchronous."""

from __future__ import annotations

from collections.abc import Mapping
from sqlite3 import Connection, Row
from typing import Final

import msgspec

from prefactor_core.local.errors import invalid
from prefactor_core.local.viewer.runs import run_row

_MOST_HITS: Final = 10_000

_MOST_CHARACTERS: Final = 500
"""The most characters of a text that is looked for."""

# ?1: the text as the columns hold it. ?2: the text as it stands inside a JSON string.
# LIKE takes upper and lower case of ASCII letters for the same.
SPAN_HAS_TEXT: Final = r"""(
    id = ?3 OR schema_name LIKE ?1 ESCAPE '\' OR payload LIKE ?2 ESCAPE '\'
    OR result_payload LIKE ?2 ESCAPE '\')"""


def text_values(text: str) -> tuple[str, str, str]:
    """The values for :data:`SPAN_HAS_TEXT`.

    Raises :class:`ApiError` (422) for a text of more than 500 characters.
    """
    if len(text) > _MOST_CHARACTERS:
        raise invalid("q", f"must have at most {_MOST_CHARACTERS} characters, has {len(text)}")
    try:
        in_json = msgspec.json.encode(text)[1:-1].decode()
    except UnicodeEncodeError:
        raise invalid("q", "must be Unicode text") from None
    return _pattern(text), _pattern(in_json), text


def search(db: Connection, run_id: str, query: Mapping[str, str]) -> bytes:
    """The ids of the spans that have the text ``q``, in the order of their starts."""
    run_row(db, run_id)
    text = query.get("q", "").strip()
    if not text:
        raise invalid("q", "is required", "required")
    found = db.execute(
        f"SELECT id FROM agent_spans WHERE agent_instance_id = ?4 AND {SPAN_HAS_TEXT} "
        "ORDER BY coalesce(started_at, inserted_at), id LIMIT ?5",
        (*text_values(text), run_id, _MOST_HITS + 1),
    ).fetchall()
    ids = [row["id"] for row in found[:_MOST_HITS]]
    return msgspec.json.encode({"spans": ids, "more": len(found) > _MOST_HITS})


class RunText:
    """Whether a run, or a span of it, has a text.

    Of a run: its id or the beginning, its agent's name or id, its own names, the reason of its
    termination. Of a span: its id, its name, its payload, its result.
    """

    def __init__(self, db: Connection, text: str) -> None:
        self._db = db
        self._start = text.lower()
        self._values = text_values(text)

    def __call__(self, row: Row) -> bool:
        """Whether the run ``row`` has the text."""
        names = (
            row["agent_name"],
            row["agent_id"],
            row["external_identifier"],
            row["termination_reason"],
        )
        if row["id"].startswith(self._start) or any(
            self._start in name.lower() for name in names if name
        ):
            return True
        query = (
            f"SELECT 1 FROM agent_spans WHERE agent_instance_id = ?4 AND {SPAN_HAS_TEXT} LIMIT 1"
        )
        return self._db.execute(query, (*self._values, row["id"])).fetchone() is not None


def _pattern(text: str) -> str:
    for special in "\\%_":
        text = text.replace(special, f"\\{special}")
    return f"%{text}%"
