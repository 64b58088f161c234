"""Runs: the rows of runs, and the totals of their spans in them. Synchronous."""

from __future__ import annotations

from collections.abc import Mapping

from prefactor_core.local.store import Row, Store
from prefactor_core.models.lifecycle import InstanceStatus


class Runs:
    """The rows of runs in ``store``.

    ``gathers``: a run is read once for many spans, and what they add to its totals is written
    once, by :meth:`write`: before any other call, which may show the totals or be rolled back
    alone, and at the end of the transaction. One thread may use such an object.
    """

    def __init__(self, store: Store, *, gathers: bool = False) -> None:
        self._store = store
        self._gathers = gathers
        self._known: dict[str, Row] = {}
        self._added: dict[str, dict[str, float]] = {}
        self._written_at: dict[str, str] = {}

    def get(self, instance_id: str, *, totals: bool = True) -> Row | None:
        """The row of a run, or None. Without ``totals`` they may be those of before."""
        if not totals and (row := self._known.get(instance_id)):
            return row
        row = self._store.one("SELECT * FROM agent_instances WHERE id = ?", instance_id)
        # The row of a terminated run changes when its agent hears of that.
        if self._gathers and row is not None and row["status"] != InstanceStatus.TERMINATED:
            self._known[instance_id] = row
        return row

    def change(self, instance_id: str, changes: Mapping[str, object], now: str) -> None:
        """Update the row of a run."""
        self._known.pop(instance_id, None)
        self._update(instance_id, {**changes, "updated_at": now, "last_activity_at": now}, {})

    def add(self, instance_id: str, added: Mapping[str, float], now: str) -> None:
        """Add to the totals of a run: a span of it was written ``now``."""
        if not self._gathers:
            self._update(instance_id, {"last_activity_at": now}, added)
            return
        totals = self._added.setdefault(instance_id, {})
        for name, number in added.items():
            totals[name] = totals.get(name, 0) + number
        self._written_at[instance_id] = now

    def write(self) -> None:
        """Write the totals that were gathered; rows are read again from then on."""
        for instance_id, added in self._added.items():
            changes = {"last_activity_at": self._written_at[instance_id]}
            self._update(instance_id, changes, added)
        self._known.clear()
        self._added.clear()

    def _update(
        self, instance_id: str, changes: Mapping[str, object], added: Mapping[str, float]
    ) -> None:
        changes = {**changes, "revision": self._store.revision()}
        self._store.update("agent_instances", instance_id, changes, added)
