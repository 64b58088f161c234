"""The agent of ``relay_agent`` in a process that tests let go on, and kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from support.relays import LONG_WAIT, REPOSITORY


class AgentProcess:
    """The agent of ``relay_agent``: 40 runs, of which some steps are recorded at a time."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def go_on(self, steps: int) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(b"%d\n" % steps)
        self._process.stdin.flush()

    def pause(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(LONG_WAIT)

    def end(self) -> dict[str, Any]:
        """Let it deliver; its statistics."""
        output, _ = self._process.communicate(timeout=LONG_WAIT)
        assert self._process.returncode == 0
        statistics: dict[str, Any] = msgspec.json.decode(output)
        return statistics


@contextmanager
def agent_process(url: str, backend: str, log: Path) -> Generator[AgentProcess]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFACTOR_")}
    environment["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "support.relay_agent", url, backend],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
        try:
            yield AgentProcess(process)
        finally:
            process.kill()
            process.communicate(timeout=LONG_WAIT)
