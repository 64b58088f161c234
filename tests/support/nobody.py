"""A process that shows a database file, and may write to no folder.

For each line of its input it writes what it shows of the file that its argument names, as JSON.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TextIO

import anyio
import httpx
from support.local_api import opened

from prefactor_core.exceptions import PrefactorValueError
from prefactor_core.local.server import open_site


async def show(path: str, lines: Iterable[str], output: TextIO) -> None:
    async with open_site(path, port=0, read_only=True) as site:
        transport = httpx.ASGITransport(site.app)
        async with httpx.AsyncClient(transport=transport, base_url=site.url) as http:
            for _ in lines:
                page = (await http.get("-/runs")).json()
                agents = (await http.get("api/v1/agent")).json()
                seen = {"runs": len(page["runs"]), "agents": len(agents["summaries"])}
                output.write(f"{json.dumps(seen)}\n")
                output.flush()


async def rehearse() -> None:
    with TemporaryDirectory() as folder:
        path = str(Path(folder, "runs.db"))
        async with opened(path) as api:
            await api.start()
        await show(path, ["\n"], io.StringIO())


if __name__ == "__main__":
    if os.geteuid() == 0:  # who may write everywhere
        # Import all of it first: nobody may be unable to read the files of Python.
        anyio.run(rehearse)
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    try:
        anyio.run(show, sys.argv[1], sys.stdin, sys.stdout)
    except PrefactorValueError as error:
        sys.stdout.write(f"{json.dumps({'error': str(error)})}\n")
