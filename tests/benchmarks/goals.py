"""The goals of this client, each judged by the measurements of this run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.cells import (
    AWAITED,
    CORE_0_1_0,
    CORE_0_5_3,
    NESTED,
    OTEL_FLAT,
    OTEL_JSON,
    OTEL_WIDE,
    TYPED,
    WITH,
    Failure,
    Load,
    System,
)
from benchmarks.drivers.job import Cost
from benchmarks.environments import OPENTELEMETRY, OURS
from benchmarks.growth import MILLION
from benchmarks.results import (
    AGENT,
    CPU,
    DELIVERED,
    LOST,
    REQUESTS,
    Metric,
    Results,
    Spread,
)

_DELAYS = (0.0, 0.02, 0.05)
_DOWN = Load("down", 0.0, 0, 0).title
_TASKS = Load("tasks", 0.02, 0, 0).title
_BURSTS = [Load("burst", delay, 0, 0).title for delay in _DELAYS]

_COSTS = (
    (WITH, OTEL_FLAT, 0.3),
    (WITH, OTEL_JSON, 0.25),
    (AWAITED, OTEL_FLAT, 0.5),
    (TYPED, OTEL_FLAT, 0.6),
    # Each of the outer nine spans takes two operations, a create and a finish.
    (NESTED, WITH, 1.1),
)


@dataclass(frozen=True)
class Judgement:
    """A goal, the figure measured, and whether it reaches the goal; None: not measured."""

    goal: str
    figure: str
    reached: bool | None


def judge(results: Results) -> list[Judgement]:
    """All goals: the cost of a span first, then delivery and memory."""
    return [
        *_costs(results),
        _import(results),
        *_while_down(results),
        *_delivery(results),
        *_cpu(results),
        *_requests(results),
        _memory(results),
    ]


def _costs(results: Results) -> list[Judgement]:
    return [
        *(_cost_ratio(results, ours, other, limit) for ours, other, limit in _COSTS),
        _cost_count(results, "calls", lambda cost: cost.calls, 45),
        _cost_count(results, "files", lambda cost: cost.files, 6),
    ]


def _cost_ratio(results: Results, ours: System, other: System, limit: float) -> Judgement:
    goal = f"CPU of a span, {ours.name}: <= {limit:g} of {other.name}"
    if isinstance(results.costs, Failure):
        return Judgement(goal, f"failed: {results.costs.reason}", False)
    if not results.costs:
        return Judgement(goal, "not measured", None)
    mine, theirs = results.costs[ours.name].cpu_us, results.costs[other.name].cpu_us
    ratio = mine / theirs
    return Judgement(goal, f"{ratio:.3g} ({mine:.1f} to {theirs:.1f} µs)", ratio <= limit)


def _cost_count(
    results: Results, what: str, count: Callable[[Cost], float | None], limit: int
) -> Judgement:
    goal = f"{what} of a span, {WITH.name}: <= {limit}"
    if isinstance(results.costs, Failure):
        return Judgement(goal, f"failed: {results.costs.reason}", False)
    if not results.costs or (counted := count(results.costs[WITH.name])) is None:
        return Judgement(goal, "not measured", None)
    return Judgement(goal, f"{counted:g}", counted <= limit)


def _while_down(results: Results) -> list[Judgement]:
    judgements: list[Judgement] = []
    for form, limit in ((WITH, 0.3), (AWAITED, 0.5)):
        ratio = results.ratio(_DOWN, form, OTEL_FLAT, AGENT)
        goal = f"wall time of a span, API down, {form.name}: <= {limit:g} of {OTEL_FLAT.name}"
        pair = _pair(results, _DOWN, form, OTEL_FLAT, AGENT)
        judgements.append(at_most(goal, ratio, limit, pair))
    return judgements


def _delivery(results: Results) -> list[Judgement]:
    judgements: list[Judgement] = []
    for official in (CORE_0_1_0, CORE_0_5_3):
        ratio = results.ratio(_TASKS, WITH, official, DELIVERED)
        pair = _pair(results, _TASKS, WITH, official, DELIVERED)
        goal = f"delivered/s, {_TASKS}: >= 50x {official.name}"
        judgements.append(at_least(goal, ratio, 50, pair))
    ratio = results.ratio(_TASKS, WITH, OTEL_WIDE, DELIVERED)
    pair = _pair(results, _TASKS, WITH, OTEL_WIDE, DELIVERED)
    # The default queue of OpenTelemetry loses spans here; this one does not.
    goal = f"delivered/s, {_TASKS}: >= {OTEL_WIDE.name}"
    judgements.append(at_least(goal, ratio, 1, pair))
    lost = results.spread(_TASKS, WITH, LOST)
    judgements.append(at_most(f"spans lost, {_TASKS}: none", lost, 0, ""))
    return judgements


def _cpu(results: Results) -> list[Judgement]:
    judgements: list[Judgement] = []
    for load in (_BURSTS[1], _TASKS):
        ratio = results.ratio(load, WITH, OTEL_WIDE, CPU)
        pair = _pair(results, load, WITH, OTEL_WIDE, CPU)
        goal = f"CPU per 1,000 spans, {load}: <= {OTEL_WIDE.name}"
        judgements.append(at_most(goal, ratio, 1, pair))
    return judgements


def _requests(results: Results) -> list[Judgement]:
    return [
        at_most(
            f"requests per span, {load}: <= 0.02", results.spread(load, WITH, REQUESTS), 0.02, ""
        )
        for load in _BURSTS
    ]


def _import(results: Results) -> Judgement:
    goal = "CPU of import prefactor_core: <= 0.45 of OpenTelemetry's"
    if not results.imports:
        return Judgement(goal, "not measured", None)
    mine = results.imports[OURS.name].imported
    theirs = results.imports[OPENTELEMETRY.name].imported
    if isinstance(mine, Failure):
        return Judgement(goal, f"failed: {mine.reason}", False)
    if isinstance(theirs, Failure):
        return Judgement(goal, f"failed: {theirs.reason}", False)
    ratio = mine.cpu_s / theirs.cpu_s
    figure = f"{ratio:.3g} ({mine.cpu_s * 1e3:.0f} to {theirs.cpu_s * 1e3:.0f} ms)"
    return Judgement(goal, figure, ratio <= 0.45)


def _memory(results: Results) -> Judgement:
    goal = "1,000,000 spans: memory within 10 MB of that after 10,000"
    outcome = results.growth.get(MILLION)
    if outcome is None:
        return Judgement(goal, "not measured", None)
    if isinstance(outcome, Failure):
        return Judgement(goal, f"failed: {outcome.reason}", False)
    report = outcome.report
    if report.early_mb is None or report.late_mb is None:
        return Judgement(goal, "this system does not report memory", None)
    grown = report.late_mb - report.early_mb
    figure = f"{grown:+.1f} MB, {report.recorded:,} spans recorded, {outcome.lost:,} lost"
    done = report.recorded == MILLION.spans and outcome.lost == 0
    return Judgement(goal, figure, done and grown <= 10)


def at_most(goal: str, spread: Spread | None, limit: float, pair: str = "") -> Judgement:
    """Judge the median of a figure that is to be small. ``pair``: what it was made of."""
    if spread is None:
        return Judgement(goal, "not measured", None)
    return Judgement(goal, f"{spread.median:.3g}{pair}", spread.median <= limit)


def at_least(goal: str, spread: Spread | None, limit: float, pair: str = "") -> Judgement:
    """As :func:`at_most`, for a figure that is to be large."""
    if spread is None:
        return Judgement(goal, "not measured", None)
    return Judgement(goal, f"{spread.median:.3g}{pair}", spread.median >= limit)


def _pair(results: Results, load: str, ours: System, other: System, metric: Metric) -> str:
    """The two figures behind a ratio."""
    mine, theirs = results.spread(load, ours, metric), results.spread(load, other, metric)
    if mine is None or theirs is None:
        return ""
    return f" ({mine.median:.4g} to {theirs.median:.4g})"
