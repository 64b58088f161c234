"""A real redis-server on a socket of its own, for each test."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest


class RedisProcess:
    """A redis-server that listens at ``url``; ``path`` is its socket."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self.path = f"{folder}/redis.sock"
        self.url = f"unix://{self.path}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> None:
        self._process = subprocess.Popen(
            [
                *("redis-server", "--port", "0", "--unixsocket", self.path),
                *("--dir", self._folder, "--save", "", "--appendonly", "yes", *options),
            ],
            stdout=subprocess.DEVNULL,
        )
        until = time.monotonic() + 10
        while not Path(self.path).exists():
            assert time.monotonic() < until
            time.sleep(0.005)

    def start_soon(self) -> None:
        """Start again, in a while."""
        threading.Timer(0.7, self.start).start()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None
            Path(self.path).unlink(missing_ok=True)


@pytest.fixture
def redis() -> Iterator[RedisProcess]:
    if shutil.which("redis-server") is None:
        pytest.fail("redis-server is not installed")
    with TemporaryDirectory(prefix="pf-") as folder:  # the path of a socket must be short
        server = RedisProcess(folder)
        server.start()
        try:
            yield server
        finally:
            server.kill()
