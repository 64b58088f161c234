"""Random calls against a model of the API."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from support.examples import examples
from support.local_api import OUTCOMES, REGISTRATION

from prefactor_core.local.errors import ApiError
from prefactor_core.local.requests import (
    CreateSpanBody,
    FinishInstanceBody,
    FinishSpanBody,
    RegisterBody,
    StartBody,
    TerminateBody,
    parse_body,
)
from prefactor_core.local.service import Service
from prefactor_core.local.store import Store

INSTANCE_STATES = {
    ("pending", "start"): "active",
    ("pending", "cancelled"): "cancelled",
    ("pending", "terminate"): "stopped",  # terminated before it was started
    ("stopped", "start"): "terminated",
    ("active", "complete"): "complete",
    ("active", "failed"): "failed",
    ("active", "cancelled"): "cancelled",
    ("active", "terminate"): "terminated",
}
STORED = {"stopped": "terminated"}
SPAN_STATES = {("pending", "cancelled"), *(("active", outcome) for outcome in OUTCOMES)}
outcomes = st.sampled_from(OUTCOMES)
payloads = st.dictionaries(
    st.text(max_size=3), st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3)
)


@dataclass
class ModelSpan:
    """A span as the API must have stored it."""

    instance: str
    parent: str | None
    status: str
    payload: dict[str, Any]
    result: dict[str, Any] | None = None


class RandomCalls(RuleBasedStateMachine):
    """Makes every call twice with the same key, and models the effect of each."""

    instances = Bundle("instances")
    spans = Bundle("spans")

    @initialize(target=instances)
    def open(self) -> str:
        self.store = Store(":memory:")
        self.service = Service(self.store)
        self.calls = 0
        self.instance_status: dict[str, str] = {}
        self.model: dict[str, ModelSpan] = {}
        return self.register()

    def call(self, method: Any, body_type: Any, body: object, *ids: str) -> tuple[int, Any]:
        """The status and the details, or the error's code."""
        self.calls += 1
        keyed = {**msgspec.to_builtins(body), "idempotency_key": f"key-{self.calls}"}
        content = msgspec.json.encode(keyed)

        def attempt() -> tuple[int, Any]:
            try:
                answer = method(*ids, parse_body(content, body_type))
            except ApiError as error:
                return error.status, error.code
            return 200, msgspec.json.decode(answer)["details"]

        first = attempt()
        assert attempt() == first
        return first

    @rule(target=instances)
    def register(self) -> str:
        status, details = self.call(self.service.register, RegisterBody, REGISTRATION)
        assert (status, details["status"]) == (200, "pending")
        self.instance_status[details["id"]] = "pending"
        return str(details["id"])

    @rule(id=instances)
    def start(self, id: str) -> None:
        self.moved(id, "start", self.call(self.service.start, StartBody, {}, id))

    @rule(id=instances, outcome=outcomes)
    def finish(self, id: str, outcome: str) -> None:
        body = {"status": outcome}
        called = self.call(self.service.finish_instance, FinishInstanceBody, body, id)
        self.moved(id, outcome, called)

    def moved(self, id: str, action: str, called: tuple[int, Any]) -> None:
        expected = INSTANCE_STATES.get((self.instance_status[id], action))
        if expected is None:
            assert called == (409, "invalid_action")
        else:
            assert (called[0], called[1]["status"]) == (200, STORED.get(expected, expected))
            self.instance_status[id] = expected

    @rule(id=instances)
    def terminate(self, id: str) -> None:
        body = {"reason": "over budget"}
        called = self.call(self.service.terminate, TerminateBody, body, id)
        self.moved(id, "terminate", called)

    @rule(
        target=spans,
        instance=instances,
        parent=st.none() | spans,
        status=st.sampled_from(["pending", "active", *OUTCOMES]),
        payload=payloads,
        result=st.none() | payloads,
    )
    def create_span(
        self,
        instance: str,
        parent: str | None,
        status: str,
        payload: dict[str, Any],
        result: dict[str, Any] | None,
    ) -> Any:
        details = {
            "agent_instance_id": instance,
            "parent_span_id": parent,
            "schema_name": "agent:llm",
            "status": status,
            "payload": payload,
            "result_payload": result,
        }
        called = self.call(self.service.create_span, CreateSpanBody, {"details": details})
        if self.instance_status[instance] in OUTCOMES:
            assert called == (409, "invalid_action")
        elif (parent and self.model[parent].instance != instance) or (
            result is not None and status not in OUTCOMES
        ):
            assert called == (422, "validation_errors")
        else:
            assert called[0] == 200
            self.model[called[1]["id"]] = ModelSpan(instance, parent, status, payload, result)
            return called[1]["id"]
        return multiple()

    @rule(id=spans, outcome=outcomes, result=st.none() | payloads)
    def finish_span(self, id: str, outcome: str, result: dict[str, Any] | None) -> None:
        span = self.model[id]
        body = {"status": outcome, "result_payload": result}
        called = self.call(self.service.finish_span, FinishSpanBody, body, id)
        if (span.status, outcome) in SPAN_STATES:
            assert called[0] == 200
            span.status = outcome
            span.result = span.result if result is None else result
        else:
            assert called == (409, "invalid_action")

    @invariant()
    def what_is_stored_is_what_the_model_says(self) -> None:
        stored: dict[str, ModelSpan] = {}
        for id, status in self.instance_status.items():
            instance = msgspec.json.decode(self.service.get_instance(id))["details"]
            assert instance["status"] == STORED.get(status, status)
            assert (instance["started_at"] is None) == (status in ("pending", "stopped"))
            assert (instance["finished_at"] is None) == (status in ("pending", "active"))
            assert (instance["termination_reason"] is None) == (instance["status"] != "terminated")
            query = {"agent_instance_id": id, "pagination[page_size]": "100"}
            listed = msgspec.json.decode(self.service.list_spans(query))["summaries"]
            for span in listed:
                assert (span["finished_at"] is None) == (span["status"] not in OUTCOMES)
                stored[span["id"]] = ModelSpan(
                    span["agent_instance_id"],
                    span["parent_span_id"],
                    span["status"],
                    span["payload"],
                    span["result_payload"],
                )
            counts = instance["span_counts"]
            statuses = [span.status for span in self.model.values() if span.instance == id]
            assert counts.pop("total") == len(statuses)
            assert counts.pop("finished") == sum(status in OUTCOMES for status in statuses)
            assert counts == {status: statuses.count(status) for status in counts}
        assert stored == self.model

    def teardown(self) -> None:
        self.store.close()


def test_whatever_is_called_in_whatever_order_the_stored_state_is_that_of_the_model() -> None:
    run_state_machine_as_test(RandomCalls, settings=settings(max_examples=examples(60)))
