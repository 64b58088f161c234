"""Cells: one system under one load at one answering time, with its figures."""

from __future__ import annotations

import json
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from support.environments import Environment, last_line

from benchmarks.drivers.job import Job, Report
from benchmarks.environments import (
    OFFICIAL_0_1_0,
    OFFICIAL_0_5_3,
    OPENTELEMETRY,
    OURS,
)
from benchmarks.serving import ServerProcess

DRIVERS = Path(__file__).parent / "drivers"


@dataclass(frozen=True)
class System:
    """A system in one form of use. ``waits``: its spans wait for the API."""

    name: str
    environment: Environment
    driver: str
    form: str = ""
    waits: bool = False
    queue_size: int | None = None


WITH = System("ours, with", OURS, "ours.py", "with")
AWAITED = System("ours, awaited", OURS, "ours.py", "awaited")
CORE_0_1_0 = System("prefactor-core 0.1.0", OFFICIAL_0_1_0, "official.py", waits=True)
CORE_0_5_3 = System("prefactor-core 0.5.3", OFFICIAL_0_5_3, "official.py", waits=True)
OTEL_FLAT = System("OpenTelemetry, flat", OPENTELEMETRY, "opentelemetry_sdk.py", "flat")
OTEL_JSON = System("OpenTelemetry, JSON", OPENTELEMETRY, "opentelemetry_sdk.py", "json")
OTEL_WIDE = System(
    "OpenTelemetry, JSON, queue 1M",
    OPENTELEMETRY,
    "opentelemetry_sdk.py",
    "json",
    queue_size=1_000_000,
)

SYSTEMS = (WITH, AWAITED, CORE_0_1_0, CORE_0_5_3, OTEL_FLAT, OTEL_JSON, OTEL_WIDE)

# Forms of which the cost is measured, and nothing else.
TYPED = System("ours, typed", OURS, "ours.py", "typed")
NESTED = System("ours, with, ten deep", OURS, "ours.py", "nested")


@dataclass(frozen=True)
class Load:
    """A load of :mod:`drivers.loads` at an answering time in seconds; or ``down``."""

    name: str
    delay: float
    spans: int
    waiting_spans: int
    """For the systems whose spans wait for the API: these take a second or two."""

    @property
    def down(self) -> bool:
        return self.name == "down"

    @property
    def title(self) -> str:
        if self.down:
            return "down: connections are refused after registration"
        return f"{self.name}, {self.delay * 1000:g} ms"


def loads(*, quick: bool) -> list[Load]:
    """All loads at three answering times, and one with the API down; ``quick``: a few of them."""
    made: list[Load] = []
    for delay, one_by_one, at_once in ((0.0, 300, 600), (0.02, 60, 300), (0.05, 30, 200)):
        made += [
            # No more than OpenTelemetry's queue holds, so that no overflow is measured.
            Load("alone", delay, 2_000, one_by_one),
            Load("tasks", delay, 10_000, at_once),
            Load("burst", delay, 20_000, one_by_one),
            Load("paced", delay, 400, one_by_one),
        ]
    if quick:
        made = [load for load in made if load.delay == 0.02 and load.name != "paced"]
    # A span of the official SDK takes some ten seconds here, and as much again to close.
    return [*made, Load("down", 0.0, 2_000, 1)]


def is_due(system: System, load: Load, round_number: int, *, quick: bool) -> bool:
    """Whether a cell is run in this round: slow cells run once, or not at all if ``quick``."""
    if not system.waits:
        return True
    if load.down:
        return round_number == 0 and not quick
    # A system that waits in each span records a burst as it records one task's spans.
    return not (quick and load.name == "burst")


@dataclass(frozen=True)
class Figures:
    """The figures of one cell in one round.

    ``delivered``: spans that the server saw begin and end; ``lost``: the other recorded spans.
    CPU seconds and requests are divided by the spans delivered: losing spans is no saving.
    """

    report: Report
    counts: dict[str, int]

    @property
    def delivered(self) -> int:
        return self.counts["delivered"]

    @property
    def lost(self) -> int:
        return self.report.recorded - self.delivered

    @property
    def delivered_per_second(self) -> float:
        return self.delivered / self.report.wall_s

    @property
    def cpu_per_thousand(self) -> float | None:
        return self.report.cpu_s * 1000 / self.delivered if self.delivered else None

    @property
    def requests_per_span(self) -> float | None:
        return self.counts["requests"] / self.delivered if self.delivered else None

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self.report), **self.counts}


@dataclass(frozen=True)
class Failure:
    """A cell without figures, and the reason."""

    reason: str


def run_load_cell(
    server: ServerProcess, system: System, load: Load, *, time_limit: float
) -> Figures | Failure:
    """Run one system under one load; never raises for an error of the system."""
    job = Job(
        api_port=server.api_port,
        control_port=server.control_port,
        load="alone" if load.down else load.name,
        form=system.form,
        spans=load.waiting_spans if system.waits else load.spans,
        warm_up=20 if system.waits else 1_000,
        down=load.down,
        queue_size=system.queue_size,
        # Nothing can be delivered there: do not wait for it.
        drain_timeout=1.0 if load.down else None,
        time_limit=time_limit,
    )
    return run_job(server, system, job, load.delay)


def run_job(server: ServerProcess, system: System, job: Job, delay: float) -> Figures | Failure:
    """Run a driver, with a bound on its time; never raises for an error of the driver."""
    try:
        server.prepare(delay)
        output = system.environment.run(
            [str(DRIVERS / system.driver), json.dumps(asdict(job))],
            # Closing takes up to half a minute, by the time-outs of the systems.
            timeout=job.time_limit + 45,
        )
        report = Report(**json.loads(last_line(output)))
        return Figures(report, server.counts())
    except subprocess.TimeoutExpired as error:
        return Failure(f"not done after {error.timeout:g} s")
    except subprocess.CalledProcessError as error:
        return Failure(last_line(error.stderr))
    except (OSError, ValueError, TypeError) as error:
        return Failure(f"{type(error).__name__}: {error}")
