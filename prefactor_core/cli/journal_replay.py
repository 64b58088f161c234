"""The delivery of what dead processes left in their journals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import anyio
import anyio.lowlevel
from msgspec import Struct

from prefactor_core.api.client import ApiClient
from prefactor_core.client.journaling import header
from prefactor_core.config import PrefactorCoreConfig
from prefactor_core.exceptions import PrefactorCoreError
from prefactor_core.export.api_limits import ApiLimits
from prefactor_core.export.circuit_breaker import CircuitBreaker
from prefactor_core.export.counters import Counters
from prefactor_core.export.replay import Replay
from prefactor_core.journal.adopted import AdoptedJournal
from prefactor_core.journal.directory import REFUSED_NAME, Hold, JournalDirectory, hold
from prefactor_core.journal.format import Identified, Kind
from prefactor_core.journal.reader import JournalReader, asides
from prefactor_core.journal.state import JournalState
from prefactor_core.journal.writer import JournalWriter
from prefactor_core.queue.event_loop import EventLoop
from prefactor_core.queue.retry_policy import Backoff

_PATIENCE: Final = 30.0
"""Seconds without an answer of the API, after which the rest stays in the journal."""

_LOOK_INTERVAL: Final = 0.1
_MAX_BYTES: Final = 1 << 62

Progress = Callable[[int, int], object]
"""Called with the number of operations that are done, and of all."""


class Outcome(Struct):
    """``delivered`` and ``refused``: operations; ``left``: those that stay in the journal, because
    of ``error``."""

    delivered: int = 0
    refused: int = 0
    left: int = 0
    error: str | None = None


class Delivery:
    """Delivers journals to one API, while it answers."""

    def __init__(self, api: ApiClient, config: PrefactorCoreConfig) -> None:
        queueing, http = config.queue_config, config.http_config
        self._api = api
        self._queueing = queueing
        self._header = header(config)
        self._event_loop = EventLoop.here()
        self._breaker = CircuitBreaker(
            Backoff(
                base=queueing.retry_delay_base,
                multiplier=http.retry_multiplier,
                cap=http.max_retry_delay,
            )
        )
        self._limits = ApiLimits(Counters(), queueing.max_batch_bytes)

    async def deliver(self, held: Hold, on_progress: Progress) -> Outcome:
        """Deliver a journal that this process holds, and release it. Delete it if nothing stays."""
        journal = AdoptedJournal(held, self._event_loop)
        for _ in journal.read():
            await anyio.lowlevel.checkpoint()
        state = journal.reader.state
        if journal.header is None:
            journal.remove_if_empty()
            return Outcome(left=len(state.pending), error="its header is damaged")
        total = len(state.pending) + len(state.runs) + sum(1 for _ in state.open_spans())
        replay = Replay(
            self._api, journal, self._breaker, self._limits, self._queueing, self._event_loop
        )
        outcome = Outcome()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch, replay, on_progress, total)
            try:
                await replay.run()
            except PrefactorCoreError as error:
                outcome.error = str(error)
            tasks.cancel_scope.cancel()
        statistics = replay.counters.statistics()
        outcome.delivered = statistics.delivered
        outcome.refused = sum(statistics.dropped.values())
        outcome.left = _pending(journal)
        if outcome.left and outcome.error is None:
            outcome.error = statistics.last_error
        return outcome

    def resume_refused(self, journal: Path) -> Path | None:
        """Put what the API refused into a new journal beside it, which is like any other from then
        on; return its path. None if nothing was refused, or a process has the journal.

        Raises OSError if it cannot be written.
        """
        held = hold(journal)
        if held is None:
            return None
        with ExitStack() as stack:
            stack.callback(held.release)
            operations = [aside.operation for _, aside in asides(journal)]
            if not operations:
                return None
            reader = JournalReader(journal)
            for _ in reader.scan():
                pass
            new = JournalDirectory(journal.parent).create()
            writer = JournalWriter(
                new,
                self._header,
                self._event_loop.lock,
                self._event_loop.run_soon,
                max_bytes=_MAX_BYTES,
                state=lambda: _ids(reader.state),
            )
            for operation in operations:
                writer.append(operation)
            if writer.unwritten:
                new.remove()
                raise OSError(f"{new.path} cannot be written")
            # From here on some may be in both: their keys let them take effect once.
            (journal / REFUSED_NAME).unlink()
            writer.abandon()
            return new.path

    async def _watch(self, replay: Replay, on_progress: Progress, total: int) -> None:
        while True:
            await anyio.sleep(_LOOK_INTERVAL)
            on_progress(replay.counters.completed, total)
            since = self._breaker.since
            if since is not None and (datetime.now(UTC) - since).total_seconds() > _PATIENCE:
                replay.close()


def _pending(journal: AdoptedJournal) -> int:
    """The operations that are left in a journal; those of its reader if it could not be written."""
    writer = getattr(journal, "writer", None)
    return len(journal.reader.state.pending) if writer is None else writer.pending


def _ids(state: JournalState) -> Iterator[tuple[Kind, object]]:
    for instance_id, api_id in state.run_ids.items():
        yield Kind.IDENTIFIED, Identified(instance_id, None, api_id)
    for span_id, (instance_id, api_id) in state.span_ids.items():
        yield Kind.IDENTIFIED, Identified(instance_id, span_id, api_id)
