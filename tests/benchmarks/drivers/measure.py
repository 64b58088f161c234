"""Clocks of a driver; standard library only."""

from __future__ import annotations

import time
from array import array

from job import Report
from memory import peak_memory

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
