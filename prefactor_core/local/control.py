"""Control: how the agent of a terminated run hears of it. Synchronous."""

from __future__ import annotations

import sqlite3
from contextlib import suppress

from prefactor_core.local.pagination import Answer
from prefactor_core.local.requests import stored_now
from prefactor_core.local.store import Row, Store
from prefactor_core.models.lifecycle import InstanceStatus


class Control:
    """The control signal in answers, and the time of the first one, for the runs in ``store``."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def signal(self, answer: Answer, instance: Row) -> Answer:
        """Add the control signal to ``answer``, that of a write, if ``instance`` is terminated."""
        if instance["status"] == InstanceStatus.TERMINATED:
            answer["control"] = {"terminate": True, "reason": instance["termination_reason"]}
            self._note_heard(instance)
        return answer

    def polled(self, instance: Row) -> None:
        """Store that the agent asked for the state of ``instance``, if that is terminated.

        The answer does not depend on this write, which does not wait for a lock and may fail.
        """
        if instance["status"] == InstanceStatus.TERMINATED and instance["heard_at"] is None:
            with suppress(sqlite3.Error), self._store.transaction(waits=False):
                self._note_heard(instance)

    def _note_heard(self, instance: Row) -> None:
        if instance["heard_at"] is None:
            changes = {"heard_at": stored_now(), "revision": self._store.revision()}
            self._store.update("agent_instances", instance["id"], changes)
