"""The local Prefactor is as strict as the API: states, ids, parents, times, keys, errors."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
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
from support.local_api import (
    NOON,
    ONE,
    OUTCOMES,
    REGISTRATION,
    SCHEMA,
    VERSION,
    Api,
    calling,
    invalid,
    opened,
    refused,
    span_of,
)

from prefactor_core import PrefactorValueError
from prefactor_core.local import LocalPrefactor, open_local_prefactor
from prefactor_core.local.refusal import Refusal
from prefactor_core.local.requests import (
    CreateSpanBody,
    FinishInstanceBody,
    FinishSpanBody,
    RegisterBody,
    StartBody,
    TerminateBody,
    parse_body,
    stored_time,
)
from prefactor_core.local.service import Service
from prefactor_core.local.store import Store
from prefactor_core.operations.identifiers import generate, generate_related, partition_of


@pytest.fixture
async def store() -> AsyncGenerator[Store]:
    store = Store(":memory:")
    yield store
    store.close()


@pytest.fixture
async def api(store: Store) -> AsyncGenerator[Api]:
    async with calling(LocalPrefactor(store)) as api:
        yield api


# --- states


async def instance_in(api: Api, state: str) -> str:
    instance_id = await (api.register() if state == "pending" else api.start())
    if state in OUTCOMES:
        await api.done(f"agent_instance/{instance_id}/finish", {"status": state})
    if state == "terminated":
        await api.terminate(instance_id, "r")
    return instance_id


@pytest.mark.parametrize(
    ("state", "allowed"),
    [
        ("pending", {"start", "cancelled", "terminated"}),
        ("active", {"complete", "failed", "cancelled", "terminated"}),
        *((state, set[str]()) for state in (*OUTCOMES, "terminated")),
    ],
)
@pytest.mark.parametrize("action", ["start", *OUTCOMES, "terminated"])
async def test_an_instance_moves_only_as_its_state_allows(
    api: Api, state: str, allowed: set[str], action: str
) -> None:
    instance_id = await instance_in(api, state)
    before = await api.instance(instance_id)
    calls = {"start": ("start", {}), "terminated": ("terminate", {"reason": "another"})}
    call, body = calls.get(action, ("finish", {"status": action}))
    answer = await api.post(f"agent_instance/{instance_id}/{call}", body)
    after = await api.instance(instance_id)
    if action in allowed:
        assert answer.status_code == 200
        assert after == answer.json()["details"]
        assert after["status"] == ("active" if action == "start" else action)
    else:
        refused(answer, 409, "invalid_action")
        assert after == before


@pytest.mark.parametrize(
    ("state", "allowed"),
    [
        ("pending", {"cancelled"}),
        ("active", {"complete", "failed", "cancelled"}),
        *((state, set[str]()) for state in OUTCOMES),
    ],
)
@pytest.mark.parametrize("outcome", OUTCOMES)
async def test_a_span_ends_only_as_its_state_allows(
    api: Api, state: str, allowed: set[str], outcome: str
) -> None:
    instance_id = await api.start()
    before = await api.created(instance_id, status=state)
    answer = await api.post(f"agent_spans/{before['id']}/finish", {"status": outcome})
    (after,) = await api.spans(instance_id)
    if outcome in allowed:
        assert answer.status_code == 200
        assert after == answer.json()["details"]
        assert (after["status"], after["started_at"]) == (outcome, before["started_at"])
        assert after["finished_at"] is not None
    else:
        refused(answer, 409, "invalid_action")
        assert after == before


async def test_a_finish_without_status_is_complete(api: Api) -> None:
    instance_id = await api.start()
    span = await api.created(instance_id)
    assert (await api.done(f"agent_spans/{span['id']}/finish", {}))["status"] == "complete"
    finished = await api.done(f"agent_instance/{instance_id}/finish", {})
    assert finished["status"] == "complete"


@pytest.mark.parametrize("status", ["", "active", "pending", "terminated", "done"])
async def test_a_finish_with_another_status_is_refused(api: Api, status: str) -> None:
    instance_id = await api.start()
    span = await api.created(instance_id)
    invalid(await api.post(f"agent_spans/{span['id']}/finish", {"status": status}), "status")
    invalid(await api.post(f"agent_instance/{instance_id}/finish", {"status": status}), "status")


async def test_a_run_that_is_cancelled_before_it_started_has_both_times(api: Api) -> None:
    instance_id = await api.register()
    body = {"status": "cancelled", "timestamp": NOON}
    cancelled = await api.done(f"agent_instance/{instance_id}/finish", body)
    assert (cancelled["started_at"], cancelled["finished_at"]) == (NOON, NOON)


@pytest.mark.parametrize("state", ["pending", "active"])
async def test_an_open_run_takes_spans(api: Api, state: str) -> None:
    answer = await api.create(await instance_in(api, state))
    assert answer.status_code == 200
    assert "control" not in answer.json()


@pytest.mark.parametrize("state", OUTCOMES)
async def test_a_finished_run_takes_no_spans(api: Api, state: str) -> None:
    refused(await api.create(await instance_in(api, state)), 409, "invalid_action")


async def test_a_terminated_run_answers_every_span_with_the_control_signal(api: Api) -> None:
    instance_id = await api.start()
    before = await api.created(instance_id)
    await api.terminate(instance_id, "over budget")
    after = await api.create(instance_id, parent_span_id=before["id"])
    ended = await api.create(instance_id, status="complete")
    finished = [
        await api.post(f"agent_spans/{span_id}/finish", {})
        for span_id in (after.json()["details"]["id"], before["id"])
    ]
    for answer in (after, ended, *finished):
        assert answer.status_code == 200
        assert answer.json()["control"] == {"terminate": True, "reason": "over budget"}
    stored = await api.spans(instance_id)
    assert [span["status"] for span in stored] == ["complete"] * 3


async def test_the_spans_of_a_run_stay_as_they_are_when_it_is_terminated(api: Api) -> None:
    instance_id = await api.start()
    for status in ("pending", "active", "failed"):
        await api.created(instance_id, status=status)
    spans = await api.spans(instance_id)
    terminated = await api.terminate(instance_id, "over budget")
    assert await api.spans(instance_id) == spans
    counts = terminated["span_counts"]
    assert (counts["pending"], counts["active"], counts["failed"]) == (1, 1, 1)


async def test_another_run_of_the_agent_is_not_terminated(api: Api) -> None:
    instance_id, other_id = await api.start(), await api.start()
    await api.terminate(instance_id, "over budget")
    assert "control" not in (await api.create(other_id)).json()
    other = await api.instance(other_id)
    assert (other["status"], other["termination_reason"]) == ("active", None)


async def test_a_terminated_run_says_why_and_when_it_ended(api: Api) -> None:
    instance_id = await api.start()
    started = await api.instance(instance_id)
    assert started["termination_reason"] is None
    terminated = await api.terminate(instance_id, "over budget")
    times = terminated["finished_at"], terminated["updated_at"]
    assert started["updated_at"] <= times[0] == times[1]
    assert terminated == {
        **started,
        "status": "terminated",
        "termination_reason": "over budget",
        "finished_at": times[0],
        "updated_at": times[1],
    }


async def test_a_start_that_was_on_its_way_as_the_run_was_terminated_is_taken_once(
    api: Api,
) -> None:
    instance_id = await api.register()
    terminated = await api.terminate(instance_id, "over budget")
    assert (terminated["started_at"], terminated["status"]) == (None, "terminated")
    span = await api.create(instance_id)
    assert span.json()["control"] == {"terminate": True, "reason": "over budget"}
    ahead = stored_time(datetime.now(UTC) + timedelta(hours=1))
    answer = await api.post(f"agent_instance/{instance_id}/start", {"timestamp": ahead})
    assert answer.status_code == 200
    assert answer.json()["control"] == {"terminate": True, "reason": "over budget"}
    started = answer.json()["details"]
    assert started["status"] == "terminated"
    assert started["started_at"] == started["finished_at"] == terminated["finished_at"]
    refused(await api.post(f"agent_instance/{instance_id}/start", {}), 409, "invalid_action")
    refused(await api.post(f"agent_instance/{instance_id}/finish", {}), 409, "invalid_action")


async def test_a_run_whose_clock_is_ahead_can_be_terminated(api: Api) -> None:
    instance_id = await api.register()
    ahead = stored_time(datetime.now(UTC) + timedelta(hours=1))
    await api.done(f"agent_instance/{instance_id}/start", {"timestamp": ahead})
    terminated = await api.terminate(instance_id, "over budget")
    assert (terminated["started_at"], terminated["finished_at"]) == (ahead, ahead)


@pytest.mark.parametrize("body", [{}, {"reason": ""}, {"reason": " \n"}], ids=str)
async def test_a_run_is_not_terminated_without_a_reason(api: Api, body: dict[str, str]) -> None:
    instance_id = await api.start()
    invalid(await api.post(f"agent_instance/{instance_id}/terminate", body), "reason", "required")
    assert (await api.instance(instance_id))["status"] == "active"


async def test_a_run_that_is_not_there_is_not_terminated(api: Api) -> None:
    answer = await api.post("agent_instance/i0/terminate", {"reason": "over budget"})
    refused(answer, 404, "not_found")


@pytest.mark.parametrize("status", ["", "terminated", "running"])
async def test_a_span_has_one_of_the_five_states(api: Api, status: str) -> None:
    invalid(await api.create(await api.start(), status=status), "status")


async def test_a_pending_span_has_no_times(api: Api) -> None:
    span = await api.created(await api.start(), status="pending")
    assert (span["started_at"], span["finished_at"]) == (None, None)


async def test_a_span_can_be_created_as_it_ended(api: Api) -> None:
    given = {
        "status": "failed",
        "payload": {"in": 1},
        "result_payload": {"out": 2},
        "started_at": NOON,
        "finished_at": ONE,
    }
    span = await api.created(await api.start(), **given)
    assert {name: span[name] for name in given} == given


@pytest.mark.parametrize("status", ["pending", "active"])
async def test_only_a_span_that_ended_has_a_result(api: Api, status: str) -> None:
    answer = await api.create(await api.start(), status=status, result_payload={"out": 2})
    invalid(answer, "result_payload")


async def test_a_finish_gives_the_result(api: Api) -> None:
    instance_id = await api.start()
    span = await api.created(instance_id, payload={"in": 1})
    assert span["result_payload"] is None
    await api.done(f"agent_spans/{span['id']}/finish", {"result_payload": {"out": [2]}})
    (stored,) = await api.spans(instance_id)
    assert (stored["payload"], stored["result_payload"]) == ({"in": 1}, {"out": [2]})


async def test_null_is_the_same_as_left_out(api: Api) -> None:
    nulls = dict.fromkeys(
        ["id", "parent_span_id", "started_at", "finished_at", "result_payload", "idempotency_key"]
    )
    span = await api.created(await api.start(), **nulls)
    assert span["started_at"] is not None
    assert (span["parent_span_id"], span["finished_at"]) == (None, None)


async def test_fields_that_are_not_known_are_passed_over(api: Api) -> None:
    instance_id = await api.register(mood="good", agent_version={**VERSION, "mood": "good"})
    assert (await api.create(instance_id, mood="good")).status_code == 200


async def test_the_spans_of_a_run_are_counted_by_state(api: Api) -> None:
    instance_id = await api.start()
    await api.created(await api.start())
    for status, count in {"pending": 1, "active": 2, "complete": 3, "failed": 4}.items():
        for _ in range(count):
            await api.created(instance_id, status=status)
    assert (await api.instance(instance_id))["span_counts"] == {
        "total": 10,
        "pending": 1,
        "active": 2,
        "complete": 3,
        "failed": 4,
        "cancelled": 0,
        "finished": 7,
    }


# --- ids and parents


async def test_a_parent_is_a_span_of_the_same_run_ended_or_not(api: Api) -> None:
    instance_id = await api.start()
    for status in ("pending", "active", "complete"):
        parent = await api.created(instance_id, status=status)
        child = await api.created(instance_id, parent_span_id=parent["id"])
        assert child["parent_span_id"] == parent["id"]


async def test_a_parent_of_another_run_or_of_none_is_refused(api: Api) -> None:
    instance_id, other_id = await api.start(), await api.start()
    elsewhere = await api.created(other_id)
    for parent_id in (elsewhere["id"], generate_related(instance_id), other_id, "", "no-pfid"):
        invalid(await api.create(instance_id, parent_span_id=parent_id), "parent_span_id")
    assert await api.spans(instance_id) == []


async def test_ids_that_a_caller_chose_are_taken_once(api: Api) -> None:
    instance_id = generate_related(await api.register())
    assert await api.register(id=instance_id) == instance_id
    again = {**REGISTRATION, "id": instance_id}
    refused(await api.post("agent_instance/register", again), 409, "already_exists")
    span_id = generate_related(instance_id)
    assert (await api.created(instance_id, id=span_id))["id"] == span_id
    refused(await api.create(instance_id, id=span_id), 409, "already_exists")
    refused(await api.create(await api.start(), id=span_id), 409, "already_exists")


async def test_an_id_must_be_a_pfid_of_the_accounts_partition(api: Api) -> None:
    instance_id = await api.register()
    strange = generate(partition_of(instance_id) - 1)
    for id in ("", "my-id", instance_id.upper(), instance_id + "0", f"8{instance_id[1:]}", strange):
        invalid(await api.post("agent_instance/register", {**REGISTRATION, "id": id}), "id")
        invalid(await api.create(instance_id, id=id), "id")


async def test_all_ids_of_an_account_share_its_partition(api: Api) -> None:
    answer = (await api.post("agent_instance/register", REGISTRATION)).json()
    span = await api.created(answer["details"]["id"])
    ids = [
        answer["details"]["id"],
        answer["details"]["account_id"],
        answer["agent_version"]["id"],
        answer["agent_schema_version"]["id"],
        span["id"],
    ]
    assert len(set(ids)) == 5
    assert len({partition_of(id) for id in ids}) == 1


async def test_an_external_identifier_names_one_run_of_an_agent(api: Api) -> None:
    await api.register(external_identifier="order-7")
    again = {**REGISTRATION, "external_identifier": "order-7"}
    invalid(await api.post("agent_instance/register", again), "external_identifier")
    await api.register(external_identifier="order-7", agent_id="a2")


# --- times


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ("2026-01-01T12:00:00Z", NOON),
        ("2026-01-01T12:00:00.000Z", NOON),
        ("2026-01-01T14:30:00.5+02:30", "2026-01-01T12:00:00.500000Z"),
        ("2025-12-31T22:00:00-14:00", NOON),
        ("0999-01-01T00:00:00Z", "0999-01-01T00:00:00.000000Z"),
    ],
)
async def test_a_time_is_stored_in_utc_with_microseconds(api: Api, given: str, stored: str) -> None:
    instance_id = await api.register()
    started = await api.done(f"agent_instance/{instance_id}/start", {"timestamp": given})
    assert started["started_at"] == stored
    span = await api.created(instance_id, status="complete", started_at=given, finished_at=given)
    assert (span["started_at"], span["finished_at"]) == (stored, stored)


async def test_a_time_that_is_not_given_is_now(api: Api) -> None:
    before = datetime.now(UTC)
    instance_id = await api.register()
    started = await api.done(f"agent_instance/{instance_id}/start", {"timestamp": None})
    span = await api.created(instance_id, status="complete")
    finished = await api.done(f"agent_instance/{instance_id}/finish", {})
    stored = [started["started_at"], span["started_at"], span["finished_at"]]
    times = [before, *map(datetime.fromisoformat, stored)]
    times += [datetime.fromisoformat(finished["finished_at"]), datetime.now(UTC)]
    assert times == sorted(times)


@pytest.mark.parametrize(
    "time",
    [
        "2026-01-01T12:00:00",
        "2026-01-01T12:00:00.000000",
        "2026-01-01",
        "12:00:00Z",
        "yesterday",
        "",
        "0001-01-01T00:00:00+01:00",
        "9999-12-31T23:59:59-01:00",
    ],
)
async def test_a_time_without_offset_or_sense_is_refused(api: Api, time: str) -> None:
    pending, active = await api.register(), await api.start()
    span = await api.created(active)
    at = {"timestamp": time}
    invalid(await api.post(f"agent_instance/{pending}/start", at), "timestamp")
    invalid(await api.post(f"agent_instance/{active}/finish", at), "timestamp")
    invalid(await api.post(f"agent_spans/{span['id']}/finish", at), "timestamp")
    invalid(await api.create(active, started_at=time), "started_at")
    invalid(await api.create(active, status="failed", finished_at=time), "finished_at")
    assert (await api.instance(active))["status"] == "active"
    assert await api.spans(active) == [span]


async def test_nothing_ends_before_it_started(api: Api) -> None:
    instance_id = await api.register()
    await api.done(f"agent_instance/{instance_id}/start", {"timestamp": ONE})
    span = await api.created(instance_id, started_at=ONE)
    early = {"timestamp": NOON}
    invalid(await api.post(f"agent_instance/{instance_id}/finish", early), "timestamp")
    invalid(await api.post(f"agent_spans/{span['id']}/finish", early), "timestamp")
    answer = await api.create(instance_id, status="complete", started_at=ONE, finished_at=NOON)
    invalid(answer, "finished_at")
    at_once = {"timestamp": ONE}
    assert (await api.done(f"agent_spans/{span['id']}/finish", at_once))["finished_at"] == ONE
    await api.done(f"agent_instance/{instance_id}/finish", at_once)


# Times that clients give when their clock is off by an hour, and None: they give none.
CLOCKS = [-1, 1, None]


@pytest.mark.parametrize("started", CLOCKS)
@pytest.mark.parametrize("finished", CLOCKS)
@pytest.mark.parametrize("call", ["run", "span", "span at once"])
async def test_an_end_before_a_start_of_another_clock_is_that_start_and_flagged(
    api: Api, started: int | None, finished: int | None, call: str
) -> None:
    now = datetime.now(UTC)

    def given(name: str, hours: int | None) -> dict[str, str]:
        return {} if hours is None else {name: stored_time(now + timedelta(hours=hours))}

    instance_id = await api.register()
    if call == "run":
        path = f"agent_instance/{instance_id}"
        await api.done(f"{path}/start", given("timestamp", started))
        answer = await api.post(f"{path}/finish", given("timestamp", finished))
    elif call == "span":
        span = await api.created(instance_id, **given("started_at", started))
        finish = given("timestamp", finished)
        answer = await api.post(f"agent_spans/{span['id']}/finish", finish)
    else:
        times = {**given("started_at", started), **given("finished_at", finished)}
        answer = await api.create(instance_id, status="complete", **times)
    early = (finished or 0) < (started or 0)
    if early and None not in (started, finished):  # the client itself says so
        invalid(answer, "finished_at" if call == "span at once" else "timestamp")
        return
    assert answer.status_code == 200, answer.text
    details = answer.json()["details"]
    start, end = details["started_at"], details["finished_at"]
    for name, time in (("started_at", started), ("finished_at", finished)):
        if time is not None and not early:
            assert details[name] == given(name, time)[name]
    if early and (call, started) != ("span at once", None):
        assert start == end
        (flag,) = details["flags"]
        assert flag.startswith("finished_at: ")
        assert f"is before the start, {start}" in flag
    else:
        assert start <= end
        assert details["flags"] == []


async def test_the_flags_of_a_late_clock_and_of_the_schemas_stand_side_by_side(api: Api) -> None:
    types = [{"name": "agent:llm", "result_schema": {"required": ["response"]}}]
    schema = {"external_identifier": "s2", "span_type_schemas": types}
    instance_id = await api.register(agent_schema_version=schema)
    span = await api.created(instance_id)
    late = {"timestamp": NOON, "result_payload": {}}
    finished = await api.done(f"agent_spans/{span['id']}/finish", late)
    assert [flag.partition(":")[0] for flag in finished["flags"]] == ["finished_at", "result"]


# --- idempotency

WRITES = ["register", "start", "finish", "terminate", "create span", "finish span"]


async def write(api: Api, name: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """The path and body of a call that will do something, and a change that makes it another."""
    if name == "register":
        return "agent_instance/register", dict(REGISTRATION), {"agent_id": "a2"}
    instance_id = await (api.register() if name == "start" else api.start())
    if name == "start":
        return f"agent_instance/{instance_id}/start", {"timestamp": ONE}, {"timestamp": NOON}
    if name == "finish":
        path = f"agent_instance/{instance_id}/finish"
        return path, {"status": "failed"}, {"status": "complete"}
    if name == "terminate":
        path = f"agent_instance/{instance_id}/terminate"
        return path, {"reason": "over budget"}, {"reason": "another"}
    if name == "finish span":
        span = await api.created(instance_id)
        return f"agent_spans/{span['id']}/finish", {"status": "failed"}, {"status": "complete"}
    details = {
        "agent_instance_id": instance_id,
        "schema_name": "agent:llm",
        "status": "active",
        "payload": {},
    }
    return "agent_spans", {"details": details}, {"details": {**details, "payload": {"n": 1}}}


async def everything(api: Api) -> list[Any]:
    runs = (await api.get("agent_instance", agent_id="a1")).json()["summaries"]
    return [(run, await api.spans(run["id"])) for run in runs]


@pytest.mark.parametrize("name", WRITES)
async def test_the_same_call_with_the_same_key_gets_the_first_answer_and_no_second_effect(
    api: Api, name: str
) -> None:
    path, body, _ = await write(api, name)
    first = await api.post(path, {**body, "idempotency_key": "k"})
    state = await everything(api)
    again = await api.post(path, {**body, "idempotency_key": "k"})
    assert first.status_code == again.status_code == 200
    assert again.content == first.content
    assert await everything(api) == state


@pytest.mark.parametrize("name", WRITES)
async def test_another_call_with_the_same_key_is_refused(api: Api, name: str) -> None:
    path, body, change = await write(api, name)
    await api.done(path, {**body, "idempotency_key": "k"})
    state = await everything(api)
    other = await api.post(path, {**body, **change, "idempotency_key": "k"})
    refused(other, 409, "idempotency_key_reused")
    assert await everything(api) == state


@pytest.mark.parametrize("name", ["start", "finish", "terminate", "finish span"])
async def test_a_key_belongs_to_one_run_or_span(api: Api, name: str) -> None:
    (path, body, _), (other_path, _, _) = await write(api, name), await write(api, name)
    await api.done(path, {**body, "idempotency_key": "k"})
    other = await api.post(other_path, {**body, "idempotency_key": "k"})
    refused(other, 409, "idempotency_key_reused")


async def test_start_and_finish_do_not_share_a_key(api: Api) -> None:
    instance_id = await api.register()
    await api.done(f"agent_instance/{instance_id}/start", {"idempotency_key": "k"})
    finish = await api.post(f"agent_instance/{instance_id}/finish", {"idempotency_key": "k"})
    refused(finish, 409, "idempotency_key_reused")


@pytest.mark.parametrize("name", WRITES)
async def test_without_a_key_a_repeated_call_is_a_second_one(api: Api, name: str) -> None:
    path, body, _ = await write(api, name)
    first, again = await api.post(path, body), await api.post(path, body)
    if name in ("register", "create span"):
        assert again.json()["details"]["id"] != first.json()["details"]["id"]
    else:
        refused(again, 409, "invalid_action")


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("length", [0, 1, 128, 129])
async def test_a_key_has_1_to_128_characters(api: Api, name: str, length: int) -> None:
    path, body, _ = await write(api, name)
    answer = await api.post(path, {**body, "idempotency_key": "k" * length})
    if length in (1, 128):
        assert answer.status_code == 200
    else:
        invalid(answer, "idempotency_key")


@pytest.mark.parametrize(
    ("inside", "beside"), [("k", None), (None, "k"), ("k", "k")], ids=["inside", "beside", "both"]
)
async def test_the_key_of_a_span_stands_inside_its_details_or_beside_them(
    api: Api, inside: str | None, beside: str | None
) -> None:
    path, body, _ = await write(api, "create span")
    body["details"]["idempotency_key"] = inside
    first, again = [await api.post(path, {**body, "idempotency_key": beside}) for _ in range(2)]
    assert again.content == first.content
    assert len(await api.spans(body["details"]["agent_instance_id"])) == 1


async def test_two_keys_for_one_span_are_refused(api: Api) -> None:
    path, body, _ = await write(api, "create span")
    body["details"]["idempotency_key"] = "k1"
    invalid(await api.post(path, {**body, "idempotency_key": "k2"}), "idempotency_key")


@pytest.mark.parametrize("length", [0, 129])
async def test_a_key_inside_the_details_has_the_same_bounds(api: Api, length: int) -> None:
    answer = await api.create(await api.start(), idempotency_key="k" * length)
    invalid(answer, "idempotency_key")


async def test_an_error_is_not_kept_under_its_key(api: Api) -> None:
    instance_id = await api.start()
    parent_id = generate_related(instance_id)
    child = {"parent_span_id": parent_id, "idempotency_key": "k"}
    invalid(await api.create(instance_id, **child), "parent_span_id")
    await api.created(instance_id, id=parent_id)
    assert (await api.created(instance_id, **child))["parent_span_id"] == parent_id


# --- errors


async def test_what_fails_in_the_server_is_answered_500_and_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "prefactor.db"
    async with opened(str(path)) as api:
        damaged, whole = await api.start(), await api.start()
        with sqlite3.connect(path) as other:
            other.execute("UPDATE agent_instances SET quality = 'no' WHERE id = ?", [damaged])
        other.close()
        finish = {"status": "complete", "idempotency_key": "finish-1"}
        finishing = f"agent_instance/{damaged}/finish"
        item = {"_type": "agent_instances/finish", "agent_instance_id": damaged, **finish}
        for _ in range(2):
            for answer in (
                await api.get(f"agent_instance/{damaged}"),
                await api.post(finishing, finish),
                await api.post("bulk", {"items": [item]}),
            ):
                refused(answer, 500, "internal_error")
                assert answer.json()["status"] == "error"
                assert answer.headers["Content-Type"] == "application/json"
        assert (await api.instance(whole))["status"] == "active"
        with sqlite3.connect(path) as other:
            other.execute("UPDATE agent_instances SET quality = '{}' WHERE id = ?", [damaged])
        other.close()
        # Nothing was changed, and no key is spent.
        assert (await api.done(finishing, finish))["status"] == "complete"
    (record,) = [each for each in caplog.records if each.name == "prefactor_core.local"]
    assert record.exc_info is not None
    assert "DecodeError" in caplog.text


async def test_a_request_that_is_cut_off_is_a_bad_request(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sent: list[Any] = []
    messages = [{"type": "http.request", "body": b"{", "more_body": True}]

    async def receive() -> Any:
        return messages.pop() if messages else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    async with open_local_prefactor(":memory:") as app:
        path = "/api/v1/agent_instance/register"
        scope = {"type": "http", "method": "POST", "path": path, "headers": [], "query_string": b""}
        await app(scope, receive, send)
    assert sent[0]["status"] == 400
    assert msgspec.json.decode(sent[1]["body"])["code"] == "bad_request"
    assert caplog.messages == []


@pytest.mark.parametrize("path", ["", "ping", "agent_spans", "bulk", "agent/a%ff", "a%00/\u2028"])
async def test_every_answer_is_a_json_object(api: Api, path: str) -> None:
    for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
        for content in (b"", b"{", b"[]", b"\xff"):
            answer = await api.http.request(method, path, content=content)
            assert answer.headers["Content-Type"] == "application/json"
            if method != "HEAD":
                expected = "success" if answer.status_code == 200 else "error"
                assert answer.json()["status"] == expected


async def test_errors_have_the_form_of_the_api(api: Api) -> None:
    instance_id = await api.start()
    unknown = await api.get("agent_instance/i0")
    assert unknown.json() == {
        "status": "error",
        "code": "not_found",
        "message": "agent instance 'i0' not found",
    }
    started = await api.post(f"agent_instance/{instance_id}/start", {})
    assert started.json() == {
        "status": "error",
        "code": "invalid_action",
        "message": "an agent instance that is active cannot become active",
    }
    naive = await api.create(instance_id, started_at="2026-01-01T12:00:00")
    assert naive.json() == {
        "status": "error",
        "code": "validation_errors",
        "message": "validation failed",
        "errors": {
            "started_at": {
                "status": "error",
                "code": "invalid_value",
                "message": "'2026-01-01T12:00:00' has no offset from UTC",
            }
        },
    }


@pytest.mark.parametrize(
    "version",
    [
        None,
        {},
        {"span_schemas": None, "span_result_schemas": None},
        {"span_type_schemas": [], "span_schemas": None, "span_result_schemas": {}},
    ],
)
async def test_a_run_may_have_no_schemas(api: Api, version: dict[str, Any] | None) -> None:
    run = await api.register(agent_schema_version=version)
    assert (await api.created(run))["flags"] == []
    without = {key: REGISTRATION[key] for key in ("agent_id", "agent_version")}
    await api.done("agent_instance/register", without)


async def test_an_agent_has_an_id_that_is_not_empty(api: Api) -> None:
    answer = await api.post("agent_instance/register", {**REGISTRATION, "agent_id": ""})
    invalid(answer, "agent_id", "required")


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("register", "agent_id"),
        ("register", "agent_version"),
        ("create span", "details"),
        ("create span", "agent_instance_id"),
        ("create span", "schema_name"),
        ("create span", "status"),
        ("create span", "payload"),
    ],
)
async def test_a_missing_field_is_required(api: Api, name: str, field: str) -> None:
    path, body, _ = await write(api, name)
    (body if field in body else body["details"]).pop(field)
    invalid(await api.post(path, body), field, "required")


@pytest.mark.parametrize("path", ["agent_instance", "agent_spans"])
async def test_a_list_needs_to_know_of_what(api: Api, path: str) -> None:
    refused(await api.get(path), 422, "validation_errors")


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("register", "agent_id", 7),
        ("register", "agent_version", "v1"),
        ("register", "agent_version", {"external_identifier": {"v": 1}}),
        ("register", "agent_version", {"external_identifier": 2**70}),
        ("register", "agent_schema_version", []),
        ("register", "agent_schema_version", {"span_type_schemas": {}}),
        ("register", "agent_schema_version", {"span_type_schemas": [{"title": "nameless"}]}),
        ("register", "agent_schema_version", {"span_schemas": ["agent:llm"]}),
        ("register", "agent_schema_version", {"span_result_schemas": {"agent:llm": {}}}),
        ("start", "timestamp", 7),
        ("finish", "status", 7),
        ("terminate", "reason", 7),
        ("terminate", "reason", None),
        ("finish span", "result_payload", ["no object"]),
        ("create span", "details", []),
        ("create span", "payload", ["no object"]),
        ("create span", "status", 7),
        ("create span", "sensitive_encoding", "yes"),
    ],
)
async def test_a_value_of_the_wrong_type_is_invalid(
    api: Api, name: str, field: str, value: object
) -> None:
    path, body, _ = await write(api, name)
    if name == "create span" and field != "details":
        body["details"][field] = value
    else:
        body[field] = value
    invalid(await api.post(path, body), field)


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize(
    "content",
    [b"{", b"agent_id=a1", b"\xff\xfe", b"null", b"[]", b'"text"', b"7"],
)
async def test_a_body_that_is_no_json_object_is_a_bad_request(
    api: Api, name: str, content: bytes
) -> None:
    path, _, _ = await write(api, name)
    refused(await api.post(path, content), 400, "bad_request")


@pytest.mark.parametrize(
    "content",
    [
        b'{"agent_id": "\xff", "agent_version": {}, "agent_schema_version": {}}',
        b'{"agent_id": "a1", "agent_version": ' + b'{"v": ' * 100_000,
    ],
    ids=["not utf-8", "nested too deep"],
)
async def test_a_body_that_cannot_be_read_is_a_bad_request(api: Api, content: bytes) -> None:
    refused(await api.post("agent_instance/register", content), 400, "bad_request")


@pytest.mark.parametrize("bulk", [False, True])
async def test_a_body_is_stored_or_refused_however_deep_it_is_nested(api: Api, bulk: bool) -> None:
    run = await api.start()
    answers: set[int] = set()
    # What can just so be read takes a little more to be written.
    for depth in range(900, 1_000):
        span = msgspec.json.encode(span_of(run, payload={"a": "deep"}))
        span = span.replace(b'"deep"', b"[" * depth + b"]" * depth)
        if bulk:
            body = b'{"items":[{"_type":"agent_spans/create","idempotency_key":"depth %d",' % depth
            answer = await api.post("bulk", body + b'"details":' + span + b"}]}")
        else:
            answer = await api.post("agent_spans", b'{"details":' + span + b"}")
        output = answer.json()
        if bulk and answer.status_code == 200:
            (output,) = output["outputs"].values()
        assert output["status"] == "success" or output["code"] == "bad_request"
        answers.add(answer.status_code)
    assert answers <= {200, 400}


async def test_an_empty_body_is_an_empty_object(api: Api) -> None:
    instance_id = await api.register()
    assert (await api.post(f"agent_instance/{instance_id}/start", b"")).status_code == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "agent_instance/i0"),
        ("POST", "agent_instance/i0/start"),
        ("POST", "agent_instance/i0/finish"),
        ("POST", "agent_spans/s0/finish"),
        ("GET", "agent_spans?agent_instance_id=i0"),
        ("GET", "nowhere"),
        ("GET", "ping/"),
        ("GET", "/"),
    ],
)
async def test_what_is_not_there_is_not_found_in_json(api: Api, method: str, path: str) -> None:
    answer = await api.http.request(method, path)
    assert answer.headers["Content-Type"] == "application/json"
    refused(answer, 404, "not_found")


async def test_a_span_of_an_unknown_run_is_not_found(api: Api) -> None:
    refused(await api.create("i0"), 404, "not_found")


async def test_a_method_that_is_not_there_is_answered_in_json(api: Api) -> None:
    answer = await api.http.delete("agent_spans")
    assert (answer.status_code, answer.json()["status"]) == (405, "error")


async def test_only_the_configured_agents_are_known() -> None:
    async with opened(":memory:", agents=["a1"]) as api:
        await api.register(agent_id="a1")
        unknown = {**REGISTRATION, "agent_id": "a2"}
        refused(await api.post("agent_instance/register", unknown), 404, "not_found")


@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer", "Bearer wrong", "Bearer rights", "Basic right", "right"]
)
@pytest.mark.parametrize("path", ["ping", "agent_instance?agent_id=a1", "agent_instance/register"])
async def test_a_configured_token_is_asked_for(authorization: str | None, path: str) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    async with (
        open_local_prefactor(":memory:", api_token="right") as app,
        calling(app, **headers) as api,
    ):
        if path.endswith("register"):
            answer = await api.post(path, REGISTRATION)
        else:
            answer = await api.http.get(path)
    refused(answer, 401, "bad_authtoken")


async def test_the_configured_token_is_taken() -> None:
    async with (
        open_local_prefactor(":memory:", api_token="right") as app,
        calling(app, Authorization="Bearer right") as api,
    ):
        pong = (await api.get("ping")).json()
        assert pong == {"status": "success", "details": {"token_type": "account"}}
        await api.register()


async def test_a_database_that_fails_is_answered_503_and_the_call_can_be_repeated(
    tmp_path: Path,
) -> None:
    path = tmp_path / "prefactor.db"
    async with opened(str(path)) as api:
        instance_id = await api.start()
        with sqlite3.connect(path) as other:
            other.execute("ALTER TABLE agent_spans RENAME TO moved")
        refused(await api.create(instance_id, idempotency_key="k"), 503, "storage_unavailable")
        with other:
            other.execute("ALTER TABLE moved RENAME TO agent_spans")
        other.close()
        span = await api.created(instance_id, idempotency_key="k")
        assert await api.spans(instance_id) == [span]


# --- versions


async def test_a_version_is_registered_once(api: Api) -> None:
    first = (await api.post("agent_instance/register", REGISTRATION)).json()
    again = (await api.post("agent_instance/register", REGISTRATION)).json()
    for part in ("agent_version", "agent_schema_version"):
        assert again[part] == first[part]
        assert again["details"][f"{part}_id"] == first[part]["id"]
    assert again["details"]["id"] != first["details"]["id"]


async def test_schemas_are_answered_by_name(api: Api) -> None:
    answer = (await api.post("agent_instance/register", REGISTRATION)).json()
    assert answer["agent_schema_version"]["span_type_schemas"] == {
        "agent:llm": {"name": "agent:llm", "params_schema": {"type": "object"}}
    }


@pytest.mark.parametrize(
    ("field", "changed"),
    [
        ("agent_version", {**VERSION, "name": "Another"}),
        ("agent_schema_version", {**SCHEMA, "span_type_schemas": []}),
    ],
)
async def test_a_version_cannot_change_under_its_name(
    api: Api, field: str, changed: dict[str, object]
) -> None:
    await api.register()
    body = {**REGISTRATION, field: changed}
    answer = await api.post("agent_instance/register", body)
    invalid(answer, field)
    assert "already exists with different details" in answer.text
    await api.register(**{field: {**changed, "external_identifier": "v2"}})
    await api.register(**{field: changed}, agent_id="a2")
    assert len((await api.get("agent_instance", agent_id="a1")).json()["summaries"]) == 2


async def test_a_refused_registration_leaves_no_version_behind(api: Api) -> None:
    await api.register()
    first = {"name": "First", "external_identifier": "v2"}
    conflict = {**REGISTRATION, "agent_version": first, "agent_schema_version": {**SCHEMA, "n": 1}}
    invalid(await api.post("agent_instance/register", conflict), "agent_schema_version")
    await api.register(agent_version={**first, "name": "Second"})


async def test_the_order_of_keys_makes_no_other_version(api: Api) -> None:
    await api.register()
    await api.register(agent_version=dict(reversed(VERSION.items())))


# --- lists


# The fields of a page's pagination, in the order of the rows below.
PAGINATION = [
    "page_offset",
    "page_size",
    "item_start",
    "item_end",
    "previous_page_offset",
    "next_page_offset",
    "page_index",
    "page_count",
]


@pytest.mark.parametrize(
    "row",
    [
        (0, 2, 1, 2, None, 2, 1, 3),
        (2, 2, 3, 4, 0, 4, 2, 3),
        (4, 2, 5, 5, 2, None, 3, 3),
        (0, 5, 1, 5, None, None, 1, 1),
        (0, 100, 1, 5, None, None, 1, 1),
    ],
    ids=["first", "middle", "last", "all", "more than all"],
)
async def test_a_list_comes_in_pages_that_say_where_they_stand(
    api: Api, row: tuple[int | None, ...]
) -> None:
    expected = dict(zip(PAGINATION, row, strict=True))
    instance_id = await api.start()
    spans = [await api.created(instance_id) for _ in range(5)]
    spans.sort(key=lambda span: str(span["id"]))
    query = {
        "agent_instance_id": instance_id,
        "include_summaries": "true",
        "pagination[offset]": str(expected["page_offset"]),
        "pagination[page_size]": str(expected["page_size"]),
    }
    page = (await api.get("agent_spans", **query)).json()
    assert page["status"] == "success"
    assert page["summaries"] == spans[expected["item_start"] - 1 : expected["item_end"]]
    assert page["pagination"] == {"item_count": 5, **expected}


@pytest.mark.parametrize(
    ("query", "direction"),
    [
        ({}, "asc"),
        ({"sorting": "id"}, "asc"),
        ({"sorting": "-id"}, "desc"),
        ({"sorting[field]": "id"}, "asc"),
        ({"sorting[field]": "id", "sorting[direction]": "asc"}, "asc"),
        ({"sorting[field]": "id", "sorting[direction]": "desc"}, "desc"),
    ],
)
async def test_a_list_is_sorted_by_id_in_either_form(
    api: Api, query: dict[str, str], direction: str
) -> None:
    ids = sorted([await api.register() for _ in range(3)], reverse=direction == "desc")
    page = (await api.get("agent_instance", agent_id="a1", **query)).json()
    assert [instance["id"] for instance in page["summaries"]] == ids
    assert (page["sorting"]["field"], page["sorting"]["direction"]) == ("id", direction)


@pytest.mark.parametrize(
    "query",
    [
        {"pagination[offset]": "-1"},
        {"pagination[offset]": "first"},
        {"pagination[offset]": "9" * 5000},
        {"pagination[page_size]": "0"},
        {"pagination[page_size]": "101"},
        {"pagination[page_size]": ""},
        {"sorting": "name"},
        {"sorting[field]": "status"},
        {"sorting[direction]": "sideways"},
    ],
    ids=lambda query: next(f"{name}={value[:10]}" for name, value in query.items()),
)
async def test_a_page_that_cannot_be_is_refused(api: Api, query: dict[str, str]) -> None:
    answer = await api.get("agent_instance", agent_id="a1", **query)
    refused(answer, 422, "validation_errors")


async def test_a_list_of_an_agent_without_runs_is_empty(api: Api) -> None:
    page = (await api.get("agent_instance", agent_id="a1")).json()
    assert page["summaries"] == []
    assert page["pagination"]["item_count"] == 0
    assert page["pagination"]["next_page_offset"] is None


# --- files


async def test_what_was_stored_is_there_when_the_file_is_opened_again(tmp_path: Path) -> None:
    path = str(tmp_path / "prefactor.db")
    async with opened(path) as api:
        instance_id = await api.start()
        body = {"idempotency_key": "k", "payload": {"text": "Größe \U0001f680", "n": [1.5, None]}}
        span = await api.created(instance_id, **body)
        stored = await everything(api)
    async with opened(path) as api:
        assert await everything(api) == stored
        assert await api.created(instance_id, **body) == span
        assert partition_of(await api.register()) == partition_of(instance_id)


async def test_one_file_can_be_opened_twice(tmp_path: Path) -> None:
    path = str(tmp_path / "prefactor.db")
    async with opened(path) as one, opened(path) as other:
        instance_id = await one.start()
        parent = await other.created(instance_id, idempotency_key="k")
        assert await one.created(instance_id, idempotency_key="k") == parent
        child = await one.created(instance_id, parent_span_id=parent["id"])
        spans = sorted([parent, child], key=lambda span: str(span["id"]))
        assert await other.spans(instance_id) == await one.spans(instance_id) == spans


async def test_memory_is_not_shared() -> None:
    async with opened(":memory:") as one, opened(":memory:") as other:
        instance_id = await one.register()
        refused(await other.get(f"agent_instance/{instance_id}"), 404, "not_found")


_RECORD = """
import sqlite3, sys
from prefactor_core.local.requests import CreateSpanBody, RegisterBody, SpanDetails
from prefactor_core.local.service import Service
from prefactor_core.local.store import Store, is_busy

path, instance_id = sys.argv[1:]
store = Store(path)
service = Service(store)

def record():
    # A client tries again, too, what it could not write because of the others.
    for attempts_left in reversed(range(100)):
        try:
            service.create_span(CreateSpanBody(details=SpanDetails(
                agent_instance_id=instance_id, schema_name="agent:llm", status="active",
                payload={})))
            return
        except sqlite3.OperationalError as error:
            if not attempts_left or not is_busy(error):
                raise

for _ in range(50):
    record()
store.close()
"""


@pytest.fixture
def file_store(tmp_path: Path) -> Generator[Store]:
    store = Store(str(tmp_path / "prefactor.db"))
    yield store
    store.close()


@contextmanager
def another_process_at(path: str) -> Generator[sqlite3.Connection]:
    """A connection that this thread shares with a timer's."""
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    yield other
    other.close()


def registered(service: Service) -> str:
    body = parse_body(msgspec.json.encode(REGISTRATION), RegisterBody)
    return str(msgspec.json.decode(service.register(body))["details"]["id"])


def test_processes_record_into_one_file_at_once(file_store: Store) -> None:
    service = Service(file_store)
    instance_id = registered(service)
    command = [sys.executable, "-c", _RECORD, file_store.path, instance_id]
    processes = [subprocess.Popen(command) for _ in range(3)]
    assert [process.wait(120) for process in processes] == [0, 0, 0]
    stored = msgspec.json.decode(service.get_instance(instance_id))["details"]
    assert stored["span_counts"]["total"] == 150


def finish_while_another_writes(service: Service, instance_id: str, path: str) -> str | None:
    """The status of the run then; None if the call did not wait for the other process."""
    with another_process_at(path) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("UPDATE agent_instances SET status = 'active'")
        written = threading.Timer(0.05, other.execute, ["COMMIT"])
        written.start()
        try:
            finished = service.finish_instance(instance_id, FinishInstanceBody(status="failed"))
        except sqlite3.OperationalError:
            return None
        finally:
            written.join()
    return str(msgspec.json.decode(finished)["details"]["status"])


def test_a_call_waits_for_what_another_process_writes(file_store: Store) -> None:
    service = Service(file_store)
    instance_id = registered(service)
    # On a machine that is busy, the other one may take longer than a call waits.
    attempts = (
        finish_while_another_writes(service, instance_id, file_store.path) for _ in range(50)
    )
    assert next(filter(None, attempts), None) == "failed"


def test_what_is_stored_can_be_read_while_another_process_writes(file_store: Store) -> None:
    service = Service(file_store)
    instance_id = registered(service)
    with another_process_at(file_store.path) as other:
        other.execute("BEGIN EXCLUSIVE")
        other.execute("UPDATE agent_instances SET status = 'active'")
        stored = msgspec.json.decode(service.get_instance(instance_id))["details"]
        other.execute("COMMIT")
    assert stored["status"] == "pending"


def test_a_file_that_another_process_is_just_making_is_waited_for(tmp_path: Path) -> None:
    path = str(tmp_path / "prefactor.db")
    with another_process_at(path) as other:
        other.execute("BEGIN IMMEDIATE")
        made = threading.Timer(0.2, other.execute, ["COMMIT"])
        made.start()
        try:
            Store(path).close()
        finally:
            made.join()


@pytest.mark.parametrize(
    "name", [".", "missing/prefactor.db", "notes.txt", "other.db", "nul\0.db", "long" * 100]
)
async def test_a_path_that_can_be_no_database_is_a_value_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "notes.txt").write_text("Dear diary, today I was taken for a database. " * 50)
    other = sqlite3.connect(tmp_path / "other.db")
    other.execute("CREATE TABLE account (name TEXT)")
    other.close()
    with pytest.raises(PrefactorValueError, match="cannot open the database"):
        async with open_local_prefactor(f"{tmp_path}/{name}"):
            pass


# --- the model

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
    """What the API has to have stored of a span."""

    instance: str
    parent: str | None
    status: str
    payload: dict[str, Any]
    result: dict[str, Any] | None = None


class RandomCalls(RuleBasedStateMachine):
    """Makes every call twice, with the same key, and knows what each should do."""

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
            except Refusal as refusal:
                return refusal.status, refusal.code
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
