"""The tables, readable as plain text."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.cells import AWAITED, SYSTEMS, WITH, Failure, Figures, System
from benchmarks.goals import Judgement
from benchmarks.results import METRICS, Results, Spread

_WIDTH = 200


def make_console() -> Console:
    """As wide as the tables, also where the output is no terminal."""
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
    """What grows, and what that does to this client."""
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


def show_imports(console: Console, results: Results) -> None:
    """Milliseconds beyond a Python that does nothing."""
    if not results.imports:
        return
    table = _table("import, ms beyond a bare Python", "", "import", "import and open a client")
    for name, figures in results.imports.items():
        table.add_row(name, _milliseconds(figures.imported), _milliseconds(figures.opened))
    console.print(table)
    given = results.imports["ours"].given
    console.print(f"of ours, anyio and msgspec take {_milliseconds(given)} ms\n", markup=False)


def show_goals(console: Console, judgements: Sequence[Judgement]) -> None:
    """Reached or not, with the figure."""
    table = Table(title="goals", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("", "goal", "measured (median over rounds)"):
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
    if value >= 1000:
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


def _milliseconds(values: Sequence[float] | Failure | None) -> str:
    if isinstance(values, Failure):
        return f"failed: {values.reason}"
    return _spread(Spread.of([value * 1000 for value in values or []]))
