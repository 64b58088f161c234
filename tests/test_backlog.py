"""Backlog: what goes into the next request, by examples and by a rule machine with a model."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from msgspec import UNSET, Raw, UnsetType

from prefactor_core.delivery.backlog import Backlog, Parcel, half, independent_of
from prefactor_core.identifiers import idempotency_key
from prefactor_core.lifecycle import InstanceStatus, SpanStatus
from prefactor_core.operations import (
    ENVELOPE_SIZE,
    CreateSpan,
    FinishAgentInstance,
    FinishSpan,
    Operation,
    OperationType,
    RecordQuality,
    RegisterAgentInstance,
    StartAgentInstance,
    UpdateSpanPayload,
)

EVERYTHING = 1_000_000
NOON = datetime(2026, 7, 20, 12, tzinfo=UTC)
ENDED = [SpanStatus.COMPLETE, SpanStatus.FAILED, SpanStatus.CANCELLED]
MERGED = [SpanStatus.COMPLETE, SpanStatus.FAILED]


def register(run: str = "run") -> RegisterAgentInstance:
    return RegisterAgentInstance(
        timestamp=NOON,
        idempotency_key=idempotency_key(run, "register"),
        agent_id="agent",
        agent_version={"name": "Agent"},
        agent_schema_version={"span_schemas": {"agent:llm": {}}},
        instance_id=run,
    )


def start(run: str = "run") -> StartAgentInstance:
    return StartAgentInstance(
        timestamp=NOON, idempotency_key=idempotency_key(run, "start"), instance_id=run
    )


def finish(run: str = "run") -> FinishAgentInstance:
    return FinishAgentInstance(
        timestamp=NOON,
        idempotency_key=idempotency_key(run, "finish"),
        instance_id=run,
        status=InstanceStatus.COMPLETE,
    )


def create(
    span: str,
    parent: str | None = None,
    run: str = "run",
    *,
    status: SpanStatus = SpanStatus.ACTIVE,
    payload: bytes = b"{}",
    at: datetime = NOON,
) -> CreateSpan:
    ended = status in ENDED
    return CreateSpan(
        timestamp=at,
        idempotency_key=idempotency_key(span, "create"),
        instance_id=run,
        span_id=span,
        schema_name="agent:llm",
        status=status,
        payload=Raw(payload),
        parent_span_id=parent,
        finished_at=at if ended else None,
        result_payload=Raw(b'{"told":"at once"}') if ended else UNSET,
    )


def end(
    span: str,
    run: str = "run",
    *,
    status: SpanStatus = SpanStatus.COMPLETE,
    result: bytes | None = None,
    at: datetime = NOON + timedelta(seconds=1),
) -> FinishSpan:
    return FinishSpan(
        timestamp=at,
        idempotency_key=idempotency_key(span, "finish"),
        instance_id=run,
        span_id=span,
        status=status,
        result_payload=UNSET if result is None else Raw(result),
    )


def cancel(span: str, run: str = "run") -> FinishSpan:
    return end(span, run, status=SpanStatus.CANCELLED)


def update(span: str, run: str = "run") -> UpdateSpanPayload:
    return UpdateSpanPayload(
        timestamp=NOON,
        idempotency_key=idempotency_key(span, "update"),
        instance_id=run,
        span_id=span,
        payload=Raw(b"{}"),
    )


def quality(name: str, run: str = "run", key: str = "") -> RecordQuality:
    return RecordQuality(
        timestamp=NOON,
        idempotency_key=key or f"{run}-{name}",
        instance_id=run,
        name=name,
        payload=Raw(b"{}"),
    )


def backlog_of(*operations: Operation) -> Backlog:
    backlog = Backlog()
    for operation in operations:
        backlog.add(operation)
    return backlog


def request_of(backlog: Backlog, most: int = EVERYTHING, **how: Any) -> list[Parcel]:
    return backlog.next_request(most, EVERYTHING, **how)


def keys(parcels: Iterable[Parcel]) -> list[str]:
    return [parcel.operation.idempotency_key for parcel in parcels]


def parcels_of(*operations: Operation) -> list[Parcel]:
    return [Parcel(operation, at, operation.size) for at, operation in enumerate(operations)]


# Merging


@pytest.mark.parametrize("status", MERGED)
def test_a_finish_that_meets_its_start_makes_one_create_with_both_times(
    status: SpanStatus,
) -> None:
    begun, ended = create("s", "p", payload=b'{"a":1}'), end("s", status=status, result=b'{"b":2}')
    backlog = backlog_of(begun)
    assert backlog.add(ended)
    (parcel,) = request_of(backlog)
    assert parcel.operation == CreateSpan(
        timestamp=begun.timestamp,
        idempotency_key="s-create",
        instance_id="run",
        span_id="s",
        schema_name="agent:llm",
        status=status,
        payload=Raw(b'{"a":1}'),
        parent_span_id="p",
        finished_at=ended.timestamp,
        result_payload=Raw(b'{"b":2}'),
    )
    assert (parcel.count, parcel.size) == (2, begun.size + ended.size - ENVELOPE_SIZE)
    assert (len(backlog), backlog.operations, backlog.taken) == (1, 2, 2)


def test_a_merged_create_has_no_result_if_the_finish_has_none() -> None:
    (parcel,) = request_of(backlog_of(create("s"), end("s")))
    assert isinstance(parcel.operation, CreateSpan)
    assert parcel.operation.result_payload is UNSET


def test_a_cancelled_span_keeps_its_two_steps() -> None:
    backlog = backlog_of(create("s"))
    assert not backlog.add(cancel("s"))
    assert keys(request_of(backlog)) == ["s-create", "s-finish"]


def test_a_span_that_never_began_keeps_its_two_steps() -> None:
    backlog = backlog_of(create("s", status=SpanStatus.PENDING))
    assert not backlog.add(cancel("s"))
    assert keys(request_of(backlog)) == ["s-create", "s-finish"]


@pytest.mark.parametrize("status", [SpanStatus.PENDING, *MERGED])
def test_only_a_span_that_is_active_takes_its_finish_in(status: SpanStatus) -> None:
    # None of these can be finished; it is the API that says so.
    backlog = backlog_of(create("s", status=status))
    assert not backlog.add(end("s"))
    assert keys(request_of(backlog)) == ["s-create", "s-finish"]


def test_what_was_in_a_request_takes_no_finish_in() -> None:
    backlog = backlog_of(create("s"))
    (parcel,) = request_of(backlog)
    before = parcel.operation
    assert not backlog.add(end("s"))
    assert parcel.operation is before
    assert keys(request_of(backlog)) == ["s-create", "s-finish"]


def test_what_did_not_fit_into_a_request_still_takes_its_finish_in() -> None:
    backlog = backlog_of(create("first"), create("second"))
    assert keys(request_of(backlog, 1)) == ["first-create"]
    assert backlog.add(end("second"))
    assert not backlog.add(end("first"))


def test_a_merged_span_goes_before_the_children_that_were_recorded_before_its_end() -> None:
    backlog = backlog_of(start(), create("p"), create("c", "p"), end("c"), end("p"), finish())
    assert keys(request_of(backlog)) == ["run-start", "p-create", "c-create", "run-finish"]


def test_nothing_of_a_settled_span_is_waited_for() -> None:
    # Its finish comes back as an operation of its own, and is not lost in what has left.
    backlog = backlog_of(create("s"))
    (parcel,) = request_of(backlog)
    backlog.remove(parcel)
    assert not backlog.add(end("s"))
    assert keys(request_of(backlog)) == ["s-finish"]


# Limits


def test_a_request_has_at_most_the_operations_it_may_have_and_a_merged_span_is_two() -> None:
    backlog = backlog_of(create("a"), end("a"), create("b"), create("c"))
    assert keys(request_of(backlog, 3)) == ["a-create", "b-create"]
    assert keys(request_of(backlog, 4)) == ["a-create", "b-create", "c-create"]


def test_a_request_has_at_most_the_bytes_it_may_have() -> None:
    backlog = backlog_of(create("a"), create("b"), create("c"))
    two = 2 * create("a").size
    assert keys(backlog.next_request(EVERYTHING, two)) == ["a-create", "b-create"]
    assert keys(backlog.next_request(EVERYTHING, two - 1)) == ["a-create"]


@pytest.mark.parametrize(("operations", "size"), [(1, EVERYTHING), (EVERYTHING, 1), (1, 1)])
def test_one_parcel_always_goes(operations: int, size: int) -> None:
    backlog = backlog_of(create("a"), end("a"), create("b"))
    assert keys(backlog.next_request(operations, size)) == ["a-create"]


def test_an_empty_backlog_has_no_request() -> None:
    assert request_of(Backlog()) == []


def test_a_registration_goes_alone() -> None:
    backlog = backlog_of(start("other"), register(), start(), create("s"))
    for expected in (["other-start"], ["run-register"], ["run-start", "s-create"]):
        request = request_of(backlog)
        assert keys(request) == expected
        for parcel in request:
            backlog.remove(parcel)


def test_types_that_bulk_does_not_take_go_alone() -> None:
    backlog = backlog_of(create("a"), start("other"), create("b"))
    alone = {OperationType.START_AGENT_INSTANCE}
    for expected in (["a-create"], ["other-start"], ["b-create"]):
        (parcel,) = request_of(backlog, alone=alone)
        assert keys([parcel]) == expected
        backlog.remove(parcel)


def test_a_parcel_that_bulk_failed_at_goes_alone() -> None:
    backlog = backlog_of(create("a"), create("b"), create("c"))
    _, second, _ = request_of(backlog)
    second.alone = True
    assert keys(request_of(backlog)) == ["a-create"]


def test_without_given_ids_nothing_goes_together_with_the_span_that_it_refers_to() -> None:
    backlog = backlog_of(create("p"), create("other"), create("c", "p"), create("d", "c"))
    assert keys(request_of(backlog, given_ids=False)) == ["p-create", "other-create"]
    backlog = backlog_of(create("s", status=SpanStatus.PENDING), cancel("s"))
    assert keys(request_of(backlog, given_ids=False)) == ["s-create"]


def test_without_given_ids_what_refers_to_spans_that_are_known_goes_together() -> None:
    backlog = backlog_of(create("a", "known"), create("b", "known"), end("known"), finish())
    assert len(request_of(backlog, given_ids=False)) == 4


@pytest.mark.parametrize(("counts", "expected"), [([1, 1], 1), ([1, 2], 1), ([2, 2, 1], 2)])
def test_half_of_a_request_has_half_its_operations_and_one_at_least(
    counts: list[int], expected: int
) -> None:
    parcels = parcels_of(*[create(str(n)) for n in range(len(counts))])
    for parcel, count in zip(parcels, counts, strict=True):
        parcel.count = count
    assert half(parcels) == expected
    assert half(parcels[:1]) == 1


@pytest.mark.parametrize("merged", [set[int](), {0}, {1}, {0, 2}, {0, 1, 2, 3, 4}])
@pytest.mark.parametrize("length", range(2, 6))
def test_a_request_of_several_parcels_comes_down_to_its_first_one_by_halves(
    length: int, merged: set[int]
) -> None:
    backlog = Backlog()
    for number in range(length):
        backlog.add(create(str(number)))
        if number in merged:
            backlog.add(end(str(number)))
    request = request_of(backlog)
    while len(request) > 1:
        smaller = request_of(backlog, half(request))
        assert smaller == request[: len(smaller)]
        assert len(smaller) < len(request)
        request = smaller
    assert keys(request) == ["0-create"]


# Overtaking


ASIDE = [
    (
        create("s"),
        [create("x"), cancel("s"), create("c", "s"), cancel("c"), finish()],
        ["x-create"],
    ),
    (create("s"), [create("c", "s"), create("d", "c"), create("e", "d"), cancel("e")], []),
    (cancel("s"), [create("c", "s"), cancel("c"), finish()], ["c-create", "c-finish"]),
    (start(), [create("x"), cancel("x"), finish(), start("other")], ["other-start"]),
    (register(), [start(), create("x"), create("y", run="other")], ["y-create"]),
    (finish(), [create("y", run="other"), finish("other")], ["y-create", "other-finish"]),
    (create("s"), [create("y", run="other"), cancel("y", "other")], ["y-create", "y-finish"]),
    (create("s"), [update("x")], []),
]


@pytest.mark.parametrize(("aside", "others", "expected"), ASIDE)
def test_only_what_does_not_depend_on_a_parcel_may_overtake_it(
    aside: Operation, others: list[Operation], expected: list[str]
) -> None:
    parcels = parcels_of(aside, *others)
    assert keys(independent_of(parcels[:1], parcels)) == expected
    backlog = backlog_of(aside, *others)
    (first, *_) = request_of(backlog, 1)
    overtaking = request_of(backlog, aside=[first])
    assert keys(overtaking) == (expected or [first.operation.idempotency_key])


def test_what_was_overtaken_comes_first_again() -> None:
    backlog = backlog_of(create("s"), create("x"), create("y"))
    (first,) = request_of(backlog, 1)
    assert keys(request_of(backlog, aside=[first])) == ["x-create", "y-create"]
    assert keys(request_of(backlog)) == ["s-create", "x-create", "y-create"]


def test_settled_through_stands_at_what_was_overtaken() -> None:
    backlog = backlog_of(create("s"), create("x"), create("y"))
    (first,) = request_of(backlog, 1)
    for parcel in request_of(backlog, aside=[first]):
        backlog.remove(parcel)
    assert (backlog.settled_through, backlog.operations, backlog.taken) == (0, 1, 3)
    backlog.remove(first)
    assert (backlog.settled_through, backlog.operations, backlog.taken) == (3, 0, 3)


def test_a_parcel_can_be_settled_once_only() -> None:
    backlog = backlog_of(create("s"), end("s"), create("x"))
    first, second = request_of(backlog)
    backlog.remove(first)
    backlog.remove(first)
    assert (backlog.operations, keys(request_of(backlog))) == (1, ["x-create"])
    backlog.remove(second)
    assert (backlog.operations, len(backlog)) == (0, 0)


# The machine


@dataclass
class ModelSpan:
    """A span as it was recorded, and what the API made of it."""

    id: str
    parent: ModelSpan | None
    status: SpanStatus = SpanStatus.ACTIVE


@dataclass
class ModelRun:
    """A run as it was recorded."""

    id: str
    spans: list[ModelSpan] = field(default_factory=list)
    begun: bool = False
    ended: bool = False


@dataclass(eq=False)
class Expected:
    """A parcel as the model has it: what it was recorded from, and what the backlog gave."""

    position: int
    recorded: list[Operation]
    tried: bool = False
    parcel: Parcel | None = None
    body: bytes = b""

    @property
    def operation(self) -> Operation:
        """What is to be told to the API."""
        match self.recorded:
            case [CreateSpan() as begun, FinishSpan() as ended]:
                return msgspec.structs.replace(
                    begun,
                    status=ended.status,
                    finished_at=ended.timestamp,
                    result_payload=ended.result_payload,
                )
            case _:
                (operation,) = self.recorded
                return operation


@dataclass
class StoredSpan:
    """A span in the API of the model."""

    run: str
    parent: str | None
    status: SpanStatus
    started: datetime
    finished: datetime | None
    result: bytes | UnsetType


class StrictApi:
    """Does what it is told in an allowed order, once; asserts on everything else."""

    def __init__(self) -> None:
        self.registered: set[str] = set()
        self.active: set[str] = set()
        self.finished: set[str] = set()
        self.spans: dict[str, StoredSpan] = {}
        self.quality: dict[tuple[str, str], str] = {}
        self.done = 0
        self.done_keys: set[str] = set()

    def do(self, parcel: Parcel) -> None:
        operation = parcel.operation
        assert operation.idempotency_key not in self.done_keys
        self.done_keys.add(operation.idempotency_key)
        self.done += parcel.count
        run = operation.instance_id
        assert run not in self.finished or isinstance(operation, RecordQuality)
        match operation:
            case RegisterAgentInstance():
                assert run not in self.registered
                self.registered.add(run)
            case StartAgentInstance():
                assert run in self.registered
                assert run not in self.active
                self.active.add(run)
            case FinishAgentInstance():
                assert run in self.active
                assert all(s.status in ENDED for s in self.spans.values() if s.run == run)
                self.finished.add(run)
            case CreateSpan():
                assert run in self.active
                assert operation.span_id not in self.spans
                if operation.parent_span_id is not None:
                    assert self.spans[operation.parent_span_id].run == run
                self.spans[operation.span_id] = StoredSpan(
                    run,
                    operation.parent_span_id,
                    operation.status,
                    operation.timestamp,
                    operation.finished_at,
                    _bytes(operation.result_payload),
                )
            case FinishSpan():
                span = self.spans[operation.span_id]
                assert span.status in (SpanStatus.PENDING, SpanStatus.ACTIVE)
                if span.status is SpanStatus.PENDING:
                    assert operation.status is SpanStatus.CANCELLED
                span.status, span.finished = operation.status, operation.timestamp
                span.result = _bytes(operation.result_payload)
            case RecordQuality():
                assert run in self.registered
                self.quality[run, operation.name] = operation.idempotency_key
            case UpdateSpanPayload():
                raise AssertionError("the API has no such call")


def _bytes(payload: Raw | UnsetType) -> bytes | UnsetType:
    return UNSET if payload is UNSET else bytes(payload)


LIMITS = st.one_of(st.integers(1, 6), st.just(EVERYTHING))
SIZES = st.one_of(st.integers(1, 4 * ENVELOPE_SIZE), st.just(EVERYTHING))
# Never a registration: that goes alone anyway.
ALONE = st.frozensets(
    st.sampled_from(
        [OperationType.CREATE_SPAN, OperationType.FINISH_SPAN, OperationType.RECORD_QUALITY]
    ),
    max_size=1,
) | st.just(frozenset(OperationType))


class Deliveries(RuleBasedStateMachine):
    """Records a few runs, asks for requests, and settles a part of each as bulk does."""

    def __init__(self) -> None:
        super().__init__()
        self.backlog = Backlog()
        self.api = StrictApi()
        self.runs: list[ModelRun] = []
        # What was recorded and not settled, in order; what of it was in a request, by parcel.
        self.waiting: list[Expected] = []
        self.recorded = 0
        self.settled = 0
        self.now = NOON
        self.spans: dict[str, ModelSpan] = {}
        self.results: dict[str, bytes | UnsetType] = {}
        # The last of each name, by its key.
        self.quality: dict[tuple[str, str], str] = {}

    # Recording, in the order in which a client does it

    def record(self, operation: Operation) -> None:
        merges = None
        if isinstance(operation, FinishSpan) and operation.status in MERGED:
            for expected in self.waiting:
                begun = expected.recorded[0]
                if (
                    isinstance(begun, CreateSpan)
                    and begun.span_id == operation.span_id
                    and not expected.tried
                ):
                    merges = expected
        assert self.backlog.add(operation) == (merges is not None)
        if merges is not None:
            merges.recorded.append(operation)
        else:
            self.waiting.append(Expected(self.recorded, [operation]))
        self.recorded += 1

    def tick(self) -> datetime:
        self.now += timedelta(milliseconds=1)
        return self.now

    @initialize(runs=st.integers(1, 3))
    def register_runs(self, runs: int) -> None:
        for number in range(runs):
            run = ModelRun(f"run-{number}")
            self.runs.append(run)
            self.record(register(run.id))

    def open_run(self, data: st.DataObject) -> ModelRun | None:
        open_runs = [run for run in self.runs if not run.ended]
        if not open_runs:
            return None
        run = data.draw(st.sampled_from(open_runs))
        if not run.begun:
            run.begun = True
            self.record(start(run.id))
        return run

    @precondition(lambda self: any(not run.ended for run in self.runs))
    @rule(
        data=st.data(),
        status=st.sampled_from([SpanStatus.ACTIVE] * 4 + [SpanStatus.PENDING, *MERGED]),
        size=st.integers(0, ENVELOPE_SIZE),
    )
    def begin_span(self, data: st.DataObject, status: SpanStatus, size: int) -> None:
        run = self.open_run(data)
        assert run is not None
        # A parent may have ended: the API takes that.
        parent = data.draw(st.none() | st.sampled_from(run.spans)) if run.spans else None
        span = ModelSpan(f"{run.id}.{len(run.spans)}", parent, status)
        run.spans.append(span)
        self.spans[span.id] = span
        payload = b'{"_":"%s"}' % (b"x" * size)
        parent_id = parent.id if parent else None
        self.record(
            create(span.id, parent_id, run.id, status=status, payload=payload, at=self.tick())
        )
        self.results[span.id] = b'{"told":"at once"}' if status in MERGED else UNSET
        if status is SpanStatus.PENDING:
            self.end(run, span, SpanStatus.CANCELLED, None)

    def end(self, run: ModelRun, span: ModelSpan, status: SpanStatus, result: bytes | None) -> None:
        span.status = status
        self.results[span.id] = UNSET if result is None else result
        self.record(end(span.id, run.id, status=status, result=result, at=self.tick()))

    @rule(
        data=st.data(),
        status=st.sampled_from(ENDED),
        result=st.none() | st.sampled_from([b"{}", b'{"r":1}']),
    )
    def end_span(self, data: st.DataObject, status: SpanStatus, result: bytes | None) -> None:
        active = [(r, s) for r in self.runs for s in r.spans if s.status is SpanStatus.ACTIVE]
        if active:
            self.end(*data.draw(st.sampled_from(active)), status, result)

    @rule(data=st.data(), name=st.sampled_from(["accuracy", "cost"]))
    def tell_quality(self, data: st.DataObject, name: str) -> None:
        # Also of a run that has not begun, or has ended.
        run = data.draw(st.sampled_from(self.runs))
        self.quality[run.id, name] = key = f"quality-{self.recorded}"
        self.record(quality(name, run.id, key))

    @rule(data=st.data(), now=st.sampled_from([False, False, False, True]))
    def end_run(self, data: st.DataObject, now: bool) -> None:
        if now and (run := self.open_run(data)):
            self.finish_run(run)

    def finish_run(self, run: ModelRun) -> None:
        for span in reversed(run.spans):
            if span.status is SpanStatus.ACTIVE:
                self.end(run, span, SpanStatus.CANCELLED, None)
        if not run.begun:
            run.begun = True
            self.record(start(run.id))
        run.ended = True
        self.record(finish(run.id))

    # Sending

    @rule(
        most=LIMITS,
        size=SIZES,
        alone=st.just(frozenset[OperationType]()) | ALONE,
        given_ids=st.booleans(),
        aside=st.sets(st.integers(0, 3), max_size=2),
        settles=st.integers(0, 4),
        fails=st.booleans(),
    )
    def send(
        self,
        most: int,
        size: int,
        alone: frozenset[OperationType],
        given_ids: bool,
        aside: set[int],
        settles: int,
        fails: bool,
    ) -> None:
        """A request of which the API does the first ``settles``; the next ``fails`` or was
        not reached."""
        # Only what was sent alone is put aside: nothing that it depends on can wait then.
        first = [
            e
            for at, e in enumerate(self.waiting)
            if e.tried and not any(self.depends(e, older) for older in self.waiting[:at])
        ]
        put_aside = [first[at] for at in sorted({at % len(first) for at in aside if first})]
        request = self.ask(most, size, alone, given_ids, put_aside)
        self.settle(request[:settles])
        if fails and settles < len(request):
            parcel = request[settles].parcel
            assert parcel is not None
            parcel.alone = True

    def ask(
        self,
        most: int = EVERYTHING,
        size: int = EVERYTHING,
        alone: Collection[OperationType] = (),
        given_ids: bool = True,
        aside: Sequence[Expected] = (),
    ) -> list[Expected]:
        parcels = self.backlog.next_request(
            most,
            size,
            alone=alone,
            given_ids=given_ids,
            aside=[parcel for e in aside if (parcel := e.parcel) is not None],
        )
        eligible = self.waiting
        if aside:
            independent = [e for e in eligible if not any(self.depends(e, a) for a in aside)]
            eligible = independent or [aside[0]]
        assert bool(parcels) == bool(eligible)
        request = eligible[: len(parcels)]
        for expected, parcel in zip(request, parcels, strict=True):
            # The parcels of the model, in its order, and nothing else.
            self.check(expected, parcel)
        if len(parcels) > 1:
            assert sum(parcel.count for parcel in parcels) <= most
            assert sum(parcel.size for parcel in parcels) <= size
            assert not any(single(parcel, alone) for parcel in parcels)
        # What was left out would not have fitted.
        if 0 < len(parcels) < len(eligible):
            left = eligible[len(parcels)]
            together = [*request, left]
            assert (
                single(parcels[-1], alone)
                or single(left.parcel or Parcel(left.operation, 0, 0), alone)
                or sum(len(e.recorded) for e in together) > most
                or sum(e.operation.size for e in together) > size
                or (not given_ids and refers_to_new([e.operation for e in together]))
            )
        if not given_ids:
            assert not refers_to_new([parcel.operation for parcel in parcels])
        return request

    def check(self, expected: Expected, parcel: Parcel) -> None:
        assert parcel.operation == expected.operation
        assert parcel.position == expected.position
        assert parcel.count == len(expected.recorded)
        assert parcel.size == expected.operation.size
        assert parcel.sent
        body = msgspec.json.encode(parcel.operation)
        if expected.tried:
            # One key stands for one body, whatever was recorded since.
            assert expected.parcel is parcel
            assert expected.body == body
        expected.tried, expected.parcel, expected.body = True, parcel, body

    def depends(self, other: Expected, on: Expected) -> bool:
        """Whether ``other`` may not be told before ``on``, which waits."""
        one, two = on.operation, other.operation
        if one.instance_id != two.instance_id:
            return False
        if other is on:
            return True
        if isinstance(two, RecordQuality):
            return isinstance(one, RegisterAgentInstance) or (
                isinstance(one, RecordQuality) and one.name == two.name
            )
        if isinstance(one, RecordQuality):
            return False
        if isinstance(one, RegisterAgentInstance | StartAgentInstance):
            return True
        if not isinstance(two, CreateSpan | FinishSpan):
            return True
        span: ModelSpan | None = self.spans[two.span_id]
        while span is not None and isinstance(one, CreateSpan):
            if span.id == one.span_id:
                return True
            span = span.parent
        return False

    def settle(self, request: Sequence[Expected]) -> None:
        for expected in request:
            assert expected.parcel is not None
            self.api.do(expected.parcel)
            self.backlog.remove(expected.parcel)
            self.waiting.remove(expected)
            self.settled += expected.parcel.count

    # What always holds

    @invariant()
    def every_operation_waits_or_is_settled(self) -> None:
        assert self.backlog.taken == self.recorded
        assert self.backlog.operations == self.recorded - self.settled
        assert len(self.backlog) == len(self.waiting)
        assert bool(self.backlog) == bool(self.waiting)
        assert self.api.done == self.settled

    @invariant()
    def what_is_settled_without_a_gap_ends_where_the_oldest_parcel_waits(self) -> None:
        oldest = min((e.position for e in self.waiting), default=self.recorded)
        assert self.backlog.settled_through == oldest

    @invariant()
    def what_was_sent_is_not_touched(self) -> None:
        for expected in self.waiting:
            if expected.parcel is not None:
                assert msgspec.json.encode(expected.parcel.operation) == expected.body

    def teardown(self) -> None:
        """All runs end; everything arrives, as it was recorded."""
        for run in self.runs:
            if not run.ended:
                self.finish_run(run)
        while self.waiting:
            self.settle(self.ask())
        assert self.backlog.settled_through == self.backlog.taken == self.settled
        assert (len(self.backlog), self.backlog.operations) == (0, 0)
        assert request_of(self.backlog) == []
        assert self.api.finished == {run.id for run in self.runs}
        assert self.api.quality == self.quality
        recorded = {
            span.id: (span.parent.id if span.parent else None, span.status, self.results[span.id])
            for span in self.spans.values()
        }
        stored = {
            id_: (span.parent, span.status, span.result) for id_, span in self.api.spans.items()
        }
        assert stored == recorded


def single(parcel: Parcel, alone: Collection[OperationType]) -> bool:
    """Whether a parcel can only go alone."""
    operation = parcel.operation
    return parcel.alone or isinstance(operation, RegisterAgentInstance) or operation.type in alone


def refers_to_new(operations: Sequence[Operation]) -> bool:
    """Whether one of them names a span that another one before it makes known, or ends."""
    named: set[str] = set()
    for operation in operations:
        if isinstance(operation, CreateSpan | FinishSpan):
            if operation.span_id in named:
                return True
            if isinstance(operation, CreateSpan) and operation.parent_span_id in named:
                return True
            named.add(operation.span_id)
    return False


def test_any_recording_arrives_once_in_order_and_whole() -> None:
    run_state_machine_as_test(
        Deliveries, settings=settings(max_examples=300, stateful_step_count=40)
    )
