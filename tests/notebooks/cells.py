"""The cells of the tests: the same notebook without ``await``, and with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import anyio
from jupyter_client.manager import KernelManager
from support.harness import StoredRun, stored_runs

from prefactor_core.local import open_local_prefactor

SECONDS = 300
"""After which a cell or a kernel has failed, also on a busy machine."""

OPEN = """
from prefactor_core import *
options = dict(api_url="local:runs.db", schema_registry=SchemaRegistry())

@traced("agent:tool")
def search(query):
    return len(query)
"""

SYNCHRONOUS = {
    "open": "client = open_prefactor_sync(**options).open()",
    "start": """
instance = client.create_agent_instance("tested-agent", {"name": "Notebook"})
instance.start_nowait()
""",
    "begin": "session = instance.create_span_nowait('agent:run')",
    "nest": "with instance.span('agent:step'): search('in a step')",
    "end": "instance.finish_span_nowait(session)",
    "finish": "instance.finish_nowait()",
    "close": "client.close()",
}

AWAITING = {
    "open": "client = open_prefactor(**options); await client.initialize()",
    "start": """
instance = await client.create_agent_instance("tested-agent", {"name": "Notebook"})
await instance.start()
""",
    "begin": "session = await instance.create_span('agent:run')",
    "nest": """
import asyncio
async with instance.span('agent:step'):
    await asyncio.create_task(asyncio.sleep(0))
    search('in a step')
""",
    "end": "await instance.finish_span(session)",
    "finish": "await instance.finish()",
    "close": "await client.close()",
}

WAYS = {
    "without await": SYNCHRONOUS,
    "with await": AWAITING,
    "both by turns": {
        step: (SYNCHRONOUS if step in ("begin", "end") else AWAITING)[step] for step in SYNCHRONOUS
    },
}


def _variables(folder: Path) -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PREFACTOR_")}
    return {**inherited, "IPYTHONDIR": str(folder / "ipython")}  # not the history of a developer


class Kernel:
    """A kernel of Jupyter that runs cells in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.manager = KernelManager(kernel_name="python3")
        self.manager.start_kernel(cwd=str(folder), env=_variables(folder))
        self._connect()

    def _connect(self) -> None:
        self._client = self.manager.blocking_client()
        self._client.start_channels()
        self._client.wait_for_ready(timeout=SECONDS)

    def run(self, cell: str) -> dict[str, Any]:
        """Run a cell; what it shows, by MIME type. Raises :class:`AssertionError` if it fails."""
        shown: dict[str, Any] = {"stdout": "", "stderr": ""}

        def note(message: dict[str, Any]) -> None:
            content = message["content"]
            if message["msg_type"] == "stream":
                shown[content["name"]] += content["text"]
            elif message["msg_type"] == "execute_result":
                shown.update(content["data"])

        reply = self._client.execute_interactive(cell, timeout=SECONDS, output_hook=note)
        assert reply["content"]["status"] == "ok", "\n".join(reply["content"]["traceback"])
        return shown

    def kill_and_restart(self) -> None:
        self._client.stop_channels()
        self.manager.restart_kernel(now=True)
        self._connect()

    def close(self) -> None:
        """Shut the kernel down, as a restart does first."""
        self._client.stop_channels()
        self.manager.shutdown_kernel()


SHELL = """
import json, sys
from IPython.core.interactiveshell import InteractiveShell

shell = InteractiveShell.instance()
for cell in json.loads(sys.argv[1]):
    shell.run_cell(cell).raise_error()
"""


def run_in_ipython(cells: Sequence[str], folder: Path) -> str:
    """Run cells in the shell of IPython, to the end of its process; what they print."""
    result = subprocess.run(
        [sys.executable, "-c", SHELL, json.dumps(cells)],
        cwd=folder,
        env=_variables(folder),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, ""), result.stdout + result.stderr
    return result.stdout


def run_in_jupyter(cells: Iterable[str], folder: Path) -> str:
    """Run cells in a kernel of Jupyter, and shut it down; what they print."""
    kernel = Kernel(folder)
    try:
        shown = [kernel.run(cell) for cell in cells]
    finally:
        kernel.close()
    assert [output["stderr"] for output in shown] == [""] * len(shown)
    return "".join(output["stdout"] for output in shown)


RUN_CELLS: dict[str, Callable[[Sequence[str], Path], str]] = {
    "IPython": run_in_ipython,
    "Jupyter": run_in_jupyter,
}


def runs_in(folder: Path, agent_id: str = "tested-agent") -> list[StoredRun]:
    """The runs that were recorded in a folder, the oldest first."""

    async def read() -> list[StoredRun]:
        async with open_local_prefactor(str(folder / "runs.db")) as app:
            return await stored_runs(app, agent_id)

    return anyio.run(read)
