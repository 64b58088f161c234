"""The tables, readable as plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.cells import (
    AWAITED,
    OTEL_FLAT,
    OTEL_JSON,
    SYSTEMS,
    WITH,
    Failure,
    Figures,
    System,
)
from benchmarks.environments import OURS
from benchmarks.goals import Judgement
from benchmarks.imports import Took
from benchmarks.results import METRICS, Results, Spread

_WIDTH = 200


def make_console() -> Console:
    """A console as wide as the tables, also if the output is not a terminal."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _WIDTH
    return console


def show_loads(console: Console, results: Results, systems: Sequence[System]) -> None:
    """One table for each load: the systems, and our ratio to each of the others."""
    for load in dict.fromkeys(load for load, _ in results.cells):
        console.print(_load_table(results, load, systems))
        for system in systems:
            for failure in results.failures(load, system)[:1]:
                console.print(f"{system.name} failed: {failure.reason}", markup=False)
            for figures in results.figures(load, system)[:1]:
                report = figures.report
                if report.error:
                    console.print(
                        f"{system.name} raised into the agent at {report.raised} of "
                        f"{report.recorded} spans: {report.error}",
                        markup=False,
                    )


def _load_table(results: Results, load: str, systems: Sequence[System]) -> Table:
    table = _table(load, "", *(metric.title for metric in METRICS), "lost")
    for system in systems:
        if results.failures(load, system):
            table.add_row(system.name, "failed")
        elif figures := results.figures(load, system):
            cells = [_spread(results.spread(load, system, metric)) for metric in METRICS]
            table.add_row(system.name, *cells, _lost(figures))
    table.add_section()
    for ours in (WITH, AWAITED):
        for other in SYSTEMS:
            if other.environment is ours.environment:
                continue
            ratios = [results.ratio(load, ours, other, metric) for metric in METRICS]
            if any(ratios):
                table.add_row(f"{ours.name} / {other.name}", *map(_ratio, ratios))
    return table


def show_growth(console: Console, results: Results) -> None:
    """This client's figures as the work grows."""
    if not results.growth:
        return
    table = _table(
        f"{WITH.name}: the work grows, 0 ms (one round; memory when all is delivered)",
        "",
        *(metric.title for metric in METRICS),
        "MB at 10,000",
        "MB at the end",
        "lost",
    )
    for step, outcome in results.growth.items():
        if isinstance(outcome, Failure):
            table.add_row(step.title, f"failed: {outcome.reason}")
            continue
        report = outcome.report
        short = "" if report.recorded >= step.spans else f", stopped at {report.recorded:,}"
        table.add_row(
            step.title + short,
            *(_number(metric.of(outcome)) for metric in METRICS),
            _number(report.early_mb),
            _number(report.late_mb),
            _lost([outcome]),
        )
    console.print(table)


def show_costs(console: Console, results: Results) -> None:
    """The agent's cost of a span: no request is sent while the clock runs."""
    if isinstance(results.costs, Failure):
        console.print(f"the cost of a span failed: {results.costs.reason}", markup=False)
        return
    if not results.costs:
        return
    table = _table(
        "the agent's cost of a span: best of interleaved rounds, exports off the clock",
        "",
        *("CPU µs", "wall µs", "calls", "files"),
        *(f"CPU / {other.name}" for other in (OTEL_FLAT, OTEL_JSON)),
    )
    for name, cost in results.costs.items():
        table.add_row(
            name,
            *(_number(value) for value in (cost.cpu_us, cost.wall_us, cost.calls, cost.files)),
            *(
                f"x {_number(cost.cpu_us / results.costs[other.name].cpu_us)}"
                for other in (OTEL_FLAT, OTEL_JSON)
            ),
        )
    console.print(table)


def show_imports(console: Console, results: Results) -> None:
    """Milliseconds beyond a Python that does nothing."""
    if not results.imports:
        return
    table = _table(
        "import, ms beyond a bare Python: best of the rounds",
        "",
        *("import: CPU", "wall", "import and open a client: CPU", "wall"),
    )
    for name, figures in results.imports.items():
        table.add_row(name, *_milliseconds(figures.imported), *_milliseconds(figures.opened))
    console.print(table)
    cpu, wall = _milliseconds(results.imports[OURS.name].given)
    console.print(f"of ours, anyio and msgspec take {cpu} (wall: {wall})\n", markup=False)


def show_rows(
    console: Console, title: str, rows: Mapping[str, Mapping[str, Spread | float | None]]
) -> None:
    """A table of any figures, with a column for each name in the first row."""
    table = _table(title, "", *next(iter(rows.values())))
    for label, figures in rows.items():
        cells = figures.values()
        table.add_row(label, *(_spread(x) if isinstance(x, Spread) else _number(x) for x in cells))
    console.print(table)


def show_goals(console: Console, judgements: Sequence[Judgement]) -> None:
    """Each goal, its figure, and whether it is reached."""
    table = Table(title="goals", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("", "goal", "measured"):
        table.add_column(column)
    words = {True: "reached", False: "NOT REACHED", None: "-"}
    for judgement in judgements:
        table.add_row(words[judgement.reached], judgement.goal, judgement.figure)
    console.print(table)


def _table(title: str, first: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column(first, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", overflow="fold")
    return table


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    if value >= 999.5:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return "-"
    if spread.least == spread.largest:
        return _number(spread.median)
    return f"{_number(spread.median)} ({_number(spread.least)}..{_number(spread.largest)})"


def _ratio(spread: Spread | None) -> str:
    return "-" if spread is None else f"x {_number(spread.median)}"


def _lost(figures: Sequence[Figures]) -> str:
    return f"{max(one.lost for one in figures):,} of {figures[0].report.recorded:,}"


def _milliseconds(took: Took | Failure | None) -> tuple[str, str]:
    """CPU and wall time."""
    if took is None:
        return "-", "-"
    if isinstance(took, Failure):
        return f"failed: {took.reason}", "-"
    return _number(took.cpu_s * 1e3), _number(took.wall_s * 1e3)
