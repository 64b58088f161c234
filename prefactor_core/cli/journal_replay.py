"""The delivery of what dead processes left in their journals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import anyio
import anyio.lowlevel
from msgspec import Struct, field

from prefactor_core.config import PrefactorCoreConfig
from prefactor_core.exceptions import PrefactorCoreError
from prefactor_core.export.api_limits import ApiLimits
from prefactor_core.export.carrier import Carrier
from prefactor_core.export.circuit_breaker import CircuitBreaker
from prefactor_core.export.counters import Counters
from prefactor_core.export.replay import Replay
from prefactor_core.journal.adopted import AdoptedJournal
from prefactor_core.journal.directory import Hold
from prefactor_core.queue.event_loop import EventLoop
from prefactor_core.queue.retry_policy import Backoff

_PATIENCE: Final = 30.0
"""Seconds without an answer of the API, after which the rest stays in the journal."""

_LOOK_INTERVAL: Final = 0.1

Progress = Callable[[int, int], object]
"""Called with the number of operations that are done, and of all."""


class Outcome(Struct):
    """``delivered`` and ``refused``: operations; ``left``: those that stay in the journal, because
    of ``error``. ``run_ids``: the API's ids of the runs that it has registered under another one,
    by recorded id."""

    delivered: int = 0
    refused: int = 0
    left: int = 0
    error: str | None = None
    run_ids: dict[str, str] = field(default_factory=dict[str, str])


class Delivery:
    """Delivers journals by one carrier, while its receiver answers."""

    def __init__(self, carrier: Carrier, config: PrefactorCoreConfig) -> None:
        queueing, http = config.queue_config, config.http_config
        self.api_url = http.api_url
        self._carrier = carrier
        self._queueing = queueing
        self._event_loop = EventLoop.here()
        self._breaker = CircuitBreaker(
            Backoff(
                base=queueing.retry_delay_base,
                multiplier=http.retry_multiplier,
                cap=http.max_retry_delay,
            )
        )
        self._limits = ApiLimits(Counters(), queueing.max_batch_bytes)

    async def deliver(
        self, held: Hold, on_progress: Progress, *, with_refused: bool = False
    ) -> Outcome:
        """Deliver a journal that this process holds, and release it. Delete it if nothing stays.

        ``with_refused``: also what the API refused before.
        """
        journal = AdoptedJournal(held, self._event_loop, with_refused=with_refused)
        replay = Replay(
            self._carrier, journal, self._breaker, self._limits, self._queueing, self._event_loop
        )
        outcome, known = Outcome(), set[str]()
        async with anyio.create_task_group() as tasks:
            try:
                for _ in journal.read():
                    await anyio.lowlevel.checkpoint()
                known.update(journal.reader.state.run_ids)
                if journal.header is None:
                    journal.remove_if_empty()
                else:
                    tasks.start_soon(self._watch, replay, journal, on_progress)
                    await replay.run()
            except PrefactorCoreError as error:
                outcome.error = str(error)
            tasks.cancel_scope.cancel()
        statistics = replay.counters.statistics()
        outcome.delivered = statistics.delivered
        outcome.refused = sum(statistics.dropped.values())
        writer, state = getattr(journal, "writer", None), journal.reader.state
        outcome.left = len(state.pending) if writer is None else writer.pending
        if outcome.left and outcome.error is None:
            outcome.error = statistics.last_error or (
                "its header is damaged, so that it can only be removed, by 'journal discard'"
            )
        if writer is not None:
            run_ids = state.run_ids.items()
            outcome.run_ids = {
                recorded: given for recorded, given in run_ids if recorded not in known
            }
        return outcome

    async def _watch(self, replay: Replay, journal: AdoptedJournal, on_progress: Progress) -> None:
        state = journal.reader.state
        total = len(state.pending) + len(state.runs) + sum(1 for _ in state.open_spans())
        answers, answered_at = self._breaker.answers, anyio.current_time()
        while True:
            on_progress(replay.counters.completed, total)
            await anyio.sleep(_LOOK_INTERVAL)
            now = anyio.current_time()
            if answers != self._breaker.answers or not self._breaker.failures:
                answers, answered_at = self._breaker.answers, now
            elif now - answered_at > _PATIENCE:
                replay.close()
