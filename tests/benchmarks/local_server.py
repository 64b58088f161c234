"""``python -m benchmarks.local_server``: tables of agents that record beside a local server.

100 agents at once by way of the server; the same number in eight processes that write to the file
which it serves; four clients, and one, that record 5,000 spans a second. All the while a page of
the server is open, and gets every change.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import anyio
import httpx
from rich.table import Table

from benchmarks.tables import make_console
from prefactor_core import PrefactorCoreClient, open_prefactor
from prefactor_core.span_types import LLMCall, LLMResult, TokenUsage, standard_types

_TURN = 0.02
"""Seconds between two groups of spans of an agent that records many."""

_WARM = 5.0
"""Seconds until the memory of the server is measured for the first time."""

_COLUMNS = (
    "",
    "spans",
    "a second",
    "missing spans",
    "missing runs",
    "lost",
    "retries",
    "server's log",
    "drain",
    "server CPU",
    "clients' CPU",
    "server RSS: at 5 s, most, end",
    "events/s",
    "Ctrl-C",
)

_TEXT = "Which mountain is higher, Olympus Mons or Mount Everest? " * 5


@dataclass
class Job:
    """What a process records: ``agents``, each with a client of its own and ``rate`` spans a
    second, for ``seconds``."""

    api_url: str
    agents: int
    rate: float
    seconds: float


@dataclass
class Recorded:
    """What the clients of a process say of their work."""

    spans: int = 0
    lost: int = 0
    retries: int = 0
    errors: list[str] = field(default_factory=list)
    drain: float = 0.0
    cpu: float = 0.0


@dataclass
class Load:
    """A load: ``processes``, which share ``agents``, by way of the server or in its file."""

    title: str
    processes: int
    agents: int
    rate: float
    by_server: bool


LOADS = (
    Load("100 agents, by the server", 1, 100, 5, by_server=True),
    Load("100 agents in 8 processes, in its file", 8, 100, 5, by_server=False),
    Load("4 clients, 5,000 spans/s together, by the server", 1, 4, 1_250, by_server=True),
    Load("1 client, 5,000 spans/s, by the server", 1, 1, 5_000, by_server=True),
    Load("1 client, 5,000 spans/s, in its file", 1, 1, 5_000, by_server=False),
)


async def _record(job: Job, recorded: Recorded) -> None:
    """One agent: one client, one run."""
    async with open_prefactor(
        api_url=job.api_url, api_token="any", schema_registry=standard_types(), drain_timeout=60
    ) as client:
        async with client.agent_instance("load", {"name": "An agent"}) as instance:
            began = anyio.current_time()
            done = 0
            while (passed := anyio.current_time() - began) < job.seconds:
                while done < passed * job.rate:
                    done += 1
                    call = LLMCall(model="small-1", prompt=_TEXT)
                    with instance.span(call) as span:
                        usage = TokenUsage(prompt_tokens=50, completion_tokens=9)
                        span.set_result(LLMResult(response="Olympus Mons", token_usage=usage))
                await anyio.sleep(max(_TURN, 1 / job.rate))
            recorded.spans += done
        ended = anyio.current_time()
    recorded.drain = max(recorded.drain, anyio.current_time() - ended)
    _add_balance(client, recorded)


def _add_balance(client: PrefactorCoreClient, recorded: Recorded) -> None:
    balance = client.statistics()
    recorded.lost += balance.lost
    recorded.retries += balance.retries
    if balance.last_error is not None:
        recorded.errors.append(balance.last_error)


async def _work(job: Job) -> Recorded:
    recorded = Recorded()
    async with anyio.create_task_group() as tasks:
        for _ in range(job.agents):
            tasks.start_soon(_record, job, recorded)
    recorded.cpu = time.process_time()
    return recorded


class Server:
    """``python -m prefactor_core serve`` on a file, with a page open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.memory: list[float] = []
        self.events = 0
        self._process = subprocess.Popen(
            [sys.executable, "-m", "prefactor_core", "serve", "--db", str(path), "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        self.url = next(word for word in line.split() if word.startswith("http"))
        threading.Thread(target=self._follow, daemon=True).start()
        threading.Thread(target=self._measure, daemon=True).start()

    def _follow(self) -> None:
        with (
            contextlib.suppress(httpx.HTTPError),
            httpx.stream("GET", f"{self.url}-/events", timeout=None) as stream,
        ):
            for line in stream.iter_lines():
                self.events += line.startswith("event: ")

    def _measure(self) -> None:
        status = Path(f"/proc/{self._process.pid}/status")
        with contextlib.suppress(OSError, IndexError):  # no such folder, or the server has ended
            while True:
                kilobytes = status.read_text().partition("VmRSS:")[2].split()[0]
                self.memory.append(int(kilobytes) / 1024)
                time.sleep(1)

    def cpu(self) -> float:
        """Seconds of processor time; 0 where /proc does not say them."""
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return 0.0

    def kill(self) -> None:
        """End the server if :meth:`stop` has not."""
        self._process.kill()
        self._process.communicate()

    def stop(self) -> tuple[float, str]:
        """End the server; the seconds that this took, and what it printed beside its link."""
        began = time.perf_counter()
        self._process.send_signal(signal.SIGINT)
        said, _ = self._process.communicate(timeout=60)
        return time.perf_counter() - began, said


@contextlib.contextmanager
def _serving() -> Generator[Server]:
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder) / "runs.db")
        try:
            yield server
        finally:
            server.kill()


def _run(load: Load, seconds: float) -> list[str]:
    """A row of the table."""
    with _serving() as server:
        api_url = server.url.rstrip("/") if load.by_server else f"local:{server.path}"
        began = time.perf_counter()
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.local_server", "--job", json.dumps(asdict(job))],
                stdout=subprocess.PIPE,
                text=True,
            )
            for job in _jobs(load, api_url, seconds)
        ]
        outputs = [process.communicate()[0] for process in processes]
        took = time.perf_counter() - began
        all_recorded = [Recorded(**json.loads(output)) for output in outputs]
        time.sleep(0.5)  # the page gets the last changes
        cpu, events = server.cpu(), server.events
        stopping, said = server.stop()
        spans = sum(recorded.spans for recorded in all_recorded)
        stored, runs = _stored(server.path)
        errors = [error for recorded in all_recorded for error in recorded.errors]
        for error in sorted({*errors, *said.splitlines()}):
            sys.stderr.write(f"{load.title}: {error}\n")
        warm = server.memory[int(_WARM) :] or [0.0]
        return [
            load.title,
            f"{spans:,}",
            f"{spans / seconds:,.0f}",
            f"{spans - stored:,}",
            str(load.agents - runs),
            str(sum(recorded.lost for recorded in all_recorded)),
            str(sum(recorded.retries for recorded in all_recorded)),
            str(len(said.splitlines())),
            f"{max(recorded.drain for recorded in all_recorded):.1f} s",
            f"{cpu / took:.0%}",
            f"{sum(recorded.cpu for recorded in all_recorded) / took:.0%}",
            f"{warm[0]:.0f} / {max(warm):.0f} / {warm[-1]:.0f} MB",
            f"{events / took:.1f}",
            f"{stopping:.2f} s",
        ]


def _jobs(load: Load, api_url: str, seconds: float) -> list[Job]:
    shares = [load.agents // load.processes] * load.processes
    shares[0] += load.agents - sum(shares)
    return [Job(api_url, share, load.rate, seconds) for share in shares]


def _stored(path: Path) -> tuple[int, int]:
    """The complete spans and runs in the file."""
    count = "SELECT count(*) FROM {} WHERE status = 'complete'"
    with contextlib.closing(sqlite3.connect(path)) as db:
        (spans,) = db.execute(count.format("agent_spans")).fetchone()
        (runs,) = db.execute(count.format("agent_instances")).fetchone()
    return spans, runs


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all loads, or one job of them."""
    parser = argparse.ArgumentParser(prog="just bench-server", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="how long each load lasts (60)")
    parser.add_argument("--only", help="only loads with this in their title")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.CRITICAL)  # the table counts what would be logged
    if options.job:
        recorded = anyio.run(_work, Job(**json.loads(options.job)))
        sys.stdout.write(json.dumps(asdict(recorded)))
        return
    table = Table(title=f"A local server under load, {options.seconds:g} s each")
    for name in _COLUMNS:
        table.add_column(name, justify="right" if name else "left")
    for load in LOADS:
        if options.only is None or options.only in load.title:
            sys.stderr.write(f"{load.title}\n")
            table.add_row(*_run(load, options.seconds))
    make_console().print(table)


if __name__ == "__main__":
    main()
