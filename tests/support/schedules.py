"""Programs of an agent, as Hypothesis draws them: trees of steps; :mod:`playing` performs them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal, TypeAlias

from hypothesis import strategies as st

# Powers of two: sums of them are exact, so that things happen at the same moment.
SECONDS = (0.125, 0.25, 0.5, 1.0, 4.0)
LONG = 2000.0

SpanForm = Literal[
    "async with",  # async with instance.span(...)
    "with",
    "started",  # async with, and start() inside
    "by hand",  # start(), and what it ends with, if anything: no block
    "created",  # create_span() and finish_span()
    "traced",  # a function
    "traced, synchronous",  # a function that does nothing or raises
    "traced, a generator",  # the odd steps are those of who iterates it
]
RunForm = Literal["scope", "steps", "left to the client"]


@dataclass(frozen=True)
class Sleep:
    seconds: float


@dataclass(frozen=True)
class Checkpoint: ...


@dataclass(frozen=True)
class Raise: ...


@dataclass(frozen=True)
class Cancel:
    """Cancel one of the scopes around this, counted from the innermost."""

    scope: int = 0


@dataclass(frozen=True)
class Terminate:
    """Stop one of the runs so far by the API, counted from the last."""

    run: int = 0


@dataclass(frozen=True)
class FinishSpan:
    """Call finish_span() for one of the spans that were created so far, whichever task did."""

    span: int = 0


@dataclass(frozen=True)
class Open:
    """A span. ``end``: how it ends by itself, before its ``body`` if it does so ``early``.

    ``below``: its parent is one of the spans so far, counted from the last.
    """

    form: SpanForm
    body: Steps = ()
    end: Literal["complete", "fail", "cancel"] | None = None
    early: bool = False
    below: int | None = None


@dataclass(frozen=True)
class Run:
    form: RunForm
    body: Steps = ()


@dataclass(frozen=True)
class Catch:
    body: Steps


@dataclass(frozen=True)
class Scope:
    body: Steps
    seconds: float = math.inf
    shield: bool = False


@dataclass(frozen=True)
class Finally:
    body: Steps
    cleanup: Steps
    shield: bool = True


@dataclass(frozen=True)
class Spawn:
    """A task group, with the body of its block."""

    tasks: tuple[Steps, ...]
    body: Steps = ()


Step: TypeAlias = (
    Sleep
    | Checkpoint
    | Raise
    | Cancel
    | Terminate
    | FinishSpan
    | Open
    | Run
    | Catch
    | Scope
    | Finally
    | Spawn
)
Steps: TypeAlias = tuple[Step, ...]


@dataclass(frozen=True)
class Interrupt:
    """What comes from outside of the program: a cancellation of the scope around the client, or,
    if ``native``, asyncio's own ``Task.cancel()``.

    ``at``: in ``seconds``, in ``turns`` of the loop, or in seconds of the ``drain``.
    """

    after: Literal["seconds", "turns", "drain"]
    at: float
    native: bool = False


@dataclass(frozen=True)
class Service:
    """How the API answers, and how the client asks."""

    answering_time: float = 0.0
    bulk: bool = True
    batch_window: float = 0.125
    max_batch_operations: int = 500
    num_workers: int = 3
    poll_interval: float = math.inf
    drain_timeout: float = LONG

    @property
    def is_done_in_time(self) -> bool:
        """Whether all answers come, and there is time for them."""
        return self.answering_time < 30 and self.drain_timeout == LONG


@dataclass(frozen=True)
class Program:
    body: Steps
    interrupt: Interrupt | None = None
    service: Service = Service()


_RUN_FORMS = st.sampled_from(["scope", *RunForm.__args__])
# Each kind of step as often as it is to be drawn; what ends a program early is rare.
_KINDS = (
    *([Checkpoint] * 4 + [Sleep] * 10 + [FinishSpan] * 2 + [Terminate] * 4 + [Cancel, Raise]),
    *([Open] * 30 + [Catch] * 4 + [Spawn] * 5 + [Scope] * 3 + [Finally] * 2 + [Run] * 3),
)


@cache
def _steps(depth: int, least: int = 0, most: int = 3) -> st.SearchStrategy[Steps]:
    """Steps, with steps inside of them for ``depth`` floors."""
    kinds = {
        Checkpoint: st.builds(Checkpoint),
        Sleep: st.builds(Sleep, st.sampled_from(SECONDS)),
        FinishSpan: st.builds(FinishSpan, st.integers(0, 2)),
        Terminate: st.builds(Terminate, st.integers(0, 1)),
        Cancel: st.builds(Cancel, st.integers(0, 2)),
        Raise: st.builds(Raise),
    }
    if depth > 0:
        body = _steps(depth - 1)
        kinds |= {
            Open: st.builds(
                Open,
                st.sampled_from(SpanForm.__args__),
                body,
                st.sampled_from([None, None, "complete", "fail", "cancel"]),
                st.booleans(),
                st.none() | st.integers(0, 3),
            ),
            Catch: st.builds(Catch, body),
            Spawn: st.builds(Spawn, st.lists(body, min_size=1, max_size=3).map(tuple), body),
            Scope: st.builds(Scope, body, st.sampled_from([math.inf, *SECONDS]), st.booleans()),
            Finally: st.builds(Finally, body, body, st.booleans()),
            Run: st.builds(Run, _RUN_FORMS, body),
        }
    step = st.sampled_from([kind for kind in _KINDS if kind in kinds]).flatmap(kinds.__getitem__)
    return st.lists(step, min_size=least, max_size=most).map(tuple)


_RUNS = st.builds(Run, _RUN_FORMS, _steps(4, 3, 8))
_INTERRUPTS = st.one_of(
    st.builds(Interrupt, st.just("seconds"), st.sampled_from((0.125, 1.0, 4.0, 16.0))),
    st.builds(Interrupt, st.just("turns"), st.integers(0, 60), st.booleans()),
    st.builds(Interrupt, st.just("drain"), st.sampled_from((0.0, *SECONDS)), st.booleans()),
)
_SERVICES = st.builds(
    Service,
    # Registering waits for 10 seconds, a request for 30.
    answering_time=st.sampled_from([0.0, 0.0, 0.0, 0.125, 0.125, 1.0, 1.0, 15.0, 45.0]),
    bulk=st.booleans(),
    batch_window=st.sampled_from([0.0, 0.125, 1.0]),
    max_batch_operations=st.sampled_from([1, 2, 500]),
    num_workers=st.sampled_from([1, 3]),
    poll_interval=st.sampled_from([math.inf, 0.25, 1.0]),
    drain_timeout=st.sampled_from([LONG] * 5 + [1.0, 0.0]),
)
PROGRAMS = st.builds(
    Program,
    st.tuples(_RUNS, _steps(2, 0, 2)).map(lambda parts: (parts[0], *parts[1])),
    st.booleans().flatmap(lambda whole: st.none() if whole else _INTERRUPTS),
    _SERVICES,
)
