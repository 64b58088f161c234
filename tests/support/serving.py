"""The command line's server, in a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

import httpx
from support.commands import REPOSITORY

WAIT = 60
"""Seconds for what takes one, on a machine that is busy."""


@dataclass
class Serving:
    """A command that prints lines and serves until a signal."""

    process: subprocess.Popen[str]
    lines: Queue[str]

    def line(self, part: str) -> str:
        """The next line that has ``part`` in it."""
        while part not in (line := self.lines.get(timeout=WAIT)):
            assert line, f"it ended without a word about {part!r}"
        return line

    def url(self) -> str:
        """The one link, when the server behind it answers."""
        (url,) = re.findall(r"http://\S+", self.line("http://"))
        # From its first answer on the server handles signals.
        assert httpx.get(url, headers={"Host": "nobody"}, timeout=WAIT).status_code == 403
        return str(url)

    def stop(self, number: int = signal.SIGINT) -> int:
        """Send a signal and wait for the end; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(WAIT)

    def rest(self) -> list[str]:
        """The lines that are left, of a process that has ended."""
        rest: list[str] = []
        while line := self.lines.get(timeout=WAIT):
            rest.append(line)
        return rest


@contextmanager
def serving(*command: str | Path, cwd: Path, **environment: str) -> Generator[Serving]:
    """Run ``python`` with the words of ``command``, and kill it when the block is left."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PREFACTOR_")}
    process = subprocess.Popen(
        [sys.executable, "-W", "error", *command],
        cwd=cwd,
        env={
            **inherited,
            **environment,
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")]),
            "COLUMNS": "200",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines: Queue[str] = Queue()

    def read() -> None:
        assert process.stdout is not None
        with process.stdout as stdout:
            for line in stdout:
                lines.put(line)
        lines.put("")

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield Serving(process, lines)
    finally:
        process.kill()
        process.wait(WAIT)
        reader.join(WAIT)


@contextmanager
def serving_file(path: Path) -> Generator[str]:
    """Serve the database file ``path`` on a free port until the block is left; gives the URL,
    without a slash at the end."""
    command = ["-m", "prefactor_core", "serve", "--db", str(path), "--port", "0"]
    with serving(*command, cwd=path.parent) as server:
        yield server.url().rstrip("/")
        assert server.stop() == 0
