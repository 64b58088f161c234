"""One page of a list, as the API answers it. Synchronous."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TypeAlias

from prefactor_core.exceptions import in_message
from prefactor_core.local.errors import invalid
from prefactor_core.local.store import Row, Store

Answer: TypeAlias = dict[str, object]


def page_of(
    store: Store,
    table: str,
    where: Mapping[str, str],
    query: Mapping[str, str],
    details: Callable[[Row], Answer],
    sorted_by: Collection[str] = ("id",),
) -> Answer:
    """The page of ``table`` that ``query`` asks for, each row as ``details`` shows it.

    ``where`` maps conditions to values. The conditions are SQL from the code, with one ``?`` each;
    the values come from the caller. ``sorted_by``: the columns that ``query`` may sort by.
    """
    offset = _whole(query, "pagination[offset]", 0, 0, 2**31)
    size = _whole(query, "pagination[page_size]", 50, 1, 100)
    field, direction = query.get("sorting[field]", "id"), query.get("sorting[direction]", "asc")
    fields = [field]
    if "sorting" in query:
        field = query["sorting"].removeprefix("-")
        fields.append(field)
    if not set(fields) <= set(sorted_by) or direction not in ("asc", "desc"):
        raise invalid("sorting", f"only by {' or '.join(sorted_by)}, asc or desc")
    if "sorting" in query:
        direction = "desc" if query["sorting"].startswith("-") else "asc"
    rows_of = f"FROM {table} WHERE {' AND '.join(where) or '1'}"
    counted = store.one(f"SELECT count(*) AS n {rows_of}", *where.values())
    total = counted["n"] if counted else 0
    rows = store.all(
        f"SELECT * {rows_of} ORDER BY {field} {direction}, id LIMIT ? OFFSET ?",
        *where.values(),
        size,
        offset,
    )
    return {
        "status": "success",
        "summaries": [details(row) for row in rows],
        "pagination": {
            "item_count": total,
            "item_start": offset + 1 if rows else 0,
            "item_end": offset + len(rows) if rows else 0,
            "next_page_offset": offset + size if offset + size < total else None,
            "previous_page_offset": max(0, offset - size) if offset else None,
            "page_count": -(-total // size),
            "page_index": offset // size + 1,
            "page_offset": offset,
            "page_size": size,
        },
        "sorting": {"field": field, "direction": direction, "nulls": "last"},
    }


def _whole(query: Mapping[str, str], name: str, default: int, least: int, most: int) -> int:
    text = query.get(name, str(default))
    if not text.isdecimal() or len(text) > 10 or not least <= int(text) <= most:
        raise invalid(
            name, f"must be a whole number from {least} to {most}, got {in_message(text)}"
        )
    return int(text)
