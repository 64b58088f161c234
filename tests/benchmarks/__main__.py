"""``python -m benchmarks``: run everything in turns, print the tables and the goals."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.cells import (
    AWAITED,
    OTEL,
    SYSTEMS,
    WITH,
    Figures,
    System,
    is_due,
    loads,
    run_load_cell,
)
from benchmarks.environments import ENVIRONMENTS
from benchmarks.goals import judge
from benchmarks.growth import steps
from benchmarks.imports import measure_imports
from benchmarks.results import Results
from benchmarks.serving import ServerProcess, serve
from benchmarks.tables import make_console, show_goals, show_growth, show_imports, show_loads

_LOADS = ("alone", "tasks", "burst", "paced", "down")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the options ask for."""
    options = _parser().parse_args(arguments)
    wanted = set(options.only or [*_LOADS, "growth", "import"])
    systems = [
        system
        for system in SYSTEMS
        if not options.system or any(word in system.name for word in options.system)
    ]
    rounds = options.rounds or (1 if options.quick else 3)
    console = make_console()
    for environment in ENVIRONMENTS:
        _tell(f"environment {environment.name}")
        environment.make()
        console.print(f"{environment.name}: {environment.versions()}", markup=False)
    console.print(
        f"Python {sys.version.split()[0]}; medians over {rounds} rounds (least..largest); "
        "'agent µs' is the agent's time in a span: a turn that it gives is not in it, except "
        "where the form itself waits (awaited, prefactor-core).\n",
        markup=False,
    )

    results = Results()
    with serve() as server:
        try:
            _measure(server, results, systems, wanted, rounds, quick=options.quick)
            if options.growth and "growth" in wanted:
                for step in steps(quick=options.quick):
                    _tell(f"growth: {step.title}")
                    results.growth[step] = step.run(server)
        except KeyboardInterrupt:
            _tell("interrupted: what there is so far")
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
    wanted: set[str],
    rounds: int,
    *,
    quick: bool,
) -> None:
    for number in range(rounds):
        for load in loads(quick=quick):
            if load.name not in wanted:
                continue
            # Each round begins with another system: none is always the first.
            for index in range(len(systems)):
                system = systems[(index + number) % len(systems)]
                if is_due(system, load, number, quick=quick):
                    _tell(f"round {number + 1} of {rounds}: {load.title}: {system.name}")
                    results.add(load, system, run_load_cell(server, system, load, time_limit=20))
    if "import" in wanted:
        _tell("import")
        server.prepare(0.0)
        url = f"http://127.0.0.1:{server.api_port}"
        results.imports = measure_imports(url, rounds=3 if quick else 12)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="just bench",
        description=f"Measures {WITH.name} and {AWAITED.name}, beside the official SDK and "
        f"{OTEL.name}.",
    )
    parser.add_argument("--rounds", type=int, help="how often each cell is run (3)")
    parser.add_argument("--quick", action="store_true", help="a small run of about a minute")
    parser.add_argument(
        "--only",
        action="append",
        choices=[*_LOADS, "growth", "import"],
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
        {
            "load": load,
            "system": system,
            "rounds": [
                one.as_dict() if isinstance(one, Figures) else {"failed": one.reason}
                for one in outcomes
            ],
        }
        for (load, system), outcomes in results.cells.items()
    ]
    growth = {
        step.title: one.as_dict() if isinstance(one, Figures) else {"failed": one.reason}
        for step, one in results.growth.items()
    }
    path.write_text(json.dumps({"cells": cells, "growth": growth}, indent=1) + "\n")


def _tell(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
