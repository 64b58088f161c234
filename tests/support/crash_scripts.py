"""Scripts of an agent that is killed: what each of its processes records, and where it dies."""

from __future__ import annotations

from functools import cache
from typing import Literal, TypeAlias

from hypothesis import strategies as st
from msgspec import Struct

Backend = Literal["asyncio", "trio"]


class Span(Struct, frozen=True, tag=True):
    """A span around ``steps``.

    ``form``: ``created`` is ``create_span()`` and ``finish_span()``; ``started`` has no block, and
    its end may be ``left`` to that of the run; ``thread`` is a ``with`` in a thread, around
    nothing. ``kind``: ``late`` gets its payload from ``start()``; ``large`` is too large for the
    API; the API refuses ``refused``, and the parent of ``orphan``.
    """

    form: Literal["with", "async with", "started", "created", "thread"]
    steps: tuple[Step, ...] = ()
    end: Literal["complete", "failed", "cancelled", "skipped", "left"] = "complete"
    kind: Literal["plain", "late", "large", "refused", "orphan"] = "plain"


class Quality(Struct, frozen=True, tag=True):
    """A quality payload of the run."""


class Pause(Struct, frozen=True, tag=True):
    """Other tasks have some turns."""


class Flush(Struct, frozen=True, tag=True):
    """All that is recorded so far is delivered, unless that takes long."""


class Away(Struct, frozen=True, tag=True):
    """The API cannot be reached from now on, or can be again (``over``)."""

    over: bool = False


class Both(Struct, frozen=True, tag=True):
    """Two tasks at once."""

    first: tuple[Step, ...]
    second: tuple[Step, ...]


Step: TypeAlias = Span | Quality | Pause | Flush | Away | Both


class Run(Struct, frozen=True):
    """A run around ``steps``. ``form``: the scope of a run, or its explicit steps."""

    form: Literal["scope", "steps"]
    steps: tuple[Step, ...] = ()
    end: Literal["complete", "failed", "cancelled"] = "complete"


class Kill(Struct, frozen=True):
    """Where a process is killed: the ``number``-th time that it gets to the point of this name, or
    to any point. See :mod:`support.crash_points`."""

    number: int
    point: str | None = None


class Life(Struct, frozen=True):
    """What one process does, beside the adoption of what earlier ones left.

    ``together``: its runs are open at the same time. ``is_away``: the API cannot be reached at its
    beginning, for a moment if there are no runs.
    """

    runs: tuple[Run, ...] = ()
    kill: Kill | None = None
    together: bool = False
    is_away: bool = False


class Crash(Struct, frozen=True):
    """Processes that die, one after another. So many ``adopters`` follow, and live.

    ``most``: how many operations a request has at most. ``given_ids``, ``has_bulk``: what the API
    knows. ``report_at_once``: spans are reported when they are opened. ``sync``: see
    ``journal_sync``.
    """

    lives: tuple[Life, ...]
    backend: Backend = "asyncio"
    most: int = 3
    given_ids: bool = True
    has_bulk: bool = True
    report_at_once: bool = False
    sync: Literal["process", "disk"] = "process"
    adopters: int = 1


NESTED = Life(
    (
        Run(
            "scope",
            (
                Span(
                    "with",
                    (
                        Span("async with", (Span("with"), Quality()), end="failed"),
                        Flush(),
                        Span("with", end="skipped"),
                        Span("started", (Span("thread"),), kind="late"),
                        Span("with", (Flush(),), end="cancelled"),
                    ),
                ),
                Span("created", (Pause(), Span("with"))),
                Span("started", end="left"),
            ),
        ),
    )
)
"""Spans in spans, told early by ``start()``, by a child, and not at all."""

TWO_RUNS = Life(
    (
        Run("steps", (Span("async with", (Span("created", (Flush(),)),)), Quality()), "failed"),
        Run("scope", (Span("with", (Flush(), Span("with")), end="cancelled"), Span("started"))),
    ),
    together=True,
)

PROVISIONAL = Life(
    (
        Run(
            "steps",
            (
                Span("with", (Span("started"),)),
                Span("created", (Away(over=True), Flush(), Span("with", kind="late"))),
                Quality(),
            ),
        ),
    ),
    is_away=True,
)
"""A run whose registration found no API, and which got its id later."""

REFUSED = Life(
    (
        Run(
            "scope",
            (
                Span(
                    "async with",
                    (
                        Flush(),
                        Span("started", (Span("with", (Span("with"),)), Flush()), kind="refused"),
                        Span("with", (Span("with"),), kind="large"),
                        Flush(),
                        Span("started", (Flush(),), kind="orphan"),
                        Span("with", kind="refused"),
                    ),
                ),
            ),
        ),
    )
)
"""An operation that the API refuses, a parent that it refuses, and a payload that is too large."""


LARGE = Life(
    (
        Run(
            "scope",
            (
                Span("with", (*(Span("with", kind="large"),) * 9, Span("started", (Flush(),)))),
                *(Span("started", (Span("with", kind="large"),)),) * 5,
            ),
        ),
    )
)
"""A journal of several files."""


@cache
def _steps() -> st.SearchStrategy[tuple[Step, ...]]:
    kinds = st.sampled_from(["plain"] * 5 + ["late", "large", "refused", "orphan"])
    ends = st.sampled_from(["complete"] * 4 + ["failed", "cancelled", "skipped", "left"])
    forms = st.sampled_from(["with", "async with", "started", "created", "thread"])
    leaf = st.one_of(
        st.builds(Span, forms, st.just(()), ends, kinds),
        st.sampled_from([Flush(), Flush(), Pause(), Quality()]),
    )
    step = st.recursive(
        leaf,
        lambda inner: st.one_of(
            st.builds(Span, forms, st.lists(inner, max_size=4).map(tuple), ends, kinds),
            st.builds(
                Both,
                st.lists(inner, min_size=1, max_size=2).map(tuple),
                st.lists(inner, min_size=1, max_size=2).map(tuple),
            ),
        ),
        max_leaves=8,
    )
    return st.lists(step, min_size=1, max_size=4).map(tuple)


def _points_of(steps: tuple[Step, ...]) -> int:
    """About how many points the recording and the sending of these steps have."""
    total = 0
    for step in steps:
        if isinstance(step, Span):
            total += 25 + _points_of(step.steps)
        elif isinstance(step, Both):
            total += _points_of(step.first) + _points_of(step.second)
    return total


@st.composite
def _lives(draw: st.DrawFn, least: int) -> Life:
    """A process with so many runs or more that is killed somewhere, most of the time."""
    ends = st.sampled_from(["complete", "complete", "failed", "cancelled"])
    run = st.builds(Run, st.sampled_from(["scope", "steps"]), _steps(), ends)
    runs = tuple(draw(st.lists(run, min_size=least, max_size=2)))
    is_away = draw(st.sampled_from([False, False, False, True]))
    if is_away and runs:
        first = runs[0]
        place = draw(st.integers(0, len(first.steps)))
        steps = (*first.steps[:place], Away(over=True), *first.steps[place:])
        runs = (Run(first.form, steps, first.end), *runs[1:])
    points = 60 + sum(20 + _points_of(run.steps) for run in runs)
    return Life(runs, Kill(draw(st.integers(1, points))), draw(st.booleans()), is_away)


@st.composite
def crashes(draw: st.DrawFn, backend: Backend) -> Crash:
    has_bulk = draw(st.sampled_from([True, True, True, False]))
    return Crash(
        (draw(_lives(1)), *draw(st.lists(_lives(0), max_size=2))),
        backend,
        most=draw(st.sampled_from([1, 2, 3, 100])),
        given_ids=draw(st.sampled_from([True, True, True, False])),
        has_bulk=has_bulk,
        report_at_once=draw(st.sampled_from([False, False, False, True])),
        sync=draw(st.sampled_from(["process", "process", "process", "disk"])),
        # Without bulk, nothing tells an operation that is refused from an API that refuses all: of
        # several in a row, a process that ends at once gives one up.
        adopters=1 if has_bulk else 6,
    )
