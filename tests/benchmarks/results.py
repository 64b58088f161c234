"""The results of all rounds; medians with their spread, and ratios."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

from benchmarks.cells import Failure, Figures, Load, System
from benchmarks.drivers.job import Cost
from benchmarks.growth import Step
from benchmarks.imports import ImportFigures


@dataclass(frozen=True)
class Metric:
    """A column. ``of`` gives None where a cell has no such figure."""

    title: str
    of: Callable[[Figures], float | None]


AGENT = Metric("agent µs", lambda figures: figures.report.agent_median_us)
AGENT_P99 = Metric("p99 µs", lambda figures: figures.report.agent_p99_us)
DELIVERED = Metric("delivered/s", lambda figures: figures.delivered_per_second)
CPU = Metric("CPU s/1,000", lambda figures: figures.cpu_per_thousand)
REQUESTS = Metric("requests/span", lambda figures: figures.requests_per_span)
MEMORY = Metric("peak MB", lambda figures: figures.report.peak_mb)
LOST = Metric("lost", lambda figures: figures.lost)

METRICS = (AGENT, AGENT_P99, DELIVERED, CPU, REQUESTS, MEMORY)


@dataclass(frozen=True)
class Spread:
    """A median over rounds, with the least and the largest."""

    median: float
    least: float
    largest: float

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Spread | None:
        """None if a round has no value: a median of the others would flatter."""
        known = [value for value in values if value is not None]
        if not known or len(known) < len(values):
            return None
        return cls(median(known), min(known), max(known))


@dataclass
class Results:
    """All measurements, in their order; ``costs`` by the names of ``costs.COST_SYSTEMS``."""

    cells: dict[tuple[str, str], list[Figures | Failure]] = field(
        default_factory=lambda: defaultdict[tuple[str, str], list[Figures | Failure]](list)
    )
    growth: dict[Step, Figures | Failure] = field(default_factory=dict[Step, Figures | Failure])
    imports: dict[str, ImportFigures] = field(default_factory=dict[str, ImportFigures])
    costs: dict[str, Cost] | Failure = field(default_factory=dict[str, Cost])

    def add(self, load: Load, system: System, outcome: Figures | Failure) -> None:
        """Keep the outcome of one more round of a cell."""
        self.cells[load.title, system.name].append(outcome)

    def figures(self, load_title: str, system: System) -> list[Figures]:
        """The figures of all rounds; none if one of them failed."""
        outcomes = self.cells.get((load_title, system.name), [])
        figures = [outcome for outcome in outcomes if isinstance(outcome, Figures)]
        return figures if len(figures) == len(outcomes) else []

    def failures(self, load_title: str, system: System) -> list[Failure]:
        """The rounds of this cell that failed."""
        outcomes = self.cells.get((load_title, system.name), [])
        return [outcome for outcome in outcomes if isinstance(outcome, Failure)]

    def spread(self, load_title: str, system: System, metric: Metric) -> Spread | None:
        """A figure over the rounds; None if one of them has no such figure."""
        return Spread.of([metric.of(figures) for figures in self.figures(load_title, system)])

    def ratio(self, load_title: str, ours: System, other: System, metric: Metric) -> Spread | None:
        """Ours by theirs, round by round: both have the drift between rounds."""
        pairs = zip(self.figures(load_title, ours), self.figures(load_title, other), strict=False)
        ratios: list[float | None] = []
        for mine, theirs in pairs:
            above, below = metric.of(mine), metric.of(theirs)
            ratios.append(above / below if above is not None and below else None)
        return Spread.of(ratios)
