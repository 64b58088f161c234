"""The loads: the ways in which spans follow each other, the same for every system.

* ``alone``: one task; it gives the loop a turn between two spans.
* ``tasks``: ``job.tasks`` tasks at once; each gives the loop a turn inside every span.
* ``burst``: one task that never waits, if the system has such a form.
* ``paced``: ``job.rate`` spans per second; a late span moves the later ones.

A span's time includes the turns only if the system itself waits in a span.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from job import Job
from measure import Measurement


class System(Protocol):
    """Three ways to record one span, which pass its nanoseconds to ``add``."""

    def plain(self, add: Callable[[int], None]) -> None:
        """Record one span without an await. Raises NotImplementedError if there is no such form."""

    async def awaited(self, add: Callable[[int], None]) -> None:
        """Record one span."""

    async def turning(self, add: Callable[[int], None]) -> None:
        """Record one span, and give the loop a turn inside it."""


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
