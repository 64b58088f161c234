"""Clocks and memory of a driver; standard library only."""

from __future__ import annotations

import sys
import time
from array import array
from pathlib import Path

from job import Report

now = time.perf_counter_ns


class Measurement:
    """Collects what one run took; :meth:`add` takes the nanoseconds of one span."""

    def __init__(self, time_limit: float) -> None:
        self._spans = array("q")
        self.add = self._spans.append
        self.recorded = 0
        self.raised = 0
        self.error: str | None = None
        self._time_limit = time_limit
        self.start()

    def start(self) -> None:
        """The first span comes now."""
        self._wall = time.perf_counter()
        self._cpu = time.process_time()

    def over(self) -> bool:
        """Whether the time limit has passed: then no more spans are recorded."""
        return time.perf_counter() - self._wall > self._time_limit

    def fail(self, error: Exception) -> None:
        """The system raised into the agent."""
        self.raised += 1
        if self.error is None:
            self.error = f"{type(error).__name__}: {error}"

    def report(self) -> Report:
        """The client is closed."""
        wall = time.perf_counter() - self._wall
        cpu = time.process_time() - self._cpu
        taken = sorted(self._spans) or [0]
        return Report(
            agent_median_us=taken[len(taken) // 2] / 1e3,
            agent_p99_us=taken[len(taken) * 99 // 100] / 1e3,
            wall_s=wall,
            cpu_s=cpu,
            peak_mb=peak_memory(),
            recorded=self.recorded,
            raised=self.raised,
            error=self.error,
        )


def peak_memory() -> float:
    """The largest resident memory so far, in MB."""
    # Not ru_maxrss where there is another way: on Linux it starts with the parent's.
    if (of_process := _status("VmHWM")) is not None:
        return of_process
    import resource

    unit = 1e6 if sys.platform == "darwin" else 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def resident_memory() -> float | None:
    """The resident memory now, in MB; None where the system does not say."""
    return _status("VmRSS")


def _status(name: str) -> float | None:
    path = Path("/proc/self/status")
    if not path.exists():
        return None
    for line in path.read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024 / 1e6
    return None
