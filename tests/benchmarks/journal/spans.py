"""The agent's cost of a ``with`` span: two clients in one process, one of them with a journal."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio

from benchmarks.client import open_client
from benchmarks.drivers.job import Bodies
from benchmarks.results import Spread
from benchmarks.serving import ServerProcess
from prefactor_core import AgentInstanceHandle, PrefactorCoreClient

_SPANS = 240
"""Spans of a round. Below 500 operations the exporter does not begin by itself."""

_ROUNDS = 10
_PACED_SPANS = 1_000
_PACE = 0.001

_now = time.perf_counter_ns
_bodies = Bodies(400)


_QUIET = 4
"""Of so many blocks the quietest one counts: other programs may run on the machine, too."""


@dataclass(frozen=True)
class Cost:
    """Microseconds of a span, each over the quietest quarter of the blocks: without a journal, and
    what it adds."""

    median: Spread
    median_added: Spread
    p99: Spread
    p99_added: Spread


async def measure_tight(server: ServerProcess, folder: Path, blocks: int) -> Cost:
    """Spans one after another in rounds, a client after the other; exports off the clock."""
    made: list[tuple[list[int], list[int]]] = []
    async with _open_both(server, folder) as both:
        for _ in range(blocks):
            times: tuple[list[int], list[int]] = ([], [])
            for number in range(_ROUNDS):
                # The first of a round is another one each time.
                for index in (number % 2, (number + 1) % 2):
                    client, instance = both[index]
                    for _ in range(_SPANS):
                        _record(instance, times[index].append)
                    await client.flush()
            made.append(times)
    return _cost(made[1:])  # the first block warms up


async def measure_paced(server: ServerProcess, folder: Path, blocks: int) -> Cost:
    """A span each millisecond, of the two clients in turns, while both export."""
    made: list[tuple[list[int], list[int]]] = []
    async with _open_both(server, folder) as both:
        for _ in range(blocks):
            times: tuple[list[int], list[int]] = ([], [])
            for number in range(2 * _PACED_SPANS):
                _record(both[number % 2][1], times[number % 2].append)
                await anyio.sleep(_PACE)
            made.append(times)
    return _cost(made[1:])


def _record(instance: AgentInstanceHandle, add: Callable[[int], None]) -> None:
    began = _now()
    with instance.span("agent:llm", payload=_bodies.payload) as span:
        span.set_result(_bodies.result)
    add(_now() - began)


@asynccontextmanager
async def _open_both(
    server: ServerProcess, folder: Path
) -> AsyncGenerator[list[tuple[PrefactorCoreClient, AgentInstanceHandle]]]:
    """A client without a journal and one with it, each with a run."""
    version = {"name": "Benchmarks", "external_identifier": "v1"}
    async with (
        open_client(server.api_url) as without,
        open_client(server.api_url, journal=folder / "spans") as journaled,
        without.agent_instance("benchmarks", version) as one,
        journaled.agent_instance("benchmarks", version) as other,
    ):
        yield [(without, one), (journaled, other)]


def _cost(blocks: list[tuple[list[int], list[int]]]) -> Cost:
    blocks.sort(key=lambda block: sum(quantile(times, 0.5) for times in block))
    del blocks[-(-len(blocks) // _QUIET) :]

    def of(rank: float) -> Iterator[tuple[float, float]]:
        for block in blocks:
            without, journaled = (quantile(times, rank) / 1e3 for times in block)
            yield without, journaled - without

    spreads = [Spread.of(values) for rank in (0.5, 0.99) for values in zip(*of(rank), strict=True)]
    median, median_added, p99, p99_added = [spread for spread in spreads if spread is not None]
    return Cost(median, median_added, p99, p99_added)


def quantile(values: list[int], rank: float) -> int:
    """The value at ``rank`` (0 to 1) of the sorted values."""
    return sorted(values)[min(int(len(values) * rank), len(values) - 1)]
