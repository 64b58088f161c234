"""A process that records at random, the expected content of its journal after each record, and the
rules of the API for all operations together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import strategies as st
from support.journal_files import (
    NOON,
    RESULT,
    JournalFiles,
    create,
    created,
    end,
    finish,
    opened,
    quality,
    register,
    start,
)

from prefactor_core.journal.format import NONE, Discarded, Form, Identified, Kind, OpenRun, OpenSpan
from prefactor_core.models.lifecycle import InstanceStatus, SpanStatus
from prefactor_core.operations import (
    CreateSpan,
    FinishAgentInstance,
    FinishSpan,
    Operation,
    RegisterAgentInstance,
    StartAgentInstance,
)

DONE, ACTIVE, PENDING = SpanStatus.COMPLETE, SpanStatus.ACTIVE, SpanStatus.PENDING

STEPS = (
    "register", "identify", "start", "open", "open", "open", "report", "report", "end", "end",
    "end", "cancel", "skip", "discard", "create", "quality", "finish", "send", "send", "settle",
    "settle", "beat", "rotate",
)  # fmt: skip

histories = st.lists(
    st.tuples(st.sampled_from(STEPS), st.integers(0, 1000), st.integers(0, 1000)), max_size=60
)


@dataclass(eq=False)
class Run:
    registered_id: str
    id: str
    status: InstanceStatus = InstanceStatus.PENDING
    started_at: int | None = None


@dataclass(eq=False)
class Span:
    id: str
    run: Run
    run_id: str
    parent: Span | None
    opened_at: int
    is_created: bool = False
    started_at: int | None = None


@dataclass(eq=False)
class Item:
    """One operation, or the start and the finish of a span that were in one request."""

    operations: list[tuple[int, Operation]]
    is_sent: bool = False


class Snapshot(NamedTuple):
    """The content of a journal that ends here.

    ``items``: for each, its sequence numbers, its operation and whether its form is noted.
    ``spans``: for each open span, its id and whether its create is recorded. ``runs``: for each
    open run, the id of its registration and its status.
    """

    items: list[tuple[tuple[int, ...], Operation, bool]]
    spans: list[tuple[str, bool]]
    runs: list[tuple[str, InstanceStatus]]


@dataclass
class Process:
    """Records into the journal at ``path``, and keeps a :class:`Snapshot` after each record.

    ``recorded``: all operations in their order. ``settled``: the sequence numbers of those that
    need no request any longer.
    """

    path: Path
    now: int = NOON
    runs: list[Run] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)
    recorded: list[Operation] = field(default_factory=list)
    snapshots: list[Snapshot] = field(default_factory=list)
    _count: int = 0

    def __post_init__(self) -> None:
        self.files = JournalFiles(self.path)
        self._keep()

    def play(self, history: Iterable[tuple[str, int, int]]) -> None:
        """Take the steps that are possible."""
        for step, number, other in history:
            self.now += 1
            getattr(self, f"_{step}")(number, other)

    # What is in the journal.

    def _keep(self) -> None:
        items = []
        for item in self.items:
            [(_, operation), *rest] = item.operations
            for _, last in rest:
                assert isinstance(operation, CreateSpan)
                assert isinstance(last, FinishSpan)
                operation = operation.finished_by(last)
            sequences = tuple(sequence for sequence, _ in item.operations)
            items.append((sequences, operation, item.is_sent))
        spans = [(span.id, span.is_created) for span in self.spans]
        runs = [(run.registered_id, run.status) for run in self.runs]
        self.snapshots.append(Snapshot(items, spans, runs))

    def _note(self, kind: Kind, body: object) -> int:
        sequence = self.files.add(kind, body)
        self._keep()
        return sequence

    def _record(self, operation: Operation) -> None:
        self._add(operation, Kind.OPERATION, operation)

    def _add(self, operation: Operation, kind: Kind, body: object) -> None:
        self.recorded.append(operation)
        self.items.append(Item([(self.files.sequence + 1, operation)]))
        self._note(kind, body)

    # The steps.

    def _register(self, number: int, other: int) -> None:
        self._count += 1
        id = f"run-{self._count}"
        self.runs.append(Run(id, id))
        self._record(register(id, self.now))

    def _identify(self, number: int, other: int) -> None:
        fresh = [run for run in self.runs if run.id == run.registered_id]
        if run := _one(fresh, number):
            api_id = f"their-{run.registered_id}"
            self._note(Kind.IDENTIFIED, Identified(run.registered_id, None, api_id))
            if run.started_at is None and all(span.run is not run for span in self.spans):
                run.id = api_id  # nothing else is recorded of it

    def _start(self, number: int, other: int) -> None:
        if run := _one(self.runs, number):
            self._begin(run, self.now)

    def _begin(self, run: Run, at: int) -> None:
        if run.status is InstanceStatus.PENDING:
            run.status, run.started_at = InstanceStatus.ACTIVE, at
            self._record(start(run.id, at))

    def _open(self, number: int, other: int) -> None:
        run = _one(self.runs, number)
        if run is None:
            return
        self._count += 1
        parents = [None, *[span for span in self.spans if span.run is run]]
        parent = parents[other % len(parents)]
        span = Span(f"span-{self._count}", run, run.id, parent, self.now)
        self.spans.append(span)
        self._note(
            Kind.OPENED, opened(span.id, parent and parent.id, span.run_id, at=span.opened_at)
        )

    def _report(self, number: int, other: int) -> None:
        if span := _one(self.spans, number):
            self._create_span(span)

    def _create_span(self, span: Span, status: SpanStatus = ACTIVE) -> None:
        """Record the create of a span, and those of its ancestors."""
        if span.is_created:
            return
        if span.parent is not None:
            self._create_span(span.parent)
        self._begin(span.run, span.opened_at)
        ended = status is DONE
        if ended:
            self.spans.remove(span)
        span.is_created = True
        span.started_at = None if status is PENDING else span.opened_at
        parent_id, finished_at = span.parent and span.parent.id, self.now if ended else None
        self._add(
            create(
                span.id,
                parent_id,
                span.run_id,
                at=span.opened_at,
                status=status,
                finished_at=finished_at,
                **({"result": RESULT} if ended else {}),
            ),
            Kind.CREATED,
            created(
                span.id,
                parent_id,
                at=span.opened_at,
                status=status,
                finished_at=finished_at,
                result=RESULT if ended else NONE,
            ),
        )

    def _end(self, number: int, other: int) -> None:
        if span := _one(self._leaves(), number):
            if span.is_created:
                self._finish_span(span, DONE if span.started_at else SpanStatus.CANCELLED)
            else:
                self._create_span(span, DONE)

    def _cancel(self, number: int, other: int) -> None:
        if span := _one(self._leaves(), number):
            self._create_span(span)
            self._finish_span(span, SpanStatus.CANCELLED)

    def _skip(self, number: int, other: int) -> None:
        """Create a span only to be cancelled; the process may die in between."""
        if span := _one([span for span in self._leaves() if not span.is_created], number):
            self._create_span(span, PENDING)

    def _finish_span(self, span: Span, status: SpanStatus) -> None:
        self.spans.remove(span)
        self._record(end(span.id, span.run_id, at=self.now, status=status))

    def _leaves(self) -> list[Span]:
        parents = {id(span.parent) for span in self.spans}
        return [span for span in self.spans if id(span) not in parents]

    def _discard(self, number: int, other: int) -> None:
        if span := _one([span for span in self.spans if not span.is_created], number):
            self.spans.remove(span)
            for child in self.spans:
                if child.parent is span:
                    child.parent = span.parent
            self._note(Kind.DISCARDED, Discarded(span.id, span.parent and span.parent.id))

    def _create(self, number: int, other: int) -> None:
        """A create that stands for itself: its span had another payload when it was opened."""
        if run := _one(self.runs, number):
            self._begin(run, self.now)
            self._count += 1
            span = Span(f"span-{self._count}", run, run.id, None, self.now, True, self.now)
            self.spans.append(span)
            self._record(create(span.id, None, run.id, at=self.now))

    def _quality(self, number: int, other: int) -> None:
        if run := _one(self.runs, number):
            self._record(quality(f"score-{self.now}", run.id, self.now))

    def _finish(self, number: int, other: int) -> None:
        busy = {id(span.run) for span in self.spans}
        if run := _one([run for run in self.runs if id(run) not in busy], number):
            self._begin(run, self.now)
            self.runs.remove(run)
            self._record(finish(run.id, self.now))

    def _send(self, number: int, other: int) -> None:
        """Note the forms of some items; a start and a finish that were not sent become one."""
        forms = []
        for item in self.items[number % (len(self.items) + 1) :]:
            if item not in self.items or item.is_sent:
                continue
            _, operation = item.operations[0]
            if not isinstance(operation, CreateSpan) or operation.status is not ACTIVE:
                continue
            finishes = [
                later
                for later in self.items
                if isinstance(last := later.operations[0][1], FinishSpan)
                and last.span_id == operation.span_id
                and last.status is not SpanStatus.CANCELLED
            ]
            for later in finishes[: other % 2]:
                self.items.remove(later)
                item.operations += later.operations
            item.is_sent = True
            sequences = tuple(sequence for sequence, _ in item.operations)
            forms.append(Form(sequences, True, NONE))
        if forms:
            self._note(Kind.SENDING, forms)

    def _settle(self, number: int, other: int) -> None:
        """Settle the oldest items."""
        settled, self.items = self.items[: number % 5], self.items[number % 5 :]
        sequences = [sequence for item in settled for sequence, _ in item.operations]
        if sequences:
            self._note(Kind.SETTLED, sequences)

    def _beat(self, number: int, other: int) -> None:
        self._note(Kind.BEAT, self.now)

    def _rotate(self, number: int, other: int) -> None:
        """Begin the next file."""
        before = self.files.sequence
        self.files.begin(self._state())
        self.snapshots += [self.snapshots[-1]] * (self.files.sequence - before)

    def _state(self) -> list[tuple[Kind, Any]]:
        ids = [run for run in self.runs if run.id != run.registered_id]
        return [
            (Kind.BEAT, self.now),
            *[(Kind.IDENTIFIED, Identified(run.registered_id, None, run.id)) for run in ids],
            *[(Kind.OPEN_RUN, OpenRun(run.id, run.status, run.started_at)) for run in self.runs],
            *[
                (Kind.OPEN_SPAN, OpenSpan(span.id, span.run_id, span.started_at))
                if span.is_created
                else (
                    Kind.OPENED,
                    opened(span.id, span.parent and span.parent.id, span.run_id, at=span.opened_at),
                )
                for span in self.spans
            ],
        ]


def _one(candidates: Sequence[Any], number: int) -> Any:
    return candidates[number % len(candidates)] if candidates else None


def check_rules(operations: Iterable[Operation]) -> None:
    """Check operations against the rules of the API.

    A run is registered, started, and ended last. A parent is known before its children. Each span
    begins and ends once, and not before its children. Nothing is open at the end.
    """
    runs: dict[str, str] = {}
    names: dict[str, str] = {}
    spans: dict[str, tuple[str, SpanStatus, int, str | None]] = {}
    for operation in operations:
        run = operation.instance_id.removeprefix("their-")
        match operation:
            case RegisterAgentInstance():
                assert run not in runs
                runs[run] = "pending"
            case StartAgentInstance():
                assert runs[run] == "pending"
                runs[run], names[run] = "active", operation.instance_id
            case FinishAgentInstance():
                assert runs[run] == "active"
                assert not [span for span in spans.values() if span[0] == run and _is_open(span)]
                assert names[run] == operation.instance_id
                runs[run] = "over"
            case CreateSpan():
                assert runs[run] == "active"
                assert operation.span_id not in spans
                parent_id = operation.parent_span_id
                if parent_id is not None:
                    assert spans[parent_id][0] == run
                    assert _is_open(spans[parent_id])
                if operation.finished_at is not None:
                    assert operation.finished_at >= operation.timestamp
                spans[operation.span_id] = run, operation.status, operation.timestamp, parent_id
            case FinishSpan():
                run, status, began, parent_id = spans[operation.span_id]
                assert status in (ACTIVE, PENDING)
                assert status is ACTIVE or operation.status is SpanStatus.CANCELLED
                assert operation.timestamp >= began
                children = [span for span in spans.values() if span[3] == operation.span_id]
                assert not [span for span in children if _is_open(span)]
                spans[operation.span_id] = run, operation.status, began, parent_id
            case _:
                pass
    assert not [span for span in spans.values() if _is_open(span)]
    assert {*runs.values()} <= {"over"}


def _is_open(span: tuple[str, SpanStatus, int, str | None]) -> bool:
    return span[1] in (ACTIVE, PENDING)
