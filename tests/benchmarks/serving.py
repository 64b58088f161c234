"""The server process, which the runner starts and ends."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.drivers.job import control

_TESTS = Path(__file__).parents[1]


class ServerProcess:
    """The one server of all systems."""

    def __init__(self, api_port: int, control_port: int) -> None:
        self.api_port = api_port
        self.api_url = f"http://127.0.0.1:{api_port}"
        self.control_port = control_port

    def prepare(self, delay: float) -> None:
        """Listen, reset the counters, and answer ``delay`` seconds after each request."""
        control(self.control_port, reset=True, delay=delay, listening=True)
        deadline = time.monotonic() + 5
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", self.api_port, timeout=5)
            try:
                connection.request("GET", "/api/v1/ping")
                connection.getresponse().read()
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
            else:
                return
            finally:
                connection.close()

    def counts(self) -> dict[str, int]:
        """The counters (``server.Counts``)."""
        return control(self.control_port)


@contextmanager
def serve() -> Generator[ServerProcess]:
    """Start the server with this Python; kill it when the block is left."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.server"],
        cwd=_TESTS,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        ports = json.loads(process.stdout.readline() or "{}")
        if not ports:
            raise RuntimeError("the server of the benchmarks did not start")
        yield ServerProcess(ports["api"], ports["control"])
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
