"""The goals of this client, each judged by what was measured just now."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.cells import (
    AWAITED,
    CORE_0_1_0,
    CORE_0_5_3,
    OTEL,
    OTEL_WIDE,
    WITH,
    Failure,
    Load,
    System,
)
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
    import_ratio,
)

_DELAYS = (0.0, 0.02, 0.05)
_AT_WORK = [Load("alone", delay, 0, 0).title for delay in _DELAYS]
_DOWN = Load("down", 0.0, 0, 0).title
_TASKS = Load("tasks", 0.02, 0, 0).title
_BURSTS = [Load("burst", delay, 0, 0).title for delay in _DELAYS]


@dataclass(frozen=True)
class Judgement:
    """A goal, what was measured, and whether that reaches it; None: it was not measured."""

    goal: str
    figure: str
    reached: bool | None


def judge(results: Results) -> list[Judgement]:
    """All goals, in the order in which the issue names them."""
    return [
        *_agent_side(results, WITH, 0.4),
        *_agent_side(results, AWAITED, 0.8),
        *_delivery(results),
        *_cpu(results),
        *_requests(results),
        _import(results),
        _memory(results),
    ]


def _agent_side(results: Results, form: System, limit: float) -> list[Judgement]:
    judgements: list[Judgement] = []
    for load in (*_AT_WORK, _DOWN):
        ratio = results.ratio(load, form, OTEL, AGENT)
        goal = f"agent side, {form.name}, {load.partition(':')[0]}: <= {limit:g} of OpenTelemetry's"
        judgements.append(_at_most(goal, ratio, limit, _pair(results, load, form, OTEL, AGENT)))
    return judgements


def _delivery(results: Results) -> list[Judgement]:
    judgements: list[Judgement] = []
    for official in (CORE_0_1_0, CORE_0_5_3):
        ratio = results.ratio(_TASKS, WITH, official, DELIVERED)
        pair = _pair(results, _TASKS, WITH, official, DELIVERED)
        goal = f"delivered/s, {_TASKS}: >= 50x {official.name}"
        judgements.append(_at_least(goal, ratio, 50, pair))
    ratio = results.ratio(_TASKS, WITH, OTEL_WIDE, DELIVERED)
    pair = _pair(results, _TASKS, WITH, OTEL_WIDE, DELIVERED)
    # The default queue of OpenTelemetry loses spans here; this one does not.
    goal = f"delivered/s, {_TASKS}: >= {OTEL_WIDE.name}"
    judgements.append(_at_least(goal, ratio, 1, pair))
    lost = results.spread(_TASKS, WITH, LOST)
    judgements.append(_at_most(f"spans lost, {_TASKS}: none", lost, 0, ""))
    return judgements


def _cpu(results: Results) -> list[Judgement]:
    judgements: list[Judgement] = []
    for load in (_BURSTS[1], _TASKS):
        ratio = results.ratio(load, WITH, OTEL_WIDE, CPU)
        pair = _pair(results, load, WITH, OTEL_WIDE, CPU)
        goal = f"CPU per 1,000 spans, {load}: <= {OTEL_WIDE.name}"
        judgements.append(_at_most(goal, ratio, 1, pair))
    return judgements


def _requests(results: Results) -> list[Judgement]:
    return [
        _at_most(
            f"requests per span, {load}: <= 0.02", results.spread(load, WITH, REQUESTS), 0.02, ""
        )
        for load in _BURSTS
    ]


def _import(results: Results) -> Judgement:
    ratio = import_ratio(results, "ours", "opentelemetry")
    return _at_most("import: <= 0.5 of OpenTelemetry's", ratio, 0.5, "")


def _memory(results: Results) -> Judgement:
    goal = "1,000,000 spans: memory within 10 MB of that after 10,000"
    outcome = results.growth.get(MILLION)
    if outcome is None:
        return Judgement(goal, "not measured", None)
    if isinstance(outcome, Failure):
        return Judgement(goal, f"failed: {outcome.reason}", False)
    report = outcome.report
    if report.early_mb is None or report.late_mb is None:
        return Judgement(goal, "this system does not tell its memory", None)
    grown = report.late_mb - report.early_mb
    figure = f"{grown:+.1f} MB, {report.recorded:,} spans recorded, {outcome.lost:,} lost"
    done = report.recorded == MILLION.spans and outcome.lost == 0
    return Judgement(goal, figure, done and grown <= 10)


def _at_most(goal: str, spread: Spread | None, limit: float, pair: str) -> Judgement:
    if spread is None:
        return Judgement(goal, "not measured", None)
    return Judgement(goal, f"{spread.median:.3g}{pair}", spread.median <= limit)


def _at_least(goal: str, spread: Spread | None, limit: float, pair: str) -> Judgement:
    if spread is None:
        return Judgement(goal, "not measured", None)
    return Judgement(goal, f"{spread.median:.3g}{pair}", spread.median >= limit)


def _pair(results: Results, load: str, ours: System, other: System, metric: Metric) -> str:
    """The two figures behind a ratio."""
    mine, theirs = results.spread(load, ours, metric), results.spread(load, other, metric)
    if mine is None or theirs is None:
        return ""
    return f" ({mine.median:.4g} to {theirs.median:.4g})"
