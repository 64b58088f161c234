"""Spans: the rows of spans, and what each adds to the totals in the row of its run.

The viewer lists runs with their totals, so that no list counts spans. Synchronous.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Any, Final

from prefactor_core.local.errors import ApiError
from prefactor_core.local.runs import Runs
from prefactor_core.local.store import Row, Store
from prefactor_core.local.usage import Usage, is_llm_call, usage_of

SpanRow = Mapping[str, Any] | Row

COUNTED: Final = ("pending", "active", "complete", "failed", "cancelled")


class Spans:
    """Writes rows of spans in ``store``, each inside the caller's transaction.

    Tokens and cost are those of the leaves among the LLM calls: a span with an LLM call as child
    reports the sum of its children, which must not count twice.
    """

    def __init__(self, store: Store, runs: Runs | None = None) -> None:
        self._store = store
        self._runs = runs or Runs(store)

    def get(self, span_id: str) -> Row | None:
        """The row of a span, or None."""
        return self._store.one("SELECT * FROM agent_spans WHERE id = ?", span_id)

    def add(self, span: dict[str, Any]) -> SpanRow:
        """Insert a row, and return it with all its columns; its parent, if any, is stored.

        Raises :class:`ApiError` (409), and writes nothing, if a span has this id.
        """
        span = {
            **span,
            "at": span["started_at"] or span["inserted_at"],
            "has_llm_child": 0,
            "revision": self._store.revision(),
        }
        span |= _usage(span)._asdict()
        try:
            self._store.insert("agent_spans", span)
        except sqlite3.IntegrityError as error:
            # To ask first would take longer.
            if error.sqlite_errorcode != sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY:
                raise
            raise ApiError(409, "already_exists", f"span {span['id']!r} exists") from None
        added = _totals(span)
        if span["parent_span_id"] is not None and is_llm_call(span["schema_name"]):
            parent = self.get(span["parent_span_id"])
            assert parent is not None
            if not parent["has_llm_child"]:
                changed = self._update(parent, {"has_llm_child": 1})
                added = _sum(added, _sum(_totals(changed), _totals(parent), -1))
        self._runs.add(span["agent_instance_id"], added, span["inserted_at"])
        return span

    def change(self, span: Row, changes: Mapping[str, Any]) -> SpanRow:
        """Update the row ``span``, and return it; ``changes`` has the time ``updated_at``."""
        changed = self._update(span, changes)
        added = _sum(_totals(changed), _totals(span), -1)
        self._runs.add(span["agent_instance_id"], added, changes["updated_at"])
        return changed

    def remove(self, instance_id: str, most: int) -> int:
        """Delete the oldest spans of a run, ``most`` at most; the number of those deleted."""
        oldest = "SELECT * FROM agent_spans WHERE agent_instance_id = ? ORDER BY id LIMIT ?"
        spans = self._store.all(oldest, instance_id, most)
        removed: dict[str, float] = {}
        for span in spans:
            removed = _sum(removed, _totals(span), -1)
            self._store.delete("agent_spans", {"id": span["id"]})
        if spans:
            changes = {"revision": self._store.revision()}
            self._store.update("agent_instances", instance_id, changes, removed)
        return len(spans)

    def _update(self, span: Row, changes: Mapping[str, Any]) -> SpanRow:
        changes = {**changes, "revision": self._store.revision()}
        changed = {**dict(span), **changes}
        usage = _usage(changed)._asdict()
        changed |= usage
        self._store.update("agent_spans", span["id"], {**changes, **usage})
        return changed


def _usage(span: SpanRow) -> Usage:
    if span["has_llm_child"] or not is_llm_call(span["schema_name"]):
        return Usage()
    return usage_of(span["payload"], span["result_payload"])


def _totals(span: SpanRow) -> dict[str, float]:
    """What one span adds to the totals in the row of its run."""
    is_leaf = is_llm_call(span["schema_name"]) and not span["has_llm_child"]
    return {
        f"{span['status']}_spans": 1,
        "flagged_spans": int(span["flags"] != "[]"),
        "llm_calls": int(is_leaf),
        "tokens": span["tokens"] or 0,
        "cost": span["cost"] or 0,
    }


def _sum(
    totals: Mapping[str, float], others: Mapping[str, float], times: int = 1
) -> dict[str, float]:
    names = {**totals, **others}
    return {name: totals.get(name, 0) + times * others.get(name, 0) for name in names}
