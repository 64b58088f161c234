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
    *,
    total: int | None = None,
    index: str | None = None,
) -> Answer:
    """The page of ``table`` that ``query`` asks for, each row as ``details`` shows it.

    ``where`` maps conditions to values. The conditions are SQL from the code, with one ``?`` each;
    the values come from the caller. ``sorted_by``: the columns that ``query`` may sort by.
    ``total``: the number of rows, if it is known without counting them. ``index``: the one to find
    the rows by, if SQLite would choose another.

    Call it in a snapshot if ``total`` is given.
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
    by = f" INDEXED BY {index}" if index else ""
    rows_of = f"FROM {table}{by} WHERE {' AND '.join(where) or '1'}"
    with store.snapshot():
        if total is None:
            total = int(store.all(f"SELECT count(*) AS n {rows_of}", *where.values())[0]["n"])
        # Walk to the page from the nearer end.
        count = max(0, min(size, total - offset))
        skipped, from_end = offset, offset > total / 2
        if from_end:
            skipped = total - offset - count
        order = _order(field, (direction == "desc") != from_end, ids_descend=from_end)
        # Walk over an index; SQLite would read each row on the way.
        ids = f"SELECT id {rows_of} ORDER BY {order} LIMIT ? OFFSET ?"
        query_rows = f"SELECT * FROM {table} WHERE id IN ({ids}) ORDER BY {order}"
        rows = store.all(query_rows, *where.values(), count, max(0, skipped)) if count else []
    if from_end:
        rows.reverse()
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


def _order(field: str, descends: bool, *, ids_descend: bool) -> str:
    first = f"{field} {'DESC' if descends else 'ASC'}"
    return first if field == "id" else f"{first}, id {'DESC' if ids_descend else 'ASC'}"


def _whole(query: Mapping[str, str], name: str, default: int, least: int, most: int) -> int:
    text = query.get(name, str(default))
    if not text.isdecimal() or len(text) > 10 or not least <= int(text) <= most:
        raise invalid(
            name, f"must be a whole number from {least} to {most}, got {in_message(text)}"
        )
    return int(text)
