"""Producers that begin together, and relays with the time that they have used."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from benchmarks.relay.producing import Produced

_ROOT = Path(__file__).parents[3]
_TICKS = os.sysconf("SC_CLK_TCK")


def produce(
    kind: str,
    url: str,
    producers: int,
    operations: int,
    loop: str = "asyncio",
    runs: int = 1,
    meanwhile: Callable[[], object] = lambda: None,
) -> Sequence[Produced]:
    """Let ``producers`` processes write ``operations`` each, all at once; call ``meanwhile`` again
    and again until all have ended."""
    words = [sys.executable, "-m", "benchmarks.relay.producing", kind, url, str(operations)]
    words += [str(runs), loop]
    started = [
        subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # it says that no relay is alive
            env=_environment(),
        )
        for _ in range(producers)
    ]
    for process in started:
        assert process.stdout is not None
        process.stdout.readline()
    for process in started:
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.flush()
    while any(process.poll() is None for process in started):
        meanwhile()
        time.sleep(0.02)
    outputs = [process.communicate()[0] for process in started]
    return [msgspec.json.decode(output, type=Produced) for output in outputs]


@contextmanager
def relays(redis: str, api_url: str, number: int) -> Generator[Sequence[int]]:
    """Run relays, each in a process; yield their ids. They end in order."""
    words = [sys.executable, "-m", "prefactor_core", "relay", "--redis", redis]
    words += ["--api-url", api_url]
    started = [
        subprocess.Popen(words, env=_environment(), stderr=subprocess.DEVNULL)
        for _ in range(number)
    ]
    try:
        yield [process.pid for process in started]
    finally:
        for process in started:
            process.send_signal(signal.SIGTERM)
        for process in started:
            process.wait()


def cpu_of(process: int) -> float:
    """The seconds of processor time that a process has used (Linux)."""
    words = Path(f"/proc/{process}/stat").read_text("utf-8").rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / _TICKS


def wait_for(count: int, seconds: float, counted: Callable[[], int]) -> None:
    """Wait until ``counted`` returns ``count``."""
    deadline = time.monotonic() + seconds
    while counted() < count:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{counted()} of {count} were delivered in {seconds:g} s")
        time.sleep(0.02)


def _environment() -> dict[str, str]:
    path = os.pathsep.join([str(_ROOT / "tests"), str(_ROOT)])
    return {**os.environ, "PYTHONPATH": path, "PREFACTOR_API_TOKEN": "token"}
