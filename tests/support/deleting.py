"""The deletion of a run, as ``--keep`` does it."""

from __future__ import annotations

from prefactor_core.local.retention import Retention
from prefactor_core.local.store import Store


def delete_run(store: Store, run_id: str) -> None:
    """Delete a run that has ended."""
    long_ago = dict.fromkeys(("updated_at", "last_activity_at"), "2020-01-01T00:00:00.000000Z")
    with store.transaction():
        store.update("agent_instances", run_id, long_ago)
    retention = Retention(store, 30)
    while retention.step():
        pass
