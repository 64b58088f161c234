"""``python -m benchmarks.faults``: tables of this client before an API that fails.

Runs that begin together, before an API that answers a part of the requests with 503; many more
runs at once; and an outage of two minutes while spans go on, by 503 and by an API that never
answers.
"""

from __future__ import annotations

import argparse
import logging
import resource
import sys
import time
from collections.abc import Sequence
from typing import Any

import anyio
from rich.table import Table

from benchmarks.client import open_client
from benchmarks.drivers.job import control
from benchmarks.serving import ServerProcess, serve
from benchmarks.tables import make_console
from prefactor_core import PrefactorCoreClient

_RATES = (0.0, 0.02, 0.05, 0.1, 0.2)
_OPERATIONS = 7
_SPANS_A_SECOND = 2_000


class LoopDelay:
    """The longest time that a task waited for the loop after its sleep."""

    longest = 0.0

    async def watch(self) -> None:
        while True:
            before = time.perf_counter()
            await anyio.sleep(0.001)
            self.longest = max(self.longest, time.perf_counter() - before - 0.001)


async def _record_run(client: PrefactorCoreClient) -> None:
    async with client.agent_instance("a", {"name": "An agent"}) as instance:
        for _ in range(2):
            async with instance.span("agent:llm", payload={"prompt": "Hello"}) as span:
                await span.start()
                await anyio.sleep(0.01)


async def _burst(server: ServerProcess, runs: int) -> dict[str, float]:
    """Record ``runs`` runs that begin together, of seven operations each."""
    delay = LoopDelay()
    cpu, began = time.process_time(), time.perf_counter()
    async with anyio.create_task_group() as outer:
        outer.start_soon(delay.watch)
        async with open_client(server.api_url) as client:
            async with anyio.create_task_group() as group:
                for _ in range(runs):
                    group.start_soon(_record_run, client)
        outer.cancel_scope.cancel()
    took = time.perf_counter() - began
    statistics = client.statistics()
    return {
        "runs": runs,
        "s": took,
        "operations/s": runs * _OPERATIONS / took,
        "CPU ms/run": (time.process_time() - cpu) / runs * 1e3,
        "longest loop delay ms": delay.longest * 1e3,
        "requests": statistics.requests,
        "lost": statistics.lost,
    }


async def _outage(
    server: ServerProcess, fault: dict[str, object], seconds: float
) -> dict[str, float]:
    """Record 2,000 spans a second through an outage of so many seconds."""
    delay = LoopDelay()
    options = {"queue_config": {"max_pending_operations": 1_000_000}, "drain_timeout": 120}
    async with anyio.create_task_group() as outer:
        async with open_client(server.api_url, **options) as client:
            async with client.agent_instance("a", {"name": "An agent"}) as instance:

                async def record(until: float) -> None:
                    due = anyio.current_time()
                    while due < until:
                        for _ in range(_SPANS_A_SECOND // 100):
                            with instance.span("agent:llm", payload={"prompt": "Hello"}) as span:
                                span.set_result({"response": "Hi"})
                        due += 0.01
                        await anyio.sleep(max(0.0, due - anyio.current_time()))

                await record(anyio.current_time() + 2)
                await client.flush()
                outer.start_soon(delay.watch)
                memory, requests = _memory(), client.statistics().requests
                cpu = time.process_time()
                control(server.control_port, **fault)
                await record(anyio.current_time() + seconds)
                pending, grown = client.statistics().pending, _memory() - memory
                asked = client.statistics().requests - requests
                control(server.control_port, failure_rate=0.0, hanging=False)
                began, longest = anyio.current_time(), delay.longest
                delay.longest = 0.0
                await client.flush()
                recovered = anyio.current_time() - began
                outer.cancel_scope.cancel()
    statistics = client.statistics()
    return {
        "seconds": seconds,
        "pending": pending,
        "MB": grown,
        "CPU s": time.process_time() - cpu,
        "requests": asked,
        "longest loop delay ms": longest * 1e3,
        "in recovery ms": delay.longest * 1e3,
        "recovered after s": recovered,
        "lost": statistics.lost,
    }


def _memory() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / (1024 if sys.platform != "darwin" else 1024 * 1024)


def _table(title: str, first: str, rows: Sequence[tuple[str, dict[str, float]]]) -> Table:
    table = Table(title=title)
    table.add_column(first)
    for name in rows[0][1]:
        table.add_column(name, justify="right")
    for label, figures in rows:
        table.add_row(label, *(f"{figure:,.1f}".removesuffix(".0") for figure in figures.values()))
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables that the options ask for."""
    parser = argparse.ArgumentParser(prog="benchmarks.faults", description=__doc__)
    parser.add_argument("--backend", choices=("asyncio", "trio"), default="asyncio")
    parser.add_argument("--seconds", type=float, default=120.0, help="how long an outage lasts")
    parser.add_argument("--only", choices=("failures", "many", "outages"), action="append")
    options = parser.parse_args(arguments)
    wanted = options.only or ["failures", "many", "outages"]
    logging.disable(logging.CRITICAL)
    console = make_console()
    with serve() as server:

        def measure(function: Any, *arguments: object) -> dict[str, float]:
            server.prepare(0.02)
            control(server.control_port, failure_rate=0.0, hanging=False)
            result: dict[str, float] = anyio.run(
                function, server, *arguments, backend=options.backend
            )
            return result

        async def failing(server: ServerProcess, rate: float) -> dict[str, float]:
            control(server.control_port, failure_rate=rate)
            return await _burst(server, 600)

        measure(_burst, 10)  # imports
        if "failures" in wanted:
            rows = [(f"{rate:.0%}", measure(failing, rate)) for rate in _RATES]
            console.print(_table("600 runs that begin together", "503", rows))
        if "many" in wanted:
            rows = [(str(runs), measure(_burst, runs)) for runs in (100, 300, 1000)]
            console.print(_table("Runs that begin together", "", rows))
        if "outages" in wanted:
            faults: list[tuple[str, dict[str, object]]] = [
                ("503", {"failure_rate": 1.0}),
                ("no answer", {"hanging": True}),
            ]
            rows = [(name, measure(_outage, fault, options.seconds)) for name, fault in faults]
            console.print(_table(f"An outage at {_SPANS_A_SECOND:,} spans a second", "", rows))


if __name__ == "__main__":
    main()
