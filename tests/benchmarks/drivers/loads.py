"""The loads: how the spans of a run follow each other. The same for every system.

* ``alone``: one task; it gives the loop a turn between two spans.
* ``tasks``: ``job.tasks`` tasks at once; each gives the loop a turn inside every span.
* ``burst``: one loop that never waits, where the system can be used so.
* ``paced``: ``job.rate`` spans per second; a span that comes late is not waited for.

The turns are not part of a span's time, where the system itself does not wait in a span.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from job import Job
from measure import Measurement


class System(Protocol):
    """What a driver gives: three ways to record one span, which tell its time to ``add``."""

    def plain(self, add: Callable[[int], None]) -> None:
        """Record one span, with no await. NotImplementedError where there is no such way."""

    async def awaited(self, add: Callable[[int], None]) -> None:
        """Record one span."""

    async def turning(self, add: Callable[[int], None]) -> None:
        """Record one span, and give the loop a turn inside of it."""


async def run_load(job: Job, system: System, measurement: Measurement) -> None:
    """Record ``job.spans`` spans."""
    match job.load:
        case "alone":
            await _alone(job, system, measurement)
        case "tasks":
            await _tasks(job, system, measurement)
        case "burst":
            await _burst(job, system, measurement)
        case "paced":
            await _paced(job, system, measurement)
        case other:
            raise ValueError(f"no load is called {other!r}")


async def _alone(job: Job, system: System, measurement: Measurement) -> None:
    for _ in range(job.spans):
        if measurement.over():
            break
        await _one(system.awaited, measurement)
        await asyncio.sleep(0)


async def _tasks(job: Job, system: System, measurement: Measurement) -> None:
    async def agent() -> None:
        for _ in range(job.spans // job.tasks):
            if measurement.over():
                break
            await _one(system.turning, measurement)

    await asyncio.gather(*(agent() for _ in range(job.tasks)))


async def _burst(job: Job, system: System, measurement: Measurement) -> None:
    try:
        for _ in range(job.spans):
            system.plain(measurement.add)
            measurement.recorded += 1
    except NotImplementedError:
        for _ in range(job.spans):
            if measurement.over():
                break
            await _one(system.awaited, measurement)


async def _paced(job: Job, system: System, measurement: Measurement) -> None:
    clock = asyncio.get_running_loop().time
    due = clock()
    for _ in range(job.spans):
        if measurement.over():
            break
        await _one(system.awaited, measurement)
        due = max(due + 1 / job.rate, clock())
        await asyncio.sleep(due - clock())


async def _one(
    record: Callable[[Callable[[int], None]], Awaitable[None]], measurement: Measurement
) -> None:
    try:
        await record(measurement.add)
    except Exception as error:
        measurement.fail(error)
    measurement.recorded += 1
