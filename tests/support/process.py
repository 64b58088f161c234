"""A Python program in a process of its own, which tests send signals to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
from support.harness import StoredRun, stored_run

from prefactor_core.local import open_local_prefactor

PROGRAM = """
import json, math, os, signal, sys
sys.modules["click"] = None  # for httpx's command line, which takes a third of the start
import anyio
from prefactor_core import SchemaRegistry, open_prefactor

registry = SchemaRegistry()
for name in ("agent:run", "agent:llm", "agent:tool"):
    registry.register_type(name, {"type": "object"})
AGENT = {
    "agent_id": "tested-agent",
    "agent_version": {"name": "Tested agent", "external_identifier": "v1"},
}
backend, options = json.loads(sys.argv[1])


def client_of(api_url="local:runs.db", **options):
    return open_prefactor(
        api_url=api_url, api_token="token-for-tests", schema_registry=registry, **options
    )

"""
"""What each of them begins with."""

RUN = """
anyio.run(main, backend=backend, backend_options=options)
"""
"""What each of them ends with; ``main`` is its own."""


@dataclass
class Process:
    """A program that runs. ``line()`` waits for one that it prints, ``wait()`` for its end."""

    process: subprocess.Popen[str]

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def send(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def wait(self, timeout: float = 60) -> tuple[int, str, str]:
        """Its exit code, and what it printed, less the lines that were read."""
        out, err = self.process.communicate(timeout=timeout)
        return self.process.returncode, out.strip(), err.strip()


@contextmanager
def program(code: str, backend: Any, cwd: Path, *arguments: str) -> Generator[Process]:
    """Runs ``code`` with ``arguments``; it is killed when the block is left."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PREFACTOR_")}
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", PROGRAM + code, json.dumps(backend), *arguments],
        cwd=cwd,
        env=inherited,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield Process(process)
        finally:
            process.kill()


def run_in(path: Path) -> StoredRun:
    """The one run in a database file."""

    async def read() -> StoredRun:
        async with open_local_prefactor(str(path)) as app:
            return await stored_run(app)

    return anyio.run(read)
