"""Throughput from the agent to the API, with and without a journal; and the files of a journal
while the API is there."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.lowlevel

from benchmarks.client import open_client
from benchmarks.drivers.job import Bodies
from benchmarks.results import Spread
from benchmarks.serving import ServerProcess
from prefactor_core import AgentInstanceHandle

_TASKS = 50
_VERSION = {"name": "Benchmarks", "external_identifier": "v1"}

_SPANS_A_SECOND = 2_000
_TURN = 0.01
_SHRUNK = 4 * 1024 * 1024
"""``journal_max_bytes`` in the miniature: files of 1 MiB in place of 8."""

_bodies = Bodies(400)


@dataclass(frozen=True)
class Throughput:
    """Spans delivered a second, each over the rounds; and the ratio of a round's two figures.
    ``lost``: spans that the server did not see begin and end."""

    without: Spread
    journaled: Spread
    ratio: Spread
    lost: int


async def measure_throughput(
    server: ServerProcess, folder: Path, rounds: int, spans: int
) -> Throughput:
    """Record by 50 tasks at once, and leave the client's scope; the clock stops then."""
    rates: tuple[list[float], list[float]] = ([], [])
    lost = 0
    for number in range(-1, rounds):  # the first one warms up
        for index in (number % 2, (number + 1) % 2):
            server.prepare(0.0)
            began = time.perf_counter()
            await _deliver(server, folder / "delivery" if index else None, spans)
            took = time.perf_counter() - began
            lost += spans - server.counts()["delivered"]
            if number >= 0:
                rates[index].append(spans / took)
    ratios = [with_ / without for without, with_ in zip(*rates, strict=True)]
    spreads = [Spread.of(values) for values in (*rates, ratios)]
    without, journaled, ratio = [spread for spread in spreads if spread is not None]
    return Throughput(without, journaled, ratio, lost)


async def _deliver(server: ServerProcess, journal: Path | None, spans: int) -> None:
    async def agent(instance: AgentInstanceHandle) -> None:
        for _ in range(spans // _TASKS):
            with instance.span("agent:llm", payload=_bodies.payload) as span:
                await anyio.lowlevel.checkpoint()
                span.set_result(_bodies.result)

    async with open_client(server.api_url, journal=journal or "") as client:
        async with client.agent_instance("benchmarks", _VERSION) as instance:
            async with anyio.create_task_group() as group:
                for _ in range(_TASKS):
                    group.start_soon(agent, instance)


@dataclass(frozen=True)
class Folder:
    """The folder of a journal while spans go on: megabytes written in all, the most files and
    megabytes at once, and the files that a closed client leaves."""

    spans: int
    written_mb: float
    most_files: int
    most_mb: float
    left: int


async def measure_folder(server: ServerProcess, folder: Path, seconds: float) -> Folder:
    """An hour of 2,000 spans a second in miniature: fewer seconds, smaller files."""
    server.prepare(0.02)
    journals = folder / "hour"
    most_files = most_bytes = recorded = 0
    ended: dict[Path, int] = {}
    async with open_client(server.api_url, journal=journals, journal_max_bytes=_SHRUNK) as client:
        async with client.agent_instance("benchmarks", _VERSION) as instance:
            due = anyio.current_time()
            while recorded < seconds * _SPANS_A_SECOND:
                for _ in range(int(_SPANS_A_SECOND * _TURN)):
                    with instance.span("agent:llm", payload=_bodies.payload) as span:
                        span.set_result(_bodies.result)
                    recorded += 1
                sizes = {file: file.stat().st_size for file in journals.rglob("*.log")}
                ended.update(sizes)
                most_files = max(most_files, len(sizes))
                most_bytes = max(most_bytes, sum(sizes.values()))
                due += _TURN
                await anyio.sleep_until(due)
    left = len([*journals.rglob("*.*")])
    return Folder(recorded, sum(ended.values()) / 1e6, most_files, most_bytes / 1e6, left)
