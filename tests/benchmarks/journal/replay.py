"""``python -m benchmarks.journal.replay LOOP FOLDER``: replay a journal, up to the batch.

All that a replay does but for the requests: the journal is read and taken over, and its operations
go into batches, which count as delivered at once. Prints the figures as one line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import anyio
import anyio.lowlevel

from benchmarks.drivers.memory import peak_memory, resident_memory
from prefactor_core.api.client import ApiClient
from prefactor_core.config import HttpClientConfig, QueueConfig
from prefactor_core.export.api_limits import ApiLimits
from prefactor_core.export.circuit_breaker import CircuitBreaker
from prefactor_core.export.counters import Counters
from prefactor_core.export.replay import Replay
from prefactor_core.journal.adopted import AdoptedJournal
from prefactor_core.journal.directory import JournalDirectory
from prefactor_core.queue.event_loop import EventLoop
from prefactor_core.queue.retry_policy import Backoff

_now, _cpu = time.perf_counter, time.process_time


@dataclass(frozen=True)
class Replayed:
    """Seconds of the first pass over the files, of the second one with the batches, and of what
    follows a request: noting what is settled. ``cpu_s``: CPU time of the first two.
    ``added_mb``: the largest resident memory, less that before."""

    operations: int
    read_s: float
    batch_s: float
    settle_s: float
    cpu_s: float
    added_mb: float

    @property
    def per_second(self) -> float:
        """Operations a second, from the file to the batch."""
        return self.operations / (self.read_s + self.batch_s)

    @property
    def cpu_us(self) -> float:
        """Microseconds of CPU time for an operation, from the file to the batch."""
        return self.cpu_s / self.operations * 1e6


class _ToTheBatch(Replay):
    """A replay whose batches count as delivered."""

    settle_s = settle_cpu_s = 0.0

    async def _send(self) -> None:
        batch = self._batcher.next_batch(
            self._max_operations, self._sender.limits.max_bytes(anyio.current_time())
        )
        self._batcher.mark_sent(batch)
        began, cpu = _now(), _cpu()
        self._journal.sending(batch)
        for item in batch:
            item.completed = True
            self._counters.deliver(item.count, item.size)
        self._remove_completed(batch)
        self.settle_s += _now() - began
        self.settle_cpu_s += _cpu() - cpu


async def _replay(folder: Path) -> Replayed:
    (hold,) = filter(None, JournalDirectory(folder).abandoned())
    event_loop, breaker, queue = EventLoop.here(), CircuitBreaker(Backoff()), QueueConfig()
    memory = resident_memory() or peak_memory()
    began, cpu = _now(), _cpu()
    journal = AdoptedJournal(hold, event_loop)
    for _ in journal.read():
        await anyio.lowlevel.checkpoint()
    read = _now()
    replay = _ToTheBatch(
        ApiClient(HttpClientConfig(api_url="http://127.0.0.1", api_token="token"), None),
        journal,
        breaker,
        ApiLimits(Counters(), queue.max_batch_bytes),
        queue,
        event_loop,
    )
    await replay.run()
    done = _now()
    return Replayed(
        replay.counters.delivered,
        read - began,
        done - read - replay.settle_s,
        replay.settle_s,
        _cpu() - cpu - replay.settle_cpu_s,
        peak_memory() - memory,
    )


def main(loop: str, folder: Path) -> None:
    """Replay the one journal in ``folder``, which is deleted by that."""
    figures = anyio.run(_replay, folder, backend=loop)
    sys.stdout.write(json.dumps(asdict(figures)) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
