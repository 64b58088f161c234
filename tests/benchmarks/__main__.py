"""``python -m benchmarks``: run everything in turns, print the tables and the goals."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

from msgspec import to_builtins

from benchmarks.cells import SYSTEMS, Failure, Figures, System, is_due, loads, run_load_cell
from benchmarks.costs import measure_costs
from benchmarks.environments import ENVIRONMENTS
from benchmarks.goals import judge
from benchmarks.growth import steps
from benchmarks.imports import measure_imports
from benchmarks.results import Results
from benchmarks.serving import ServerProcess, serve
from benchmarks.tables import (
    make_console,
    show_costs,
    show_goals,
    show_growth,
    show_imports,
    show_loads,
)

_PARTS = ("cost", "alone", "tasks", "burst", "paced", "down", "growth", "import")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the options ask for."""
    options = _parser().parse_args(arguments)
    wanted = set(options.only or _PARTS)
    systems = [
        system
        for system in SYSTEMS
        if not options.system or any(word in system.name for word in options.system)
    ]
    rounds = options.rounds or (1 if options.quick else 3)
    console = make_console()
    for environment in ENVIRONMENTS:
        _report_progress(f"environment {environment.name}")
        environment.make()
        console.print(f"{environment.name}: {environment.versions()}", markup=False)
    console.print(
        f"Python {sys.version.split()[0]}. Loads: medians over {rounds} rounds (least..largest). "
        "'agent µs' is the agent's wall time in a span. It includes the loop's turns only where "
        "the form itself waits (awaited, prefactor-core). 'CPU' is that of the whole process.\n",
        markup=False,
    )

    results = Results()
    with serve() as server:
        try:
            _measure(server, results, systems, wanted, rounds, quick=options.quick)
            if options.growth and "growth" in wanted:
                for step in steps(quick=options.quick):
                    _report_progress(f"growth: {step.title}")
                    results.growth[step] = step.run(server)
        except KeyboardInterrupt:
            _report_progress("interrupted: the tables hold the measurements until now")
    show_costs(console, results)
    show_loads(console, results, systems)
    show_growth(console, results)
    show_imports(console, results)
    show_goals(console, judge(results))
    if options.json is not None:
        _write(options.json, results)


def _measure(
    server: ServerProcess,
    results: Results,
    systems: Sequence[System],
    wanted: Container[str],
    rounds: int,
    *,
    quick: bool,
) -> None:
    if "cost" in wanted:
        _report_progress("the cost of a span")
        results.costs = measure_costs(server, rounds=40 if quick else 100)
    for number in range(rounds):
        for load in loads(quick=quick):
            if load.name not in wanted:
                continue
            # Each round begins with another system: none is always the first.
            for index in range(len(systems)):
                system = systems[(index + number) % len(systems)]
                if is_due(system, load, number, quick=quick):
                    _report_progress(f"round {number + 1} of {rounds}: {load.title}: {system.name}")
                    results.add(load, system, run_load_cell(server, system, load, time_limit=20))
    if "import" in wanted:
        _report_progress("import")
        server.prepare(0.0)
        url = f"http://127.0.0.1:{server.api_port}"
        results.imports = measure_imports(url, rounds=5 if quick else 12, official=not quick)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="just bench",
        description="Measures this client beside the official SDK and OpenTelemetry.",
    )
    parser.add_argument("--rounds", type=int, help="how often each cell is run (3)")
    parser.add_argument("--quick", action="store_true", help="a small run of about a minute")
    parser.add_argument(
        "--only",
        action="append",
        choices=_PARTS,
        help="leave out the rest; may be given several times",
    )
    parser.add_argument(
        "--system", action="append", help="only systems with this in their name; several times"
    )
    parser.add_argument(
        "--growth",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="the table that grows the work",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE")
    return parser


def _write(path: Path, results: Results) -> None:
    cells = [
        {"load": load, "system": system, "rounds": [_plain(one) for one in outcomes]}
        for (load, system), outcomes in results.cells.items()
    ]
    figures = {
        "costs": to_builtins(results.costs),
        "cells": cells,
        "growth": {step.title: _plain(one) for step, one in results.growth.items()},
        "imports": to_builtins(results.imports),
    }
    path.write_text(json.dumps(figures, indent=1) + "\n")


def _plain(outcome: Figures | Failure) -> dict[str, Any]:
    return outcome.as_dict() if isinstance(outcome, Figures) else {"failed": outcome.reason}


def _report_progress(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
