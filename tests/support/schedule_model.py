"""What must be stored of a program of :mod:`schedules`, by what is seen while it is played."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import anyio
from support.schedules import RunForm

from prefactor_core import AgentInstanceHandle

NAMES = ("agent:run", "agent:llm", "agent:tool")


class Boom(Exception):  # noqa: N818
    """What a step raises."""


def leaves_of(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from leaves_of(part)
    else:
        yield error


def outcome_seen(error: BaseException | None) -> str:
    """The status of what ended with ``error``; only a Boom is a failure of the agent's own."""
    if error is None:
        return "complete"
    return "failed" if any(isinstance(e, Boom) for e in leaves_of(error)) else "cancelled"


@dataclass(eq=False)
class ModelSpan:
    """The expected record of a span: found by its number, which is its payload.

    ``status``: None until it is known to be open, then "open" until it ends.
    """

    number: int
    run: ModelRun
    parent: ModelSpan | None
    may_open: bool = True
    status: str | None = None
    result: dict[str, Any] = field(default_factory=dict)
    id: Callable[[], str] | None = None

    @property
    def name(self) -> str:
        return NAMES[self.number % 3]

    @property
    def open(self) -> bool:
        return self.status == "open"

    def end(self, status: str, error: BaseException | None = None, **result: object) -> None:
        """The first end counts."""
        if self.open:
            if self.run.stopped_at is not None and self.run.answered_at is None:
                self.run.answered_at = anyio.current_time()
            self.status = status
            self.result.update(result)
            if status == "failed" and error is not None:
                self.result["error"] = type(error).__name__


@dataclass(eq=False)
class ModelRun:
    """The expected record of a run: found by its number, which is in the id of its agent.

    ``status``: None while it is not entered, then "active" until it ends. ``stopped_at``: when
    the API has terminated it, if it has; ``answered_at``: when a span of it ended after that,
    the answer to which tells the client.
    """

    number: int
    form: RunForm
    status: str | None = None
    handle: AgentInstanceHandle | None = None
    stopped_at: float | None = None
    answered_at: float | None = None

    @property
    def agent_id(self) -> str:
        return f"agent-{self.number}"

    @property
    def ended(self) -> bool:
        return self.status not in (None, "active")

    @property
    def knows(self) -> bool:
        """Whether the client knows that the run was stopped."""
        return self.handle is not None and self.handle.terminated is not None

    @property
    def takes_no_spans(self) -> bool:
        return self.knows and self.form != "scope"

    # As a scope around the run's body:
    shield = False
    cancel_called = knows


@dataclass
class Here:
    """What is open in a context, innermost last: its spans, and its runs."""

    spans: tuple[ModelSpan, ...] = ()
    runs: list[ModelRun] = field(default_factory=list)

    def copy(self) -> Here:
        return Here(self.spans, list(self.runs))

    def innermost_span(self, run: ModelRun) -> ModelSpan | None:
        return next((s for s in reversed(self.spans) if s.open and s.run is run), None)

    @property
    def innermost_run(self) -> ModelRun | None:
        return next((run for run in reversed(self.runs) if not run.ended), None)


@dataclass
class Place:
    """Where in the program a step stands."""

    run: ModelRun | None
    scopes: tuple[anyio.CancelScope | ModelRun, ...]
    here: Here

    def inside(self, scope: anyio.CancelScope | ModelRun) -> Place:
        return Place(self.run, (*self.scopes, scope), self.here)

    @property
    def deadline(self) -> float:
        """When the scopes around it are cancelled at the latest."""
        earliest = math.inf
        for scope in reversed(self.scopes):
            if isinstance(scope, anyio.CancelScope):
                earliest = min(earliest, scope.deadline)
            if scope.shield:
                break
        return earliest

    @property
    def cancelled(self) -> bool:
        """Whether the next checkpoint must raise."""
        for scope in reversed(self.scopes):
            if scope.cancel_called:
                return True
            if scope.shield:
                break
        return False
