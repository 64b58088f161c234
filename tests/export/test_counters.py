"""Counters and Statistics: at every step, what was accepted is delivered, pending or dropped."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from msgspec import Raw, Struct
from support.examples import examples

from prefactor_core.exceptions import PrefactorUnreachableError
from prefactor_core.export.circuit_breaker import CircuitBreaker
from prefactor_core.export.counters import Counters
from prefactor_core.models.clock import to_nanoseconds
from prefactor_core.models.lifecycle import SpanStatus
from prefactor_core.models.statistics import Statistics
from prefactor_core.operations import ENVELOPE_SIZE, CreateSpan, StartAgentInstance
from prefactor_core.queue.retry_policy import Backoff

NOON = to_nanoseconds(datetime(2026, 7, 20, 12, tzinfo=UTC))
REASONS = st.sampled_from(["refused", "retries_exhausted", "drain_timeout"])


def create(size: int = 2) -> CreateSpan:
    return CreateSpan(
        timestamp=NOON,
        idempotency_key="key-create",
        instance_id="run",
        span_id="span",
        schema_name="agent:llm",
        status=SpanStatus.ACTIVE,
        payload=Raw(b'"%s"' % (b"x" * size)),
    )


class Item(Struct, eq=False):
    """What waits: one operation, or two that were merged."""

    size: int
    count: int = 1


class CountersMachine(RuleBasedStateMachine):
    """What happens to operations, as the workers tell it, against plain sums."""

    def __init__(self) -> None:
        super().__init__()
        self.counters = Counters()
        self.waiting: list[Item] = []
        self.delivered = 0
        self.dropped: Counter[str] = Counter()
        self.merged = self.requests = self.retries = 0

    @rule(size=st.integers(0, 1_000))
    def accept(self, size: int) -> None:
        operation = create(size)
        self.counters.accept(operation)
        self.waiting.append(Item(operation.size))

    @rule(at=st.integers(0, 5))
    def merge(self, at: int) -> None:
        single = [item for item in self.waiting if item.count == 1]
        if len(single) >= 2:
            start, end = single[at % (len(single) - 1)], single[-1]
            self.counters.merge(ENVELOPE_SIZE)
            self.merged += 1
            self.waiting.remove(end)
            start.count, start.size = 2, start.size + end.size - ENVELOPE_SIZE

    @rule(at=st.integers(0, 5), to=st.integers(0, ENVELOPE_SIZE))
    def shrink(self, at: int, to: int) -> None:
        if self.waiting:
            item = self.waiting[at % len(self.waiting)]
            self.counters.shrink(item.size - min(to, item.size))
            item.size = min(to, item.size)

    @rule(items=st.integers(1, 3))
    def deliver(self, items: int) -> None:
        self.counters.request()
        self.requests += 1
        for item in self.waiting[:items]:
            self.counters.deliver(item.count, item.size)
            self.delivered += item.count
        del self.waiting[:items]

    @rule(at=st.integers(0, 5), reason=REASONS)
    def drop(self, at: int, reason: str) -> None:
        if self.waiting:
            item = self.waiting.pop(at % len(self.waiting))
            self.counters.drop(reason, item.count, item.size)
            self.dropped[reason] += item.count

    @rule(reason=st.sampled_from(["full", "queue"]))
    def drop_new(self, reason: str) -> None:
        self.counters.drop_new(reason)
        self.dropped[reason] += 1

    @rule()
    def retry(self) -> None:
        self.counters.retry()
        self.retries += 1

    @rule(now=st.sampled_from([False, False, True]))
    def drop_rest(self, now: bool) -> None:
        if now:
            self.counters.drop_rest("drain_timeout")
            if self.waiting:
                self.dropped["drain_timeout"] += sum(item.count for item in self.waiting)
            self.waiting.clear()

    @invariant()
    def the_balance_is_even(self) -> None:
        seen = self.counters.statistics()
        assert seen.accepted == seen.delivered + seen.pending + sum(seen.dropped.values())
        assert seen.pending == self.counters.pending == sum(item.count for item in self.waiting)
        assert seen.pending_bytes == sum(item.size for item in self.waiting) >= 0
        assert seen.delivered == self.delivered
        assert seen.dropped == dict(self.dropped)
        assert seen.lost == self.dropped.total()
        assert (seen.merged, seen.requests, seen.retries) == (
            self.merged,
            self.requests,
            self.retries,
        )

    def teardown(self) -> None:
        self.counters.drop_rest("drain_timeout")
        assert (self.counters.pending, self.counters.pending_bytes) == (0, 0)


def test_the_balance_is_even_for_any_fate_of_operations() -> None:
    run_state_machine_as_test(
        CountersMachine, settings=settings(max_examples=examples(100), stateful_step_count=40)
    )


def test_a_new_counters_is_empty() -> None:
    assert Counters().statistics() == Statistics(
        accepted=0,
        delivered=0,
        pending=0,
        pending_bytes=0,
        open_bytes=0,
        in_flight=0,
        dropped={},
        requests=0,
        retries=0,
        merged=0,
        last_error=None,
        outage_since=None,
    )


def test_nothing_that_is_left_is_no_loss() -> None:
    counters = Counters()
    counters.accept(create())
    counters.deliver(1, create().size)
    counters.drop_rest("drain_timeout")
    assert counters.statistics().dropped == {}


def test_an_operation_takes_bytes_by_its_payload_from_recording_to_its_end() -> None:
    counters = Counters()
    counters.accept(create(1_000))
    assert counters.pending_bytes == ENVELOPE_SIZE + 1_002
    start = StartAgentInstance(timestamp=NOON, idempotency_key="key-start", instance_id="run")
    counters.accept(start)
    assert counters.pending_bytes == 2 * ENVELOPE_SIZE + 1_002
    counters.drop("refused", 1, create(1_000).size)
    counters.deliver(1, start.size)
    assert counters.pending_bytes == 0


def test_the_last_error_has_its_type() -> None:
    counters = Counters()
    counters.fail(ValueError("first"))
    counters.fail(PrefactorUnreachableError("nobody is there"))
    assert counters.statistics().last_error == "PrefactorUnreachableError: nobody is there"


def test_the_loss_is_the_sum_of_all_reasons() -> None:
    counters = Counters()
    for reason in ("full", "queue", "full"):
        counters.drop_new(reason)
    assert (counters.statistics().dropped, counters.statistics().lost) == (
        {"full": 2, "queue": 1},
        3,
    )


def test_statistics_are_of_one_moment() -> None:
    breaker = CircuitBreaker(Backoff())
    counters = Counters(breaker)
    counters.drop_new("full")
    counters.in_flight, breaker.since = 3, NOON
    seen = counters.statistics()
    counters.drop_new("full")
    counters.accept(create())
    counters.in_flight, breaker.since = 0, None
    assert (seen.accepted, seen.dropped, seen.in_flight) == (1, {"full": 1}, 3)
    assert seen.outage_since == NOON
    seen.dropped["full"] = 99
    assert counters.statistics().dropped == {"full": 2}


@pytest.mark.parametrize("name", [*Statistics.__struct_fields__, "lost"])
def test_statistics_cannot_be_changed(name: str) -> None:
    with pytest.raises(AttributeError):
        setattr(Counters().statistics(), name, 0)


def test_an_operation_accepted_during_the_count_of_another_counts_too() -> None:
    # As by a signal handler that records, or a generator with a span that is finalised.
    class Interrupted(StartAgentInstance):
        @property
        def size(self) -> int:
            counters.accept(create())
            return 100

    counters = Counters()
    counters.accept(Interrupted(timestamp=NOON, idempotency_key="key", instance_id="run"))
    assert (counters.pending, counters.pending_bytes) == (2, 100 + create().size)
