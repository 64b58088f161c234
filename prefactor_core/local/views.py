"""Views: what is stored, as the API shows it (API.md sections 6.4, 7 and 8). Synchronous."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from msgspec import Raw

from prefactor_core.local.refusal import invalid
from prefactor_core.local.store import Row, Store

Answer = dict[str, object]

_COUNTED = ("pending", "active", "complete", "failed", "cancelled")


class Views:
    """Shows the rows of ``store``, one by one or in pages."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def instance(self, row: Row) -> Answer:
        """The details of a run, with the counts of its spans."""
        counts = dict.fromkeys(_COUNTED, 0)
        for count in self._store.all(
            "SELECT status, count(*) AS spans FROM agent_spans "
            "WHERE agent_instance_id = ? GROUP BY status",
            row["id"],
        ):
            counts[count["status"]] = count["spans"]
        finished = counts["complete"] + counts["failed"] + counts["cancelled"]
        return {
            "type": "agent_instance",
            "account_id": self._store.account_id,
            # One deployment for each environment; accounts here have one environment.
            "agent_deployment_id": row["environment_id"],
            **dict(row),
            "span_counts": {"total": sum(counts.values()), **counts, "finished": finished},
            "quality_payloads": {},
            "quality_summaries": {},
        }

    def span(self, row: Row, instance: Row) -> Answer:
        """The details of a span of ``instance``."""
        result = row["result_payload"]
        return {
            "type": "agent_span",
            "account_id": self._store.account_id,
            "agent_id": instance["agent_id"],
            **dict(row),
            "schema_title": row["schema_name"],
            "payload": Raw(row["payload"].encode()),
            "result_payload": None if result is None else Raw(result.encode()),
            "sensitive_encoding": bool(row["sensitive_encoding"]),
            "purpose": "activity",
        }

    def instances(self, query: Mapping[str, str]) -> Answer:
        """A page of the runs of an agent."""
        if "agent_id" not in query:
            raise invalid("agent_id", "is required", "required")
        return self._page("agent_instances", "agent_id", query["agent_id"], query, self.instance)

    def spans(self, instance: Row, query: Mapping[str, str]) -> Answer:
        """A page of the spans of ``instance``."""
        return self._page(
            "agent_spans",
            "agent_instance_id",
            instance["id"],
            query,
            lambda span: self.span(span, instance),
        )

    def _page(
        self,
        table: str,
        column: str,
        value: str,
        query: Mapping[str, str],
        details: Callable[[Row], Answer],
    ) -> Answer:
        offset = _whole(query, "pagination[offset]", 0, 0, 2**31)
        size = _whole(query, "pagination[page_size]", 50, 1, 100)
        field, direction = query.get("sorting[field]", "id"), query.get("sorting[direction]", "asc")
        if "sorting" in query:
            field = query["sorting"].removeprefix("-")
            direction = "desc" if query["sorting"].startswith("-") else "asc"
        if field != "id" or direction not in ("asc", "desc"):
            raise invalid("sorting", "only by id, asc or desc")
        counted = self._store.one(f"SELECT count(*) AS n FROM {table} WHERE {column} = ?", value)
        total = counted["n"] if counted else 0
        rows = self._store.all(
            f"SELECT * FROM {table} WHERE {column} = ? ORDER BY id {direction} LIMIT ? OFFSET ?",
            value,
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
        raise invalid(name, f"must be a whole number from {least} to {most}, got {text!r}")
    return int(text)
