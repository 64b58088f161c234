"""The totals that the row of a run keeps of its spans, and the revisions of rows."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.cases import case
from support.examples import examples
from support.local_api import REGISTRATION
from support.old_files import downgrade

from prefactor_core.local.errors import ApiError
from prefactor_core.local.requests import (
    CreateSpanBody,
    FinishInstanceBody,
    FinishSpanBody,
    RecordQualityBody,
    RegisterBody,
    SpanDetails,
    StartBody,
    TerminateBody,
)
from prefactor_core.local.runs import Runs
from prefactor_core.local.service import Service
from prefactor_core.local.store import Store
from prefactor_core.local.usage import Usage, is_llm_call, usage_of

SCHEMA = {
    "external_identifier": "s1",
    "span_type_schemas": [
        {
            "name": "agent:llm_call",
            "params_schema": {"type": "object", "required": ["model"]},
            "result_schema": {"type": "object", "required": ["token_usage"]},
        }
    ],
    "quality_schemas": [{"name": "score", "schema": {"type": "object", "required": ["mark"]}}],
}
PAYLOADS: list[dict[str, Any]] = [
    {},
    {"model": "m"},
    {"token_usage": {"prompt_tokens": 3, "completion_tokens": 4}},
    {"token_usage": {"total_tokens": 10}, "cost": 0.5},
    {"token_usage": [1], "cost": "much"},
]

Step = Callable[[Service, list[str], list[str]], object]


def create(run: int, parent: int | None, **details: Any) -> Step:
    def step(service: Service, runs: list[str], spans: list[str]) -> None:
        parent_id = spans[parent % len(spans)] if parent is not None and spans else None
        body = SpanDetails(agent_instance_id=runs[run], parent_span_id=parent_id, **details)
        answer = service.create_span(CreateSpanBody(details=body))
        spans.append(msgspec.json.decode(answer)["details"]["id"])

    return step


def finish(span: int, status: str, result: dict[str, Any] | None) -> Step:
    return lambda service, runs, spans: (
        spans
        and service.finish_span(
            spans[span % len(spans)], FinishSpanBody(status=status, result_payload=result)
        )
    )


def about_run(run: int, call: str) -> Step:
    calls: dict[str, Callable[[Service, str], object]] = {
        "start": lambda service, id: service.start(id, StartBody()),
        "finish": lambda service, id: service.finish_instance(id, FinishInstanceBody()),
        "terminate": lambda service, id: service.terminate(id, TerminateBody(reason="enough")),
        "quality": lambda service, id: service.record_quality(
            id, RecordQualityBody(name="score", payload={})
        ),
    }
    return lambda service, runs, spans: calls[call](service, runs[run])


NAMES = st.sampled_from(["agent:llm_call", "langchain:llm", "agent:tool_call"])
OUTCOMES = st.sampled_from(["complete", "failed", "cancelled"])
RESULTS = st.none() | st.sampled_from(PAYLOADS)
RUNS = st.integers(0, 1)
CREATES = st.builds(
    create,
    RUNS,
    st.none() | st.integers(0, 20),
    schema_name=NAMES,
    status=st.sampled_from(["pending", "active"]) | OUTCOMES,
    payload=st.sampled_from(PAYLOADS),
    result_payload=RESULTS,
)
FINISHES = st.builds(finish, st.integers(0, 20), OUTCOMES, RESULTS)
MOVES = st.builds(about_run, RUNS, st.sampled_from(["start", "quality", "terminate", "finish"]))
STEPS = st.lists(CREATES | CREATES | CREATES | FINISHES | FINISHES | MOVES, max_size=30)

REGISTER = msgspec.convert({**REGISTRATION, "agent_schema_version": SCHEMA}, RegisterBody)


def registered(service: Service) -> str:
    return str(msgspec.json.decode(service.register(REGISTER))["details"]["id"])


Rows = dict[str, dict[str, Any]]


def rows(store: Store, table: str) -> Rows:
    return {row["id"]: dict(row) for row in store.all(f"SELECT * FROM {table}")}


def recounted(run: dict[str, Any], spans: Rows) -> dict[str, Any]:
    """The totals of a run by a look at all its spans."""
    own = [span for span in spans.values() if span["agent_instance_id"] == run["id"]]
    statuses = Counter(span["status"] for span in own)
    parents = {span["parent_span_id"] for span in own if is_llm_call(span["schema_name"])}
    leaves = [
        span for span in own if is_llm_call(span["schema_name"]) and span["id"] not in parents
    ]
    usage = [usage_of(span["payload"], span["result_payload"]) for span in leaves]
    return {
        **{
            f"{status}_spans": statuses[status]
            for status in ["pending", "active", "complete", "failed", "cancelled"]
        },
        "flagged_spans": sum(span["flags"] != "[]" for span in own),
        "llm_calls": len(leaves),
        "tokens": sum(each.tokens or 0 for each in usage),
        "cost": pytest.approx(sum(each.cost or 0 for each in usage)),
        "last_activity_at": max(each["updated_at"] for each in [run, *own]),
    }


def check_totals(store: Store) -> None:
    spans = rows(store, "agent_spans")
    for run in rows(store, "agent_instances").values():
        expected = recounted(run, spans)
        assert {name: run[name] for name in expected} == expected
        for span in spans.values():
            if span["agent_instance_id"] == run["id"]:
                assert span["agent_id"] == run["agent_id"]


def check_revisions(store: Store, before: list[Rows], number_before: int) -> None:
    """All rows that changed have the next number, and a change of a span changes its run."""
    tables = ("agent_instances", "agent_spans")
    after = [rows(store, table) for table in tables]
    changed = [
        [row for id, row in new.items() if old.get(id) != row]
        for old, new in zip(before, after, strict=True)
    ]
    expected = number_before + bool(changed[0])
    assert {row["revision"] for row in changed[0] + changed[1]} <= {expected}
    assert {span["agent_instance_id"] for span in changed[1]} <= {run["id"] for run in changed[0]}
    assert number(store) == expected


def number(store: Store) -> int:
    return int(store.all("SELECT value FROM revision")[0]["value"])


@given(STEPS)
@settings(max_examples=examples(100))
def test_the_totals_of_a_run_are_those_of_its_spans_after_every_call(steps: list[Step]) -> None:
    with closing(Store(":memory:")) as store:
        service = Service(store)
        runs, spans = [registered(service), registered(service)], list[str]()
        for step in steps:
            before = [rows(store, table) for table in ("agent_instances", "agent_spans")]
            number_before = number(store)
            try:
                step(service, runs, spans)
            except ApiError:
                assert number(store) == number_before
            check_totals(store)
            check_revisions(store, before, number_before)


@given(STEPS)
@settings(max_examples=examples(60))
def test_calls_that_share_a_transaction_leave_the_totals_of_their_spans(steps: list[Step]) -> None:
    with closing(Store(":memory:")) as store:
        service = Service(store)
        runs, spans = [registered(service), registered(service)], list[str]()
        before = [rows(store, table) for table in ("agent_instances", "agent_spans")]
        number_before = number(store)
        with store.transaction():
            gathered = Runs(store, gathers=True)
            service = service.gathering(gathered)
            for step in steps:
                with suppress(ApiError):
                    step(service, runs, spans)
            gathered.write()
            answer = msgspec.json.decode(service.get_instance(runs[0]))["details"]
            statuses = Counter(
                span["status"]
                for span in rows(store, "agent_spans").values()
                if span["agent_instance_id"] == runs[0]
            )
            assert {name: answer["span_counts"][name] for name in statuses} == statuses
        check_totals(store)
        check_revisions(store, before, number_before)


@given(STEPS)
@settings(max_examples=examples(30))
def test_the_runs_of_an_older_file_come_to_have_the_same_totals(steps: list[Step]) -> None:
    tables = ("agent_instances", "agent_spans")
    unknown = {"heard_at": None, "revision": 1}
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "old.db")
        with closing(Store(path)) as store:
            service = Service(store)
            runs, spans = [registered(service), registered(service)], list[str]()
            for step in steps:
                try:
                    step(service, runs, spans)
                except ApiError:
                    continue
            kept = [rows(store, table) for table in tables]
        downgrade(path, 4)
        with closing(Store(path)) as store:
            check_totals(store)
            for table, before in zip(tables, kept, strict=True):
                for id, row in rows(store, table).items():
                    row["cost"] = row["cost"] and pytest.approx(row["cost"])
                    # The deployments of an older file are new.
                    if "agent_deployment_id" in row:
                        row["agent_deployment_id"] = before[id]["agent_deployment_id"]
                    expected = {
                        name: unknown.get(name, value) for name, value in before[id].items()
                    }
                    assert row == expected


# --- tokens and cost


def test_the_usage_of_a_call_stands_in_its_result_or_else_in_its_payload() -> None:
    many = 2**53
    for payload, result, expected in [
        ({}, None, (None, None)),
        ({"token_usage": {"total_tokens": 5}}, None, (5, None)),
        ({"token_usage": {"total_tokens": 5}, "cost": 1.5}, {}, (5, None)),
        ({"token_usage": {"total_tokens": 5}}, {"token_usage": {"total_tokens": 0}}, (0, None)),
        ({"token_usage": {"total_tokens": 5}}, {"token_usage": None, "cost": 0.25}, (5, 0.25)),
        ({}, {"token_usage": {"prompt_tokens": 2, "completion_tokens": 3}}, (5, None)),
        ({}, {"token_usage": {"prompt_tokens": 2}}, (2, None)),
        ({}, {"token_usage": {"total_tokens": 7.0}}, (7, None)),
        ({}, {"token_usage": {"total_tokens": many}, "cost": many}, (many, many)),
        # What is no amount does not count.
        ({}, {"token_usage": {"total_tokens": many + 1}, "cost": 1e300}, (None, None)),
        ({}, {"token_usage": {"total_tokens": -1}, "cost": -0.5}, (None, None)),
        ({}, {"token_usage": {"total_tokens": True}, "cost": True}, (None, None)),
        ({}, {"token_usage": {"total_tokens": "9"}, "cost": "9"}, (None, None)),
        ({}, {"token_usage": [9], "cost": [9]}, (None, None)),
        ({}, {"token_usage": {"reasoning_tokens": 9}}, (None, None)),
    ]:
        with case(payload, result):
            text = msgspec.json.encode(payload).decode()
            answer = None if result is None else msgspec.json.encode(result).decode()
            assert usage_of(text, answer) == Usage(*expected)


def test_calls_of_models_are_known_by_their_names() -> None:
    names = ["agent:llm_call", "langchain:llm", "llm", "llm_call", "a:b:llm"]
    others = ["agent:llm_calls", "llm:agent", "agent:tool_call", "", "allm"]
    assert [is_llm_call(name) for name in names + others] == [True] * 5 + [False] * 5
