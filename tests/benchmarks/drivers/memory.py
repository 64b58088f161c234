"""The memory of this process; standard library only."""

from __future__ import annotations

import sys
from pathlib import Path


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
