"""``python -m benchmarks.exits``: tables of how a program starts and ends while the API fails.

Each row is a process: it opens a client, records one run with 20 spans, and ends. The columns are
the seconds from the opening until the run's block is entered, and from the end of that block's
body until the process has ended; the lost operations; and the lines on standard error. Both
time-outs, ``registration_timeout`` and ``drain_timeout``, are one second.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory

from msgspec import Struct
from rich import box
from rich.markup import escape
from rich.table import Table

from benchmarks.failing import open_failing_apis
from benchmarks.tables import make_console

_LIMIT = 20.0
_EXPECTED = 1.0 + 1.0 + 3.0
"""Seconds that a start-up or an exit may take: both time-outs, and the interpreter's own end."""

_PROGRAM = """
import atexit, asyncio, faulthandler, json, logging, os, resource, signal, socket, sys, time
import anyio
from prefactor_core import PrefactorCoreError, SchemaRegistry, open_prefactor, open_prefactor_sync

faulthandler.enable()  # SIGABRT shows where a process hangs
logging.basicConfig(format="%(levelname)s: %(message)s")
url, fault = sys.argv[1:]
registry = SchemaRegistry()
registry.register_type("agent:tool", {"type": "object"})
OPTIONS = dict(
    api_url=url, api_token="token-of-this-benchmark", schema_registry=registry,
    registration_timeout=1, drain_timeout=1,
)
AGENT = ("an-agent", {"name": "An agent", "external_identifier": "v1"})
times = {}
clients = []

if "disk full" in fault:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (32 * 1024, 32 * 1024))
if fault == "resolver hung":
    socket.getaddrinfo = lambda *args, **options: time.sleep(60)

def mark(what):
    times[what] = time.monotonic()

def report():
    # Registered before the client's own handlers, so called after them.
    counts = clients[0].statistics() if clients else None
    figures = dict(times, accepted=counts.accepted, delivered=counts.delivered) if counts else times
    print(json.dumps(figures), flush=True)

atexit.register(report)

def keep(client):
    mark("opening")
    clients.append(client)
    return client

async def record(client, stop=None):
    async with client.agent_instance(*AGENT) as instance:
        mark("entered")
        for _ in range(20):
            with instance.span("agent:tool", payload={"tool": "search"}):
                await anyio.sleep(0.01)
        mark("ended")
        if stop is not None:
            stop()
            await anyio.sleep_forever()

async def scope(stop=None):
    async with keep(open_prefactor(**OPTIONS)) as client:
        await record(client, stop)

async def by_calls():
    client = keep(open_prefactor(**OPTIONS))
    await client.initialize()
    try:
        await record(client)
    finally:
        await client.close()

def record_sync(client):
    with client.agent_instance(*AGENT) as instance:
        mark("entered")
        for _ in range(20):
            with instance.span("agent:tool", payload={"tool": "search"}):
                time.sleep(0.01)
        mark("ended")

def scope_sync():
    with keep(open_prefactor_sync(**OPTIONS)) as client:
        record_sync(client)

def never_left_sync():
    record_sync(keep(open_prefactor_sync(**OPTIONS)).__enter__())

def stopped():
    loop = asyncio.new_event_loop()
    loop.add_signal_handler(signal.SIGTERM, loop.stop)
    task = loop.create_task(scope(lambda: os.kill(os.getpid(), signal.SIGTERM)))
    task.add_done_callback(lambda _: loop.stop())
    loop.run_forever()
    loop.close()
    if task.done():
        task.result()

try:
    RUN
except PrefactorCoreError as error:
    mark("raised")
    print(f"RAISED: {type(error).__name__}: {error}", file=sys.stderr)
"""

_WAYS = {
    ("asyncio", "scope"): "anyio.run(scope)",
    ("asyncio", "initialize/close"): "anyio.run(by_calls)",
    ("asyncio", "loop stopped"): "stopped()",
    ("trio", "scope"): 'anyio.run(scope, backend="trio")',
    ("trio", "initialize/close"): 'anyio.run(by_calls, backend="trio")',
    ("sync", "scope"): "scope_sync()",
    ("sync", "never left"): "never_left_sync()",
}
"""A trio loop cannot be stopped; a synchronous client has no ``initialize()``."""


class Exit(Struct, kw_only=True):
    """The start and end of one process; times in seconds, None if it did not get that far.

    ``start``: until the block of the run is entered, or until that raises.
    ``stderr``: the lines on standard error; ``hangs``: whether the process had to be killed.
    """

    api: str
    loop: str
    way: str
    start: float | None
    end: float | None
    lost: int | None
    accepted: int
    stderr: list[str]
    hangs: bool

    @property
    def findings(self) -> str:
        """The faults found; empty if there are none."""
        wrong = {
            "hangs": self.hangs,
            "slow": max(self.start or 0, self.end or 0) > _EXPECTED,
            "lost in silence": bool(self.lost) and not self.stderr,
            "traceback": any(line.startswith("Traceback") for line in self.stderr),
            "many lines": len(self.stderr) > 4,
        }
        return ", ".join(name for name, holds in wrong.items() if holds)


async def _measure(api: str, address: str, loop: str, way: str) -> Exit:
    code = _PROGRAM.replace("RUN", _WAYS[loop, way])
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("PREFACTOR_") and not name.lower().endswith("_proxy")
    }
    process = await asyncio.create_subprocess_exec(
        # A connection that was left open must show, too.
        *(sys.executable, "-W", "default::ResourceWarning", "-c", code, address, api),
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    reading = asyncio.ensure_future(process.communicate())
    done, _ = await asyncio.wait([reading], timeout=_LIMIT)
    ended = time.monotonic()
    if not done:
        process.send_signal(signal.SIGABRT)
    out, err = await reading
    figures: dict[str, float] = json.loads(out.splitlines()[-1]) if out.strip() else {}
    accepted = int(figures.get("accepted", 0))

    def seconds(since: str, until: float | None) -> float | None:
        return until - figures[since] if since in figures and until is not None else None

    return Exit(
        api=api,
        loop=loop,
        way=way,
        start=seconds("opening", figures.get("entered", figures.get("raised"))),
        end=seconds("ended", ended) if done else None,
        lost=accepted - int(figures["delivered"]) if "delivered" in figures else None,
        accepted=accepted,
        stderr=err.decode(errors="replace").splitlines(),
        hangs=not done,
    )


def _rows(exits: Sequence[Exit], words: int) -> Table:
    table = Table(title="A program's start and end", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("API", "loop", "ended by"):
        table.add_column(column, no_wrap=True)
    for column in ("start s", "end s", "lost", "lines"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("finding")
    table.add_column("stderr", overflow="fold")
    for _, group in groupby(exits, lambda one: one.api):
        for one in group:
            stderr = "\n".join(" ".join(line.split()[:words]) for line in one.stderr[:6])
            table.add_row(
                *(one.api, one.loop, one.way, _seconds(one.start)),
                "hangs" if one.hangs else _seconds(one.end),
                "-" if one.lost is None else f"{one.lost} of {one.accepted}",
                str(len(one.stderr)),
                one.findings,
                escape(stderr),
            )
        table.add_section()
    return table


def _summary(exits: Sequence[Exit]) -> Table:
    table = Table(title="The worst of each", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("API", no_wrap=True)
    for column in ("start s", "end s", "lines", "findings"):
        table.add_column(column, justify="right")
    for api, group in groupby(exits, lambda one: one.api):
        of_api = list(group)
        table.add_row(
            api,
            _seconds(max((one.start for one in of_api if one.start is not None), default=None)),
            "hangs"
            if any(one.hangs for one in of_api)
            else _seconds(max((one.end for one in of_api if one.end is not None), default=None)),
            str(max(len(one.stderr) for one in of_api)),
            str(sum(bool(one.findings) for one in of_api)),
        )
    return table


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


async def _measure_all(only: Sequence[str]) -> list[Exit]:
    with TemporaryDirectory() as folder:
        async with open_failing_apis(Path(folder), len(_WAYS)) as addresses:
            free = asyncio.Semaphore(2)

            async def measure(api: str, number: int, loop: str, way: str) -> Exit:
                async with free:
                    return await _measure(api, addresses[api].format(number), loop, way)

            return await asyncio.gather(
                *(
                    measure(api, number, *way)
                    for api in addresses
                    if api in only or not only
                    for number, way in enumerate(_WAYS)
                )
            )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="benchmarks.exits", description=__doc__)
    parser.add_argument("--only", action="append", default=[], help="an API: '401', 'hung', ...")
    parser.add_argument("--words", type=int, default=14, help="words shown of each line")
    options = parser.parse_args(arguments)
    exits = asyncio.run(_measure_all(options.only))
    console = make_console()
    console.print(_rows(exits, options.words))
    console.print(_summary(exits))


if __name__ == "__main__":
    main()
