"""Batcher: what goes into the next request, by examples and by a rule machine with a model."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
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
from support.examples import examples

from prefactor_core.export.batch import Batcher, half, independent_of
from prefactor_core.export.batch_item import BatchItem
from prefactor_core.models.clock import to_nanoseconds
from prefactor_core.models.lifecycle import InstanceStatus, SpanStatus
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
from prefactor_core.operations.identifiers import idempotency_key

EVERYTHING = 1_000_000
NOON = to_nanoseconds(datetime(2026, 7, 20, 12, tzinfo=UTC))
SECOND = 1_000_000_000
ENDED = [SpanStatus.COMPLETE, SpanStatus.FAILED, SpanStatus.CANCELLED]
MERGED = [SpanStatus.COMPLETE, SpanStatus.FAILED]


def register(run: str = "run") -> RegisterAgentInstance:
    return RegisterAgentInstance(
        timestamp=NOON,
        idempotency_key=idempotency_key(run, "register"),
        agent_id="agent",
        agent_version=Raw(b'{"name":"Agent"}'),
        agent_schema_version=Raw(b'{"span_schemas":{"agent:llm":{}}}'),
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
    at: int = NOON,
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
        result_payload=Raw(b'{"sent":"at once"}') if ended else UNSET,
    )


def end(
    span: str,
    run: str = "run",
    *,
    status: SpanStatus = SpanStatus.COMPLETE,
    result: bytes | None = None,
    at: int = NOON + SECOND,
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


def batcher_of(*operations: Operation) -> Batcher:
    batcher = Batcher()
    for operation in operations:
        batcher.add(operation)
    return batcher


def request_of(batcher: Batcher, most: int = EVERYTHING, **how: Any) -> list[BatchItem]:
    return batcher.next_batch(most, EVERYTHING, **how)


def send(batcher: Batcher, most: int = EVERYTHING, **how: Any) -> list[BatchItem]:
    request = request_of(batcher, most, **how)
    batcher.mark_sent(request)
    return request


def complete(batcher: Batcher, items: Iterable[BatchItem]) -> None:
    for item in items:
        item.completed = True
        batcher.remove_completed([item])


def keys(items: Iterable[BatchItem]) -> list[str]:
    return [item.operation.idempotency_key for item in items]


def items_of(*operations: Operation) -> list[BatchItem]:
    return [
        BatchItem(operation, at, operation.size, (operation.idempotency_key,))
        for at, operation in enumerate(operations)
    ]


# Merging


@pytest.mark.parametrize("status", MERGED)
def test_a_finish_that_meets_its_start_makes_one_create_with_both_times(
    status: SpanStatus,
) -> None:
    begun, ended = create("s", "p", payload=b'{"a":1}'), end("s", status=status, result=b'{"b":2}')
    batcher = batcher_of(begun)
    assert batcher.add(ended)
    (item,) = request_of(batcher)
    assert item.operation == CreateSpan(
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
    assert (item.count, item.size) == (2, begun.size + ended.size - ENVELOPE_SIZE)
    assert (batcher.operations, batcher.added) == (2, 2)


def test_a_merged_create_has_no_result_if_the_finish_has_none() -> None:
    (item,) = request_of(batcher_of(create("s"), end("s")))
    assert isinstance(item.operation, CreateSpan)
    assert item.operation.result_payload is UNSET


def test_a_cancelled_span_keeps_its_two_steps() -> None:
    batcher = batcher_of(create("s"))
    assert not batcher.add(cancel("s"))
    assert keys(request_of(batcher)) == ["s-create", "s-finish"]


def test_a_span_that_never_began_keeps_its_two_steps() -> None:
    batcher = batcher_of(create("s", status=SpanStatus.PENDING))
    assert not batcher.add(cancel("s"))
    assert keys(request_of(batcher)) == ["s-create", "s-finish"]


@pytest.mark.parametrize("status", [SpanStatus.PENDING, *MERGED])
def test_only_a_span_that_is_active_takes_its_finish_in(status: SpanStatus) -> None:
    # None of these can be finished; it is the API that says so.
    batcher = batcher_of(create("s", status=status))
    assert not batcher.add(end("s"))
    assert keys(request_of(batcher)) == ["s-create", "s-finish"]


def test_what_was_sent_takes_no_finish_in() -> None:
    # Its idempotency key would stand for two requests.
    batcher = batcher_of(create("s"))
    (item,) = send(batcher)
    before = item.operation
    assert not batcher.add(end("s"))
    assert item.operation is before
    assert keys(request_of(batcher)) == ["s-create", "s-finish"]


def test_what_could_have_been_sent_still_takes_its_finish_in() -> None:
    # As if there was an outage, and no request could be made.
    batcher = batcher_of(create("s"))
    (item,) = request_of(batcher)
    assert batcher.add(end("s"))
    assert request_of(batcher) == [item]
    assert (item.count, item.sent) == (2, False)


def test_what_did_not_fit_into_a_request_still_takes_its_finish_in() -> None:
    batcher = batcher_of(create("first"), create("second"))
    assert keys(send(batcher, 1)) == ["first-create"]
    assert batcher.add(end("second"))
    assert not batcher.add(end("first"))


def test_a_merged_span_goes_before_the_children_that_were_recorded_before_its_end() -> None:
    batcher = batcher_of(start(), create("p"), create("c", "p"), end("c"), end("p"), finish())
    assert keys(request_of(batcher)) == ["run-start", "p-create", "c-create", "run-finish"]


def test_nothing_of_a_completed_span_is_waited_for() -> None:
    # Its finish comes back as an operation of its own, and is not lost in what has left.
    batcher = batcher_of(create("s"))
    (item,) = request_of(batcher)
    complete(batcher, [item])
    assert not batcher.add(end("s"))
    assert keys(request_of(batcher)) == ["s-finish"]


# Limits


def test_a_request_has_at_most_the_operations_it_may_have_and_a_merged_span_is_two() -> None:
    batcher = batcher_of(create("a"), end("a"), create("b"), create("c"))
    assert keys(request_of(batcher, 3)) == ["a-create", "b-create"]
    assert keys(request_of(batcher, 4)) == ["a-create", "b-create", "c-create"]


def test_a_request_has_at_most_the_bytes_it_may_have() -> None:
    batcher = batcher_of(create("a"), create("b"), create("c"))
    two = 2 * create("a").size
    assert keys(batcher.next_batch(EVERYTHING, two)) == ["a-create", "b-create"]
    assert keys(batcher.next_batch(EVERYTHING, two - 1)) == ["a-create"]


@pytest.mark.parametrize(("operations", "size"), [(1, EVERYTHING), (EVERYTHING, 1), (1, 1)])
def test_one_item_always_goes(operations: int, size: int) -> None:
    batcher = batcher_of(create("a"), end("a"), create("b"))
    assert keys(batcher.next_batch(operations, size)) == ["a-create"]


def test_an_empty_backlog_has_no_request() -> None:
    assert request_of(Batcher()) == []


def test_a_registration_takes_nothing_else_of_its_run_along() -> None:
    # What the API calls the run comes with the answer.
    batcher = batcher_of(start("other"), register(), start(), create("s"), create("o", run="other"))
    complete(batcher, first := send(batcher))
    assert keys(first) == ["other-start", "o-create", "run-register"]
    assert keys(request_of(batcher)) == ["run-start", "s-create"]


def test_registrations_share_a_request() -> None:
    runs = ["a", "b", "c"]
    batcher = batcher_of(*[operation for run in runs for operation in (register(run), start(run))])
    complete(batcher, first := send(batcher))
    assert keys(first) == ["a-register", "b-register", "c-register"]
    assert keys(send(batcher)) == ["a-start", "b-start", "c-start"]


def test_types_that_bulk_does_not_take_go_alone_when_their_turn_comes() -> None:
    batcher = batcher_of(create("a"), start("other"), create("b"), create("o", run="other"))
    alone = {OperationType.START_AGENT_INSTANCE}
    for expected in (["a-create", "b-create"], ["other-start"], ["o-create"]):
        complete(batcher, request := send(batcher, alone=alone))
        assert keys(request) == expected


def test_where_bulk_takes_nothing_all_goes_alone_and_runs_take_turns() -> None:
    runs = ["a", "b"]
    batcher = batcher_of(*[create(f"{run}{n}", run=run) for run in runs for n in range(2)])
    order = []
    while batcher:
        complete(batcher, request := send(batcher, alone=frozenset(OperationType)))
        (item,) = request
        order.append(item.operation.idempotency_key)
    assert order == ["a0-create", "b0-create", "a1-create", "b1-create"]


@pytest.mark.parametrize("flag", ["alone", "in_bulk"])
def test_an_item_that_is_asked_about_goes_without_any_other(flag: str) -> None:
    batcher = batcher_of(create("a"), create("b"), create("o", run="other"))
    first, _, other = request_of(batcher)
    setattr(first, flag, True)
    assert request_of(batcher) == [first]
    # Also where another run comes first: it waits for its turn.
    setattr(other, flag, True)
    setattr(first, flag, False)
    assert keys(send(batcher)) == ["a-create", "b-create"]
    assert request_of(batcher) == [other]


def test_what_does_not_go_with_others_takes_no_room_from_them() -> None:
    batcher = batcher_of(
        create("a"),
        create("b", run="second", payload=b'"%s"' % (b"x" * 1_000)),
        create("c", run="third"),
    )
    request_of(batcher)[1].alone = True
    both = 2 * create("a").size
    assert keys(batcher.next_batch(2, EVERYTHING)) == ["a-create", "c-create"]
    assert keys(batcher.next_batch(EVERYTHING, both)) == ["a-create", "c-create"]


def test_two_operations_with_one_key_never_share_a_request() -> None:
    # Two spans were given the same id.
    batcher = batcher_of(
        create("s"), create("a"), create("s", run="other"), create("b", run="other")
    )
    complete(batcher, first := send(batcher))
    assert keys(first) == ["s-create", "a-create"]
    assert keys(request_of(batcher)) == ["s-create", "b-create"]


def test_an_item_that_bulk_failed_at_goes_alone() -> None:
    batcher = batcher_of(create("a"), create("b"), create("c"))
    _, second, _ = request_of(batcher)
    second.alone = True
    assert keys(request_of(batcher)) == ["a-create"]


def test_without_given_ids_nothing_goes_together_with_the_span_that_it_refers_to() -> None:
    batcher = batcher_of(create("p"), create("other"), create("c", "p"), create("d", "c"))
    assert keys(request_of(batcher, given_ids=False)) == ["p-create", "other-create"]
    batcher = batcher_of(create("s", status=SpanStatus.PENDING), cancel("s"))
    assert keys(request_of(batcher, given_ids=False)) == ["s-create"]


def test_without_given_ids_what_refers_to_spans_that_are_known_goes_together() -> None:
    batcher = batcher_of(create("a", "known"), create("b", "known"), end("known"), finish())
    assert len(request_of(batcher, given_ids=False)) == 4


@pytest.mark.parametrize(("counts", "expected"), [([1, 1], 1), ([1, 2], 1), ([2, 2, 1], 2)])
def test_half_of_a_request_has_half_its_operations_and_one_at_least(
    counts: list[int], expected: int
) -> None:
    items = items_of(*[create(str(n)) for n in range(len(counts))])
    for item, count in zip(items, counts, strict=True):
        item.keys = item.keys * count
    assert half(items) == expected
    assert half(items[:1]) == 1


@pytest.mark.parametrize("merged", [set[int](), {0}, {1}, {0, 2}, {0, 1, 2, 3, 4}])
@pytest.mark.parametrize("length", range(2, 6))
def test_a_request_of_several_items_comes_down_to_its_first_one_by_halves(
    length: int, merged: set[int]
) -> None:
    batcher = Batcher()
    for number in range(length):
        batcher.add(create(str(number)))
        if number in merged:
            batcher.add(end(str(number)))
    request = request_of(batcher)
    while len(request) > 1:
        smaller = request_of(batcher, half(request))
        assert smaller == request[: len(smaller)]
        assert len(smaller) < len(request)
        request = smaller
    assert keys(request) == ["0-create"]


# Turns


def test_runs_take_turns() -> None:
    batcher = batcher_of(*[create(f"{run}{n}", run=run) for run in "ab" for n in range(4)])
    order = []
    while batcher:
        complete(batcher, request := send(batcher, 3))
        order.append([key.removesuffix("-create") for key in keys(request)])
    assert order == [["a0", "a1", "a2"], ["b0", "b1", "b2"], ["a3", "b3"]]


def test_a_run_that_was_sent_and_not_accepted_waits_for_its_turn() -> None:
    batcher = batcher_of(*[create(f"{run}{n}", run=run) for run in "abc" for n in range(2)])
    requests = [keys(send(batcher, 2)) for _ in range(6)]
    assert requests[:3] == [[f"{run}0-create", f"{run}1-create"] for run in "abc"]
    assert requests[3:] == requests[:3]


def test_runs_of_one_request_keep_their_order() -> None:
    runs = [f"run-{n}" for n in range(50)]
    batcher = batcher_of(*[create(run, run=run) for run in runs])
    first = keys(send(batcher))
    assert keys(send(batcher)) == first == [f"{run}-create" for run in runs]


# Ids


def test_an_id_is_given_or_not_when_an_item_is_sent_and_so_it_stays() -> None:
    batcher = batcher_of(create("a"), create("b"))
    first, second = request_of(batcher)
    batcher.mark_sent([first], given_ids=False)
    batcher.mark_sent([first, second], given_ids=True)
    assert (first.given_id, second.given_id) == (False, True)
    batcher.mark_sent([first, second], given_ids=False, one_given_id=True)
    assert (first.given_id, second.given_id) == (False, True)


def test_one_span_of_a_request_may_be_given_an_id_to_see_whether_the_api_takes_it() -> None:
    batcher = batcher_of(end("x"), create("old"), create("a"), create("b"))
    request = request_of(batcher)
    batcher.mark_sent(request[1:2], given_ids=False)
    batcher.mark_sent(request, given_ids=False, one_given_id=True)
    assert [item.given_id for item in request[1:]] == [False, True, False]


# Waiting


def test_nothing_of_a_run_that_is_held_is_sent_before_its_time() -> None:
    batcher = batcher_of(create("a"), create("b"), create("o", run="other"))
    batcher.hold(send(batcher, 1), until=5.0)
    assert keys(request_of(batcher, now=4.9)) == ["o-create"]
    assert batcher.next_due(4.9) == 5.0
    assert keys(request_of(batcher, now=5.0)) == ["o-create", "a-create", "b-create"]
    assert keys(request_of(batcher, now=0.0)) == ["o-create", "a-create", "b-create"]


def test_of_a_request_that_is_held_all_runs_are() -> None:
    batcher = batcher_of(create("a"), create("o", run="other"))
    batcher.hold(send(batcher), until=5.0)
    batcher.add(create("new", run="third"))
    assert keys(request_of(batcher, now=4.0)) == ["new-create"]
    batcher.retry_now()
    assert keys(request_of(batcher, now=4.0)) == ["a-create", "o-create", "new-create"]


def test_a_deferred_item_is_sent_again_when_it_is_due() -> None:
    batcher = batcher_of(create("s"), create("x"), end("x"), create("c", "s"))
    (first,) = send(batcher, 1)
    batcher.defer(first, due=5.0)
    assert keys(request_of(batcher, now=4.9)) == ["x-create"]
    assert batcher.next_due(4.9) == 5.0
    assert keys(request_of(batcher, now=5.0)) == ["s-create", "x-create", "c-create"]


def test_an_item_that_is_deferred_again_is_due_later() -> None:
    batcher = batcher_of(create("s"), cancel("s"))
    (first,) = send(batcher, 1)
    batcher.defer(first, due=5.0)
    batcher.defer(first, due=9.0)
    assert (request_of(batcher, now=6.0), batcher.next_due(6.0)) == ([], 9.0)
    complete(batcher, [first])
    assert keys(request_of(batcher, now=6.0)) == ["s-finish"]


def test_to_retry_now_ends_every_wait() -> None:
    batcher = batcher_of(create("s"), create("o", run="other"))
    deferred, held = send(batcher)
    batcher.defer(deferred, due=5.0)
    batcher.hold([held], until=6.0)
    assert request_of(batcher, now=1.0) == []
    batcher.retry_now()
    assert request_of(batcher, now=1.0) == [deferred, held]


def test_the_next_is_due_when_the_first_of_all_runs_is() -> None:
    batcher = batcher_of(create("a", run="1"), create("b", run="2"), create("c", run="3"))
    first, second, third = send(batcher)
    batcher.defer(first, due=7.0)
    batcher.hold([second], until=5.0)
    batcher.defer(third, due=9.0)
    assert (request_of(batcher), batcher.next_due(0.0)) == ([], 5.0)
    complete(batcher, [second])
    assert (request_of(batcher), batcher.next_due(0.0)) == ([], 7.0)


def test_to_see_if_the_api_is_back_the_one_that_is_due_first_may_go_early() -> None:
    batcher = batcher_of(create("a"), create("b", run="other"))
    first, second = send(batcher)
    batcher.defer(first, due=9.0)
    batcher.defer(second, due=5.0)
    assert request_of(batcher, now=1.0) == []
    assert request_of(batcher, now=1.0, probing=True) == [second]
    # One that need not wait is as good.
    batcher.add(create("x"))
    assert keys(request_of(batcher, now=1.0, probing=True)) == ["x-create"]


def test_a_run_that_is_held_is_not_asked_with() -> None:
    batcher = batcher_of(create("a"))
    batcher.hold(send(batcher), until=5.0)
    assert request_of(batcher, now=1.0, probing=True) == []


# Overtaking


DEFERRED = [
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
    (
        quality("cost"),
        [quality("cost", key="later"), quality("score"), create("x"), finish()],
        ["run-score", "x-create", "run-finish"],
    ),
    (start(), [quality("cost"), create("x")], ["run-cost"]),
    (create("s"), [quality("cost"), end("x")], ["run-cost", "x-finish"]),
    (finish(), [quality("cost")], ["run-cost"]),
    (register(), [quality("cost"), start()], []),
]


@pytest.mark.parametrize(("deferred", "others", "expected"), DEFERRED)
def test_only_what_does_not_depend_on_an_item_may_overtake_it(
    deferred: Operation, others: list[Operation], expected: list[str]
) -> None:
    items = items_of(deferred, *[o for o in others if o.instance_id == deferred.instance_id])
    own = keys(items)
    assert keys(independent_of(items[:1], items)) == [key for key in expected if key in own]
    batcher = batcher_of(deferred, *others)
    (first,) = send(batcher, 1)
    batcher.defer(first, due=5.0)
    # A registration takes nothing else of its run along; what waits for a turn goes next.
    overtaking: list[str] = []
    while request := send(batcher, now=1.0):
        overtaking += keys(request)
        complete(batcher, request)
    assert overtaking == expected
    assert keys(request_of(batcher, now=5.0))[:1] == [first.operation.idempotency_key]


def test_what_was_overtaken_comes_first_again() -> None:
    batcher = batcher_of(create("s"), create("x"), create("y"))
    (first,) = send(batcher, 1)
    batcher.defer(first, due=5.0)
    assert keys(send(batcher, now=4.0)) == ["x-create", "y-create"]
    assert keys(request_of(batcher, now=5.0)) == ["s-create", "x-create", "y-create"]


def test_completed_through_stands_at_what_was_overtaken() -> None:
    batcher = batcher_of(create("s"), create("x"), create("y"))
    (first,) = send(batcher, 1)
    batcher.defer(first, due=5.0)
    complete(batcher, send(batcher, now=1.0))
    assert (batcher.completed_through, batcher.operations, batcher.added) == (0, 1, 3)
    complete(batcher, [first])
    assert (batcher.completed_through, batcher.operations, batcher.added) == (3, 0, 3)


def overtaken(*operations: Operation, failed: int = 1) -> tuple[Batcher, list[BatchItem]]:
    """A batcher in the drain, of which the first items failed again and again."""
    batcher = batcher_of(*operations)
    deferred = request_of(batcher)[:failed]
    for item in deferred:
        batcher.mark_sent([item])
        item.overtaken, item.accepted_before = True, 7
        batcher.defer(item, due=5.0)
    return batcher, deferred


DEPENDENT: list[tuple[Operation, list[Operation], list[str]]] = [
    (create("s"), [create("c", "s"), cancel("c"), cancel("s")], ["c-create", "c-finish"]),
    (start(), [create("x"), cancel("x"), finish()], ["x-create", "x-finish", "run-finish"]),
    (cancel("s"), [finish()], ["run-finish"]),
    (register(), [start(), create("x")], []),  # the API does not know the run by its id
]


@pytest.mark.parametrize(("failed", "others", "expected"), DEPENDENT)
def test_in_the_drain_what_depends_on_an_item_that_fails_on_and_on_may_overtake_it(
    failed: Operation, others: list[Operation], expected: list[str]
) -> None:
    # But not the finish of a span that was not created.
    batcher, _ = overtaken(failed, *others)
    assert request_of(batcher, now=1.0) == []
    assert keys(request_of(batcher, now=1.0, overtaking=7)) == expected


def test_when_one_of_those_is_accepted_the_failed_item_is_tried_once_more() -> None:
    batcher, (first,) = overtaken(create("s"), create("c", "s"), create("d", "s"))
    (child,) = send(batcher, 1, now=1.0, overtaking=7)
    complete(batcher, [child])
    assert request_of(batcher, now=1.0, overtaking=8) == []
    assert request_of(batcher, 1, now=5.0, overtaking=8) == [first]


def test_nothing_is_overaccepted_before_it_has_failed_often_enough() -> None:
    batcher, (first, second) = overtaken(
        create("s"), create("t"), create("c", "s"), create("d", "t"), failed=2
    )
    assert len(request_of(batcher, now=1.0, overtaking=7)) == 2
    second.overtaken = False
    assert request_of(batcher, now=1.0, overtaking=7) == []
    second.overtaken, first.accepted_before = True, None
    assert request_of(batcher, now=1.0, overtaking=7) == []


def test_nothing_is_overtaken_while_anything_else_can_be_sent() -> None:
    batcher, _ = overtaken(create("s"), create("c", "s"))
    batcher.add(create("o", run="other"))
    assert keys(request_of(batcher, now=1.0, overtaking=7)) == ["o-create"]


def test_where_nothing_can_be_sent_the_next_is_due_in_the_future() -> None:
    # The child overtook its parent, failed as well, and was due before it.
    batcher, (parent,) = overtaken(create("s"), create("c", "s"))
    (child,) = send(batcher, now=1.0, overtaking=7)
    child.accepted_before = 7
    batcher.defer(child, due=2.0)
    assert request_of(batcher, now=3.0, overtaking=7) == []
    assert batcher.next_due(3.0) == 5.0
    assert request_of(batcher, now=5.0) == [parent, child]


def test_of_a_batch_only_the_completed_items_are_removed() -> None:
    batcher = batcher_of(create("s"), end("s"), create("x"))
    first, second = request_of(batcher)
    first.completed = True
    batcher.remove_completed([first, second])
    assert (batcher.operations, keys(request_of(batcher))) == (1, ["x-create"])
    complete(batcher, [second])
    assert (batcher.operations, bool(batcher)) == (0, False)


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
    """A item as the model has it: what it was recorded from, and what the batcher gave."""

    position: int
    recorded: list[Operation]
    tried: bool = False
    item: BatchItem | None = None
    body: bytes = b""
    given_id: bool = True
    # When what was deferred may be sent again; not positive if it was not.
    due: float = 0.0

    @property
    def operation(self) -> Operation:
        """Something to send to the API."""
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
    started: int
    finished: int | None
    result: bytes | UnsetType


class StrictApi:
    """Does each operation once, in an allowed order; asserts on everything else."""

    def __init__(self) -> None:
        self.registered: set[str] = set()
        self.active: set[str] = set()
        self.finished: set[str] = set()
        self.spans: dict[str, StoredSpan] = {}
        self.quality: dict[tuple[str, str], str] = {}
        self.done = 0
        self.done_keys: set[str] = set()

    def do(self, item: BatchItem) -> None:
        operation = item.operation
        assert operation.idempotency_key not in self.done_keys
        self.done_keys.add(operation.idempotency_key)
        self.done += item.count
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
ALONE = st.frozensets(
    st.sampled_from(
        [
            OperationType.REGISTER_AGENT_INSTANCE,
            OperationType.CREATE_SPAN,
            OperationType.FINISH_SPAN,
            OperationType.RECORD_QUALITY,
        ]
    ),
    max_size=1,
) | st.just(frozenset(OperationType))


class Deliveries(RuleBasedStateMachine):
    """Records a few runs, asks for batches, and completes a part of each as bulk does."""

    def __init__(self) -> None:
        super().__init__()
        self.batcher = Batcher()
        self.api = StrictApi()
        self.runs: list[ModelRun] = []
        # What was recorded and not completed, in order.
        self.waiting: list[Expected] = []
        # The runs of it in the order of their turns; those that are held, and until when.
        self.turns: list[str] = []
        self.held: dict[str, float] = {}
        self.time = 0.0
        self.recorded = 0
        self.completed = 0
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
        assert self.batcher.add(operation) == (merges is not None)
        if merges is not None:
            merges.recorded.append(operation)
        else:
            self.waiting.append(Expected(self.recorded, [operation]))
            if operation.instance_id not in self.turns:
                self.turns.append(operation.instance_id)
        self.recorded += 1

    def tick(self) -> int:
        self.now += SECOND // 1_000
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
        self.results[span.id] = b'{"sent":"at once"}' if status in MERGED else UNSET
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
        probing=st.booleans(),
        completes=st.integers(0, 4),
        failure=st.sampled_from(["alone", "in_bulk", "hold", "deferred", "nothing"]),
        wait=st.integers(1, 3),
    )
    def send(
        self,
        most: int,
        size: int,
        alone: frozenset[OperationType],
        given_ids: bool,
        probing: bool,
        completes: int,
        failure: str,
        wait: int,
    ) -> None:
        """A request of which the API does the first ``completes``; what comes of the next."""
        request = self.ask(most, size, alone, given_ids, probing)
        self.sent(request, given_ids)
        self.complete(request[:completes])
        if not (left := request[completes:]):
            return
        first = left[0]
        item = first.item
        assert item is not None
        match failure:
            case "alone":
                item.alone, item.in_bulk = True, False
            case "in_bulk":
                item.in_bulk, item.alone = True, False
            case "hold":
                self.hold(left, self.time + wait)
            case "deferred" if not any(
                self.depends(first, other) for other in self.waiting if other is not first
            ):
                # Only what was sent alone: nothing that it depends on can wait then.
                self.batcher.defer(item, self.time + wait)
                first.due = self.time + wait
            case _:
                pass

    @rule(most=LIMITS, size=SIZES, given_ids=st.booleans(), probing=st.booleans())
    def look(self, most: int, size: int, given_ids: bool, probing: bool) -> None:
        """A request that is not sent, because of an outage: nothing has changed."""
        self.ask(most, size, (), given_ids, probing)

    @rule(seconds=st.integers(1, 4))
    def let_time_pass(self, seconds: int) -> None:
        self.time += seconds

    @rule(now=st.sampled_from([False, False, True]))
    def retry_now(self, now: bool) -> None:
        if now:
            self.batcher.retry_now()
            self.held.clear()
            for expected in self.waiting:
                expected.due = min(expected.due, 0.0)

    def hold(self, request: Sequence[Expected], until: float) -> None:
        items = [item for e in request if (item := e.item) is not None]
        self.batcher.hold(items, until)
        for expected in request:
            self.held[expected.operation.instance_id] = until

    def ready(self, run: str) -> list[Expected]:
        """What may be sent of a run now, in order."""
        if self.held.get(run, -math.inf) > self.time:
            return []
        mine = [e for e in self.waiting if e.operation.instance_id == run]
        deferred = [e for e in mine if e.due > self.time]
        return [e for e in mine if not any(self.depends(e, other) for other in deferred)]

    def ask(
        self,
        most: int = EVERYTHING,
        size: int = EVERYTHING,
        alone: Collection[OperationType] = (),
        given_ids: bool = True,
        probing: bool = False,
    ) -> list[Expected]:
        """The next request, which is the right one."""
        items = self.batcher.next_batch(
            most, size, now=self.time, alone=alone, given_ids=given_ids, probing=probing
        )
        ready = [self.ready(run) for run in self.turns]
        if not any(ready):
            return self.ask_early(items, probing)
        request: list[Expected] = []
        for run in ready:
            for expected in run:
                why_not = self.why_not(request, expected, most, size, alone, given_ids)
                if why_not:
                    break
                request.append(expected)
            else:
                continue
            if why_not == "full":
                break
        assert len(items) == len(request)
        for expected, item in zip(request, items, strict=True):
            self.check(expected, item)
        return request

    def why_not(
        self,
        request: list[Expected],
        expected: Expected,
        most: int,
        size: int,
        alone: Collection[OperationType],
        given_ids: bool,
    ) -> str:
        """Why an operation is not added to a request: it is "full", for other runs, too, or "not
        yet" for the run of the operation; else nothing."""
        together = [*request, expected]
        if not request:
            return ""
        if single(request[0], alone):
            return "full"
        if single(expected, alone):
            return "not yet"
        run = expected.operation.instance_id
        if any(
            isinstance(e.operation, RegisterAgentInstance) and e.operation.instance_id == run
            for e in request
        ):
            return "not yet"
        if sum(len(e.recorded) for e in together) > most:
            return "full"
        if sum(e.operation.size for e in together) > size:
            return "full"
        if not given_ids and refers_to_new([e.operation for e in together]):
            return "not yet"
        return ""

    def ask_early(self, items: list[BatchItem], probing: bool) -> list[Expected]:
        """Nothing may be sent now: perhaps what is due first, to see if the API is back."""
        deferred = [e for e in self.waiting if e.due > 0]
        first = min((e.due for e in deferred), default=0.0)
        request = [e for e in deferred if [e.item] == items]
        assert len(request) == len(items) == (probing and bool(deferred))
        assert all(e.due == first for e in request)
        if not self.waiting:
            return []
        # Each run waits, for its own time or for that of what was deferred; the worker for both.
        due = self.batcher.next_due(self.time)
        held = {run: until for run, until in self.held.items() if until > self.time}
        assert due == min(
            *held.values(),
            *(e.due for e in deferred if e.operation.instance_id not in held and e.due > self.time),
            math.inf,
            math.inf,
        )
        assert self.time < due < math.inf
        return request

    def sent(self, request: Sequence[Expected], given_ids: bool = True) -> None:
        """The request is made: it goes to the end of the turns, and its bodies are fixed."""
        items = [item for e in request if (item := e.item) is not None]
        self.batcher.mark_sent(items, given_ids=given_ids)
        for expected in request:
            assert expected.item is not None
            if not expected.tried:
                expected.given_id = given_ids
            expected.tried = True
            expected.body = msgspec.json.encode(expected.operation)
        for run in dict.fromkeys(e.operation.instance_id for e in request):
            self.turns.remove(run)
            self.turns.append(run)

    def check(self, expected: Expected, item: BatchItem) -> None:
        assert item.operation == expected.operation
        assert item.position == expected.position
        assert item.count == len(expected.recorded)
        assert item.size == expected.operation.size
        assert item.sent == expected.tried
        if expected.tried:
            # One key stands for one body, whatever was recorded since.
            assert expected.item is item
            assert item.given_id == expected.given_id
            assert expected.body == msgspec.json.encode(item.operation)
        expected.item = item

    def depends(self, other: Expected, on: Expected) -> bool:
        """Whether ``other`` may not be sent before ``on``, which waits."""
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

    def complete(self, request: Sequence[Expected]) -> None:
        for expected in request:
            assert expected.item is not None
            self.api.do(expected.item)
            complete(self.batcher, [expected.item])
            self.waiting.remove(expected)
            self.completed += expected.item.count
        left = {e.operation.instance_id for e in self.waiting}
        self.turns = [run for run in self.turns if run in left]
        self.held = {run: until for run, until in self.held.items() if run in left}

    # What always holds

    @invariant()
    def every_operation_waits_or_is_completed(self) -> None:
        assert self.batcher.added == self.recorded
        assert self.batcher.operations == self.recorded - self.completed
        assert bool(self.batcher) == bool(self.waiting)
        assert self.api.done == self.completed

    @invariant()
    def completed_without_a_gap_ends_where_the_oldest_item_waits(self) -> None:
        oldest = min((e.position for e in self.waiting), default=self.recorded)
        assert self.batcher.completed_through == oldest

    @invariant()
    def what_was_sent_is_not_touched(self) -> None:
        for expected in self.waiting:
            if expected.tried:
                assert expected.item is not None
                assert msgspec.json.encode(expected.item.operation) == expected.body

    def teardown(self) -> None:
        """All runs end; everything arrives, as it was recorded."""
        for run in self.runs:
            if not run.ended:
                self.finish_run(run)
        while self.waiting:
            if request := self.ask():
                self.sent(request)
                self.complete(request)
            else:
                self.time = self.batcher.next_due(self.time)
        assert self.batcher.completed_through == self.batcher.added == self.completed
        assert (bool(self.batcher), self.batcher.operations) == (False, 0)
        assert request_of(self.batcher) == []
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


def single(expected: Expected, alone: Collection[OperationType]) -> bool:
    """Whether an item can only go alone."""
    item = expected.item
    asked = item is not None and (item.alone or item.in_bulk)
    return asked or expected.operation.type in alone


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
        Deliveries, settings=settings(max_examples=examples(100), stateful_step_count=40)
    )


def test_what_waits_for_a_failed_item_can_be_taken_back_and_added_again() -> None:
    batcher = batcher_of(register(), start(), create("a"), register("other"), start("other"))
    (failed, *_) = send(batcher, 1)
    batcher.defer(failed, due=5.0)
    assert batcher.failing() == {"run"}
    back = batcher.take_back("run")
    assert [item.operation for item in back] == [start(), create("a")]
    assert batcher.operations == 3
    assert failed in batcher.items()
    # Not into the create, which is not here any more.
    assert not batcher.add(end("a"))
    failed.completed = True
    batcher.remove_completed([failed])
    assert batcher.failing() == set()


def test_what_does_not_wait_for_a_failed_item_stays() -> None:
    batcher = batcher_of(create("a"), create("b", parent="a"), create("c"), end("c"), finish())
    (failed, *_) = send(batcher, 1)
    batcher.defer(failed, due=5.0)
    back = batcher.take_back("run")
    assert [item.operation for item in back] == [create("b", parent="a"), finish()]
