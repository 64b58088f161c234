"""Requests as official clients send them: no error where the API does not ask for one."""

from __future__ import annotations

from typing import Any

import pytest
from support.cases import case
from support.local_api import NOON, ONE, REGISTRATION, Api, invalid, refused, span_of


async def test_null_is_the_same_as_left_out_in_every_call(api: Api) -> None:
    optional = ["id", "environment_id", "external_identifier", "purpose", "idempotency_key"]
    nulls = dict.fromkeys([*optional, "update_current_version", "agent_schema_version"])
    run = await api.done("agent_instance/register", {**REGISTRATION, **nulls})
    assert run["purpose"] == "live"
    path = f"agent_instance/{run['id']}"
    timed = {"timestamp": None, "idempotency_key": None}
    assert (await api.done(f"{path}/start", timed))["started_at"] is not None
    span = await api.created(run["id"], parent_span_id=None, finished_at=None)
    nothing = {**timed, "status": None, "result_payload": None, "sensitive_encoding": None}
    finished = await api.done(f"agent_spans/{span['id']}/finish", nothing)
    assert (finished["status"], finished["result_payload"]) == ("complete", None)
    assert (await api.done(f"{path}/finish", {**timed, "status": None}))["status"] == "complete"


async def test_fields_that_are_not_known_are_passed_over_in_every_call(api: Api) -> None:
    more: dict[str, Any] = {"mood": "good", "at": "2026-01-01T12:00:00", "more": {"n": [1]}}
    version = {**REGISTRATION["agent_version"], **more}
    body = {**REGISTRATION, **more, "agent_version": version}
    run = (await api.done("agent_instance/register", body))["id"]
    await api.done(f"agent_instance/{run}/start", more)
    span = await api.created(run, **more)
    await api.done(f"agent_spans/{span['id']}/finish", more)
    await api.done(f"agent_instance/{run}/finish", more)
    await api.done("agent", {"details": {"name": "A", "current_version_id": "v", **more}, **more})
    query = {"include_risk_level": "true", "include_risk_score": "true", "include_counts": "true"}
    for path in (
        f"agent_instance/{run}",
        "agent",
        "agent_instance?agent_id=a1",
        f"agent_spans?agent_instance_id={run}",
        "agent/show?agent_id=a1",
    ):
        answer = await api.http.get(
            path
            + ("&" if "?" in path else "?")
            + "&".join(f"{name}={value}" for name, value in query.items())
        )
        assert answer.status_code == 200, answer.text


async def test_a_clock_that_is_behind_ends_nothing_before_its_start(api: Api) -> None:
    # The start is this server's, or the client's before its clock was set back.
    for started in ({}, {"timestamp": ONE}):
        with case(started):
            run = await api.register()
            await api.done(f"agent_instance/{run}/start", started)
            finished = await api.done(f"agent_instance/{run}/finish", {"timestamp": NOON})
            assert finished["finished_at"] == finished["started_at"]
            assert len(finished["flags"]) == 1


async def test_a_run_that_is_terminated_while_pending_takes_what_was_on_its_way(api: Api) -> None:
    run = await api.register()
    await api.terminate(run, "over budget")
    signal = {"terminate": True, "reason": "over budget"}
    started = await api.post(f"agent_instance/{run}/start", {})
    assert (started.status_code, started.json()["control"]) == (200, signal)
    span = await api.create(run)
    assert span.json()["control"] == signal
    finish = await api.post(f"agent_spans/{span.json()['details']['id']}/finish", {})
    assert finish.json()["control"] == signal
    # Clients take this for success.
    refused(await api.post(f"agent_instance/{run}/finish", {}), 409, "invalid_action")


async def test_the_key_of_a_span_may_stand_in_either_place(api: Api) -> None:
    run = await api.start()
    beside = {"details": span_of(run), "idempotency_key": "k-1"}
    inside = {"details": {**span_of(run), "idempotency_key": "k-1"}}
    first = (await api.post("agent_spans", beside)).json()
    assert (await api.post("agent_spans", inside)).json() == first


async def test_a_naive_time_is_refused_with_its_field(api: Api) -> None:
    run = await api.register()
    naive = {"timestamp": "2026-01-01T12:00:00.123456"}
    invalid(await api.post(f"agent_instance/{run}/start", naive), "timestamp")
    assert (await api.instance(run))["status"] == "pending"


SORTINGS = [
    {"sorting": "-id"},
    {"sorting[field]": "id", "sorting[direction]": "desc"},
    {"sorting[field]": "id", "sorting[direction]": "desc", "sorting[nulls]": "last"},
]


async def test_every_list_is_sorted_in_both_forms(api: Api) -> None:
    run = await api.start()
    for number in range(3):
        await api.created(run)
        await api.register(agent_id=f"a{number}", environment_id=f"e{number}")
        await api.done("api_token", {"details": {"token_scope": "account"}})
    lists: dict[str, dict[str, str]] = {
        "agent": {},
        "agent_instance": {"agent_id": "a1"},
        "agent_spans": {"agent_instance_id": run},
        "environment": {},
        "agent_deployment": {},
        "agent_version": {},
        "agent_schema_version": {},
        "api_token": {},
        "account": {},
    }
    for path, query in lists.items():
        forward = (await api.get(path, **query)).json()["summaries"]
        assert forward
        assert [each["id"] for each in forward] == sorted(each["id"] for each in forward)
        for sorting in SORTINGS:
            with case(path, sorting):
                answer = await api.get(path, **query, **sorting)
                assert answer.json()["summaries"] == forward[::-1]
                assert answer.json()["sorting"]["direction"] == "desc"


# --- quality, as older clients and the open dashboard know it


async def put_quality(api: Api, run: str, payload: object) -> Any:
    body = {"details": {"quality_payload": payload}}
    answer = await api.http.put(f"agent_instance/{run}", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["details"]


async def test_one_quality_payload_is_replaced_whole(api: Api) -> None:
    schema = {"quality_schema": {"template": "score {{ score }}"}}
    run = await api.register(agent_schema_version=schema)
    before = await api.instance(run)
    assert (before["quality_payload"], before["quality_summary"]) == (None, None)
    first = await put_quality(api, run, {"score": 1, "by": "me"})
    assert (first["quality_payload"], first["quality_summary"]) == (
        {"score": 1, "by": "me"},
        "score 1",
    )
    second = await put_quality(api, run, {"score": 2})
    assert second == await api.instance(run)
    assert (second["quality_payload"], second["quality_summary"]) == ({"score": 2}, "score 2")
    answer = await api.http.put(f"agent_instance/{run}", json={"details": {}})
    assert answer.json()["details"]["quality_payload"] == {"score": 2}
    assert (await put_quality(api, run, None))["quality_payload"] is None
    nobody = await api.http.put("agent_instance/i0", json={"details": {}})
    refused(nobody, 404, "not_found")
    wrong = await api.http.put(f"agent_instance/{run}", json={"details": {"quality_payload": 1}})
    invalid(wrong, "quality_payload")


async def test_named_quality_is_shown_to_those_who_read_the_one_payload(api: Api) -> None:
    types = [{"name": "score", "template": "is {{ value }}"}, {"name": "tone"}]
    run = await api.register(agent_schema_version={"quality_schemas": types})
    for name, payload in (("score", {"value": 5}), ("tone", {"kind": True})):
        body = {"name": name, "payload": payload}
        await api.done(f"agent_instance/{run}/record_quality", body)
    details = await api.instance(run)
    assert details["quality_payload"] == {"score": {"value": 5}, "tone": {"kind": True}}
    assert details["quality_summary"] == "score: is 5"
    assert details["quality_summaries"] == {"score": "is 5"}


@pytest.mark.parametrize("schema", [{}, {"quality_schema": {}}, {"quality_schema": "no schema"}])
async def test_a_quality_payload_needs_no_schema(api: Api, schema: dict[str, Any]) -> None:
    run = await api.register(agent_schema_version=schema)
    details = await put_quality(api, run, {"score": 1})
    assert (details["quality_payload"], details["quality_summary"]) == ({"score": 1}, None)
