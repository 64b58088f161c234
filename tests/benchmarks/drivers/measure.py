"""Clocks and memory of a driver; standard library only."""

from __future__ import annotations

import sys
import time
from array import array
from pathlib import Path

from job import Report

now = time.perf_counter_ns


class Measurement:
    """The measurements of one run; :meth:`add` takes the nanoseconds of one span."""

    def __init__(self, time_limit: float) -> None:
        self._spans = array("q")
        self.add = self._spans.append
        self.recorded = 0
        self.raised = 0
        self.error: str | None = None
        self._time_limit = time_limit
        self.start()

    def start(self) -> None:
        """Start the clocks, before the first span."""
        self._wall = time.perf_counter()
        self._cpu = time.process_time()

    def over(self) -> bool:
        """Whether the time limit has passed, so that no more spans are recorded."""
        return time.perf_counter() - self._wall > self._time_limit

    def fail(self, error: Exception) -> None:
        """Count an error that the system raised into the agent."""
        self.raised += 1
        if self.error is None:
            self.error = f"{type(error).__name__}: {error}"

    def report(self) -> Report:
        """Stop the clocks, after the client is closed."""
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
    # On Linux, ru_maxrss starts with that of the parent process.
    if (of_process := _status("VmHWM")) is not None:
        return of_process
    import resource

    unit = 1e6 if sys.platform == "darwin" else 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def resident_memory() -> float | None:
    """The resident memory now, in MB; None if the system does not report it."""
    return _status("VmRSS")


def _status(name: str) -> float | None:
    path = Path("/proc/self/status")
    if not path.exists():
        return None
    for line in path.read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024 / 1e6
    return None
