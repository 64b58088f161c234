"""The states of runs and spans, their ids, and what the API says of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import product

import pytest
from support.cases import case
from support.local_api import NOON, ONE, OUTCOMES, REGISTRATION, VERSION, Api, invalid, refused

from prefactor_core.local.requests import stored_time
from prefactor_core.operations.identifiers import generate, generate_related, partition_of


async def instance_in(api: Api, state: str) -> str:
    instance_id = await (api.register() if state == "pending" else api.start())
    if state in OUTCOMES:
        await api.done(f"agent_instance/{instance_id}/finish", {"status": state})
    if state == "terminated":
        await api.terminate(instance_id, "r")
    return instance_id


INSTANCE_MOVES = [
    ("pending", {"start", "cancelled", "terminated"}),
    ("active", {"complete", "failed", "cancelled", "terminated"}),
    *((state, set[str]()) for state in (*OUTCOMES, "terminated")),
]


async def test_an_instance_moves_only_as_its_state_allows(api: Api) -> None:
    for (state, allowed), action in product(INSTANCE_MOVES, ["start", *OUTCOMES, "terminated"]):
        with case(state, allowed, action):
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


SPAN_MOVES = [
    ("pending", {"cancelled"}),
    ("active", {"complete", "failed", "cancelled"}),
    *((state, set[str]()) for state in OUTCOMES),
]


async def test_a_span_ends_only_as_its_state_allows(api: Api) -> None:
    for (state, allowed), outcome in product(SPAN_MOVES, OUTCOMES):
        with case(state, allowed, outcome):
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


async def test_a_finish_with_another_status_is_refused(api: Api) -> None:
    for status in ["", "active", "pending", "terminated", "done"]:
        with case(status):
            instance_id = await api.start()
            span = await api.created(instance_id)
            invalid(
                await api.post(f"agent_spans/{span['id']}/finish", {"status": status}), "status"
            )
            invalid(
                await api.post(f"agent_instance/{instance_id}/finish", {"status": status}), "status"
            )


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


async def test_a_run_is_not_terminated_without_a_reason(api: Api) -> None:
    for body in [{}, {"reason": ""}, {"reason": " \n"}]:
        with case(body):
            instance_id = await api.start()
            invalid(
                await api.post(f"agent_instance/{instance_id}/terminate", body),
                "reason",
                "required",
            )
            assert (await api.instance(instance_id))["status"] == "active"


async def test_a_run_that_is_not_there_is_not_terminated(api: Api) -> None:
    answer = await api.post("agent_instance/i0/terminate", {"reason": "over budget"})
    refused(answer, 404, "not_found")


async def test_a_span_has_one_of_the_five_states(api: Api) -> None:
    for status in ["", "terminated", "running"]:
        with case(status):
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
