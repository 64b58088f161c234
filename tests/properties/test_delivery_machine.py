"""A rule machine: an API that fails in every way, and a balance that is right at every moment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import anyio
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from support.examples import examples
from support.harness import AGENT
from support.host import Host

from prefactor_core import AgentInstanceHandle, SpanContext

LOST_ANSWERS_ARE_HARMLESS = {"unavailable", "rate_limited", "payload_too_large"}
"""What may be refused: the rest would be a step out of order or a second effect."""


SCHEMA = {"type": "object"}
JUDGED = {
    **AGENT,
    "agent_schema_version": {
        "external_identifier": "judged",
        "span_schemas": {"agent:run": SCHEMA},
        "quality_schemas": [{"name": name, "schema": SCHEMA} for name in ("accuracy", "cost")],
    },
}


@dataclass(eq=False)
class Recorded:
    """A span as it was recorded."""

    context: SpanContext
    instance: AgentInstanceHandle
    parent: Recorded | None
    size: int
    open: bool = True


class Deliveries(RuleBasedStateMachine):
    """Subclasses name the backend."""

    backend = "asyncio"
    runs = Bundle("runs")
    spans = Bundle("spans")

    @initialize(
        batch=st.sampled_from([1, 2, 7, 1000]),
        workers=st.sampled_from([1, 3]),
        room=st.sampled_from([5, 40, 200_000]),
        given_ids=st.booleans(),
        bulk=st.sampled_from([None, None, [], ["agent_spans/create"]]),
    )
    def open_client(
        self, batch: int, workers: int, room: int, given_ids: bool, bulk: list[str] | None
    ) -> None:
        queue = {
            "retry_delay_base": 0.001,
            "batch_window": 0.001,
            "max_batch_operations": batch,
            "num_workers": workers,
            "max_pending_operations": room,
            # Faults are drawn: nothing here is the fault of an operation.
            "max_retries": 1_000,
        }
        http = {"max_retry_delay": 0.002}
        self.host = Host(
            self.backend, queue=queue, http=http, drain_timeout=10.0, registration_timeout=0.01
        )
        self.host.faults.given_ids = given_ids
        self.host.faults.bulk_types = bulk
        self.handles: list[AgentInstanceHandle] = []
        self.recorded: list[Recorded] = []
        # What counts, by run and name; and how many calls of these were dropped.
        self.quality: dict[AgentInstanceHandle, dict[str, Any]] = {}
        self.dropped_quality = 0

    @rule(target=runs)
    def begin_run(self) -> AgentInstanceHandle:
        handle = self.host.do(lambda: self.host.client.create_agent_instance(**JUDGED))
        self.host.do(handle.start)
        self.handles.append(handle)
        return handle

    def _open(self, instance: AgentInstanceHandle, parent: Recorded | None, size: int) -> Recorded:
        async def enter() -> SpanContext:
            parent_id = parent.context.id if parent else None
            span = instance.span("agent:run", parent_id, {"text": "x" * size})
            return await span.__aenter__()

        recorded = Recorded(self.host.do(enter), instance, parent, size)
        self.recorded.append(recorded)
        return recorded

    @rule(target=spans, parent=spans, size=st.integers(0, 300))
    def open_below(self, parent: Recorded, size: int) -> Recorded:
        return self._open(parent.instance, parent if parent.open else None, size)

    @rule(target=spans, instance=runs, size=st.integers(0, 300), times=st.integers(1, 5))
    def open_span(self, instance: AgentInstanceHandle, size: int, times: int) -> Recorded:
        return [self._open(instance, None, size) for _ in range(times)][-1]

    @rule(
        instance=runs,
        name=st.sampled_from(["accuracy", "cost"]),
        payload=st.none() | st.fixed_dictionaries({"score": st.integers(0, 9)}),
        by_handle=st.booleans(),
    )
    def tell_quality(
        self, instance: AgentInstanceHandle, name: str, payload: Any, by_handle: bool
    ) -> None:
        async def tell() -> bool:
            lost = self.host.client.statistics().lost
            if by_handle:
                await instance.record_quality(name, payload)
            else:
                await self.host.client.record_quality(instance.id, name, payload)
            return self.host.client.statistics().lost == lost

        if self.host.do(tell):
            self.quality.setdefault(instance, {})[name] = payload
        else:
            self.dropped_quality += 1

    @rule(span=spans)
    def start(self, span: Recorded) -> None:
        self.host.do(span.context.start)

    @rule(span=spans, way=st.sampled_from(["complete", "fail", "cancel"]))
    def end_span(self, span: Recorded, way: str) -> None:
        self.host.do(getattr(span.context, way))
        span.open = False

    @rule(
        failures=st.sampled_from([0.0, 0.0, 0.5, 1.0]),
        status=st.sampled_from([429, 500, 502, 503]),
        drops=st.sampled_from([0.0, 0.0, 0.5]),
        largest=st.sampled_from([None, None, 3_000]),
    )
    def change_weather(
        self, failures: float, status: int, drops: float, largest: int | None
    ) -> None:
        faults = self.host.faults
        faults.failure_rate, faults.failure_status, faults.drop_rate = failures, status, drops
        faults.max_body_bytes = largest

    @rule()
    def wait(self) -> None:
        self.host.do(lambda: anyio.sleep(0.003))

    @rule()
    def flush_in_good_weather(self) -> None:
        self.change_weather(0.0, 503, 0.0, None)
        self.host.do(self.host.client.flush)
        statistics = self.host.client.statistics()
        assert (statistics.pending, statistics.in_flight, statistics.pending_bytes) == (0, 0, 0)

    @invariant()
    def the_balance_is_right(self) -> None:
        if not hasattr(self, "host"):
            return

        async def look() -> None:
            statistics = self.host.client.statistics()
            assert statistics.accepted == (
                statistics.delivered + statistics.pending + statistics.lost
            ), statistics
            assert 0 <= statistics.in_flight <= statistics.pending
            assert (statistics.pending_bytes > 0) == (statistics.pending > 0)
            assert set(statistics.dropped) <= {"full"}

        self.host.do(look)

    def teardown(self) -> None:
        if not hasattr(self, "host"):
            return
        self.change_weather(0.0, 503, 0.0, None)
        statistics, runs = self.host.end()
        for handle, payloads in self.quality.items():
            expected = {name: payload for name, payload in payloads.items() if payload is not None}
            assert self.host.quality[handle.id] == expected
        assert set(statistics.dropped) <= {"full"}, statistics
        stored = {span.id: span for run in runs for span in run.spans.values()}
        assert len(runs) == len(self.handles)
        assert {run.id for run in runs} == {handle.id for handle in self.handles}
        assert all(run.finished_at is not None for run in runs)
        # Each once; what was dropped, as a whole.
        assert len(stored) == len(self.recorded) + self.dropped_quality - statistics.lost
        for recorded in self.recorded:
            span = stored.get(recorded.context.id)
            if span is None:
                continue
            assert span.status in ("complete", "failed", "cancelled")
            assert span.payload == {"text": "x" * recorded.size} or "$truncated" in span.payload
            parent = recorded.parent
            while parent is not None and parent.context.id not in stored:
                parent = parent.parent
            assert span.parent_id == (parent.context.id if parent else None) or parent is None
        unexpected = self.host.refusals.keys() - LOST_ANSWERS_ARE_HARMLESS
        assert unexpected <= {"validation_errors"}, self.host.refusals
        # Types that bulk does not know, and ids that are given, are found out once.
        assert self.host.refusals.get("validation_errors", 0) <= 12


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_balance_is_right_and_the_tree_complete_whatever_the_api_does(backend: str) -> None:
    machine = type("DeliveriesOn", (Deliveries,), {"backend": backend})
    run_state_machine_as_test(
        machine, settings=settings(max_examples=examples(60), stateful_step_count=30)
    )
