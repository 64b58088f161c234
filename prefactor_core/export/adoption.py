"""Adoption: delivers, in the background, what dead processes left in the journals of a folder."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio
import anyio.lowlevel

from prefactor_core.config import QueueConfig
from prefactor_core.exceptions import PrefactorCoreError
from prefactor_core.exceptions.log import log
from prefactor_core.export.api_limits import ApiLimits
from prefactor_core.export.circuit_breaker import CircuitBreaker
from prefactor_core.export.counters import Counters
from prefactor_core.export.replay import Replay
from prefactor_core.journal.adopted import AdoptedJournal
from prefactor_core.journal.directory import Hold, JournalDirectory
from prefactor_core.journal.reader import read_header
from prefactor_core.queue.event_loop import EventLoop

if TYPE_CHECKING:
    from prefactor_core.export.carrier import Carrier

logger = logging.getLogger("prefactor_core.export.adoption")

_INTERVAL: Final = 30.0
"""Seconds between two looks at the folder: a process may die while this one lives."""


class Adoption:
    """Adopts the journals in ``directory`` whose processes are dead, one after another.

    ``counters``: those of the client. Only journals of the API ``api_name`` are adopted. Each is
    sent, its open spans and runs end as failed, and it is deleted. One that this API refuses, or
    that cannot be read, is left alone, and one warning says so. A
    :class:`~prefactor_core.export.exporter.Job` of the exporter.

    When the client closes, the work goes on as long as the API answers, within ``drain_timeout``:
    an agent that runs for a second only must be able to deliver what another one left.
    """

    def __init__(
        self,
        directory: JournalDirectory,
        api_name: str,
        carrier: Carrier,
        breaker: CircuitBreaker,
        limits: ApiLimits,
        config: QueueConfig,
        counters: Counters,
        event_loop: EventLoop,
    ) -> None:
        self._counters = counters
        self._directory = directory
        self._api_name = api_name
        self._carrier = carrier
        self._breaker = breaker
        self._limits = limits
        self._config = config
        self._event_loop = event_loop
        self._closing = anyio.Event()
        self._replay: Replay | None = None
        self._left_alone: set[Path] = set()

    async def serve(self) -> None:
        """Adopt until :meth:`close`."""
        while True:
            for hold in self._directory.abandoned():
                try:
                    await anyio.lowlevel.checkpoint()  # most of them may be left alone
                    if hold is not None:
                        await self._look_at(hold)
                finally:
                    if hold is not None:
                        hold.release()
                if self._closing.is_set() and self._breaker.is_outage:
                    return
            if self._closing.is_set():
                return
            with anyio.move_on_after(_INTERVAL):
                await self._closing.wait()

    def close(self) -> None:
        """End :meth:`serve` with the journals that are there, or with an outage."""
        self._closing.set()
        if self._replay is not None:
            self._replay.close()

    async def _look_at(self, hold: Hold) -> None:
        if hold.path in self._left_alone or self._event_loop.is_forked:
            return
        try:
            header = read_header(hold.path)
            if header is None or header.api_url == self._api_name:
                await self._adopt(hold)
            else:
                self._left_alone.add(hold.path)
                message = (
                    "the journal %s of a dead process is for %s, and not for this client's API: "
                    "'python -m prefactor_core journal replay' delivers it"
                )
                log(logger, logging.INFO, message, hold.path, header.api_url)
        except PrefactorCoreError as error:
            self._left_alone.add(hold.path)
            message = "the journal %s of a dead process is left alone: %s"
            log(logger, logging.WARNING, message, hold.path, error)
        except Exception as error:
            # A bug of ours: the other journals must not wait for it.
            self._left_alone.add(hold.path)
            message = "the journal %s of a dead process met an error that was not expected"
            log(logger, logging.ERROR, message, hold.path, error=error)

    async def _adopt(self, hold: Hold) -> None:
        journal = AdoptedJournal(hold, self._event_loop)
        for _ in journal.read():
            await anyio.lowlevel.checkpoint()
        if journal.header is None:
            journal.remove_if_empty()
            self._left_alone.add(hold.path)  # what is left is for a person
            return
        self._replay = Replay(
            self._carrier, journal, self._breaker, self._limits, self._config, self._event_loop
        )
        if self._closing.is_set():
            self._replay.close()
        state = journal.reader.state
        spans, runs = sum(1 for _ in state.open_spans()), len(state.runs)
        counters = self._replay.counters
        try:
            await self._replay.run()
        finally:
            self._replay = None
            self._counters.adopted += counters.delivered
        if journal.writer.pending:
            return  # the client closes in an outage; the next one goes on with it
        message = (
            "delivered %d operations that process %d on %s left in its journal %s, with the ends "
            "of %d spans and %d runs that it left open"
        )
        by = journal.header.process, journal.header.host, hold.path
        log(logger, logging.INFO, message, counters.delivered, *by, spans, runs)
