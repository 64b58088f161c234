"""Heartbeat: notes in the journal that its process lives."""

from __future__ import annotations

from typing import Final

import anyio

from prefactor_core.journal.writer import JournalWriter

_INTERVAL: Final = 30.0


class Heartbeat:
    """Appends a record each 30 seconds, so that the death of an idle process has a time."""

    def __init__(self, journal: JournalWriter) -> None:
        self._journal = journal
        self._closing = anyio.Event()

    async def serve(self) -> None:
        """Append until :meth:`close`."""
        while not self._closing.is_set():
            with anyio.move_on_after(_INTERVAL):
                await self._closing.wait()
            if not self._closing.is_set():
                self._journal.beat()

    def close(self) -> None:
        """End :meth:`serve`."""
        self._closing.set()
