"""The cost of a span for the agent: rounds of two drivers, one form after another."""

from __future__ import annotations

import json
import subprocess
import threading
from collections import defaultdict
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict

from support.environments import last_line

from benchmarks.cells import (
    AWAITED,
    DRIVERS,
    NESTED,
    OTEL_FLAT,
    OTEL_JSON,
    TYPED,
    WITH,
    Failure,
    System,
)
from benchmarks.drivers.job import Cost, Job
from benchmarks.serving import ServerProcess

COST_SYSTEMS = (WITH, AWAITED, TYPED, NESTED, OTEL_FLAT, OTEL_JSON)

_TIME_LIMIT = 120.0


def measure_costs(server: ServerProcess, *, rounds: int) -> dict[str, Cost] | Failure:
    """The best of so many rounds, by the name of a system of ``COST_SYSTEMS``."""
    costs: dict[str, list[Cost]] = defaultdict(list)
    try:
        server.prepare(0.0)
        with ExitStack() as stack:
            drivers = {
                # Forms of one driver share its process.
                system.driver: stack.enter_context(_driver(server, system))
                for system in (WITH, OTEL_FLAT)
            }
            for number in range(rounds):
                for index in range(len(COST_SYSTEMS)):
                    system = COST_SYSTEMS[(index + number) % len(COST_SYSTEMS)]
                    costs[system.name].append(_ask(drivers[system.driver], system.form))
    except (OSError, RuntimeError) as error:
        return Failure(str(error))
    return {name: _best(of_system) for name, of_system in costs.items()}


@contextmanager
def _driver(server: ServerProcess, system: System) -> Generator[subprocess.Popen[str]]:
    """A driver that measures rounds; it is killed when the block is left, or after a while."""
    job = Job(api_port=server.api_port, control_port=server.control_port, load="cost", spans=0)
    process = system.environment.start([str(DRIVERS / system.driver), json.dumps(asdict(job))])
    watchdog = threading.Timer(_TIME_LIMIT, process.kill)
    watchdog.start()
    try:
        with process:
            try:
                yield process
            finally:
                process.kill()
    finally:
        watchdog.cancel()


def _ask(process: subprocess.Popen[str], form: str) -> Cost:
    """The cost of one round. Raises ``RuntimeError`` and ``OSError`` if the driver is gone."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdin.write(form + "\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise RuntimeError(last_line(process.stderr.read()))
    return Cost(**json.loads(answer))


def _best(costs: list[Cost]) -> Cost:
    return Cost(
        min(cost.cpu_us for cost in costs),
        min(cost.wall_us for cost in costs),
        costs[0].calls,
        costs[0].files,
    )
