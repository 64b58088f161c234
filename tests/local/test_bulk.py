"""The local Prefactor takes many calls in one request, as strictly as one by one."""

from __future__ import annotations

import sqlite3
import sys
from itertools import product
from pathlib import Path
from typing import Any

import httpx
from support.cases import case
from support.local_api import (
    NOON,
    ONE,
    REGISTRATION,
    Api,
    Body,
    create,
    everything,
    invalid,
    item,
    opened,
    refused,
    span_of,
)

from prefactor_core.operations.identifiers import generate_related


async def bulk(api: Api, *items: object) -> Any:
    """The outputs, by key."""
    answer = await api.post("bulk", {"items": items})
    assert answer.status_code == 200, answer.text
    assert answer.json().keys() == {"status", "outputs"}
    assert answer.json()["status"] == "success"
    return answer.json()["outputs"]


async def spans_as_stored(api: Api, instance_id: str) -> list[Any]:
    return [(span["status"], span["payload"]) for span in await api.spans(instance_id)]


# --- what an item answers


async def test_a_whole_run_can_be_recorded_in_one_request(api: Api) -> None:
    known = await api.register()
    run, span = generate_related(known), generate_related(known)
    outputs = await bulk(
        api,
        item("agent_instances/register", "register-1", **REGISTRATION, id=run),
        item("agent_instances/start", "start-01", agent_instance_id=run, timestamp=NOON),
        create(run, "create-1", id=span, started_at=NOON),
        item("agent_spans/create", "create-2", **span_of(run, parent_span_id=span)),
        item(
            "agent_spans/finish",
            "finish-1",
            agent_span_id=span,
            status="failed",
            result_payload={"n": 1},
            timestamp=ONE,
        ),
        item("agent_instances/finish", "finish-2", agent_instance_id=run, timestamp=ONE),
    )
    assert {key: output["status"] for key, output in outputs.items()} == {
        "register-1": "success",
        "start-01": "success",
        "create-1": "success",
        "create-2": "success",
        "finish-1": "success",
        "finish-2": "success",
    }
    stored = await api.instance(run)
    assert (stored["status"], stored["started_at"], stored["finished_at"]) == (
        "complete",
        NOON,
        ONE,
    )
    parent, child = sorted(await api.spans(run), key=lambda stored: bool(stored["parent_span_id"]))
    assert (parent["status"], parent["result_payload"]) == ("failed", {"n": 1})
    assert (child["parent_span_id"], child["status"]) == (span, "active")


async def test_the_output_of_a_read_is_what_the_single_call_answers(api: Api) -> None:
    run = await api.start()
    for n in range(3):
        await api.created(run, payload={"n": n})
    await api.register()
    outputs = await bulk(
        api,
        item("agent_instances/show", "show-run", agent_instance_id=run),
        item("agent_instances/list", "list-runs", agent_id="a1"),
        item(
            "agent_spans/list",
            "list-spans",
            agent_instance_id=run,
            pagination={"offset": None},
            sorting="-id",
        ),
        item(
            "agent_spans/list",
            "one-page",
            agent_instance_id=run,
            pagination={"offset": 1, "page_size": "1"},
            sorting={"field": "id", "direction": "desc"},
        ),
        item(
            "agent_spans/list",
            "one-page-by-query-names",
            **{"agent_instance_id": run, "pagination[offset]": 1, "pagination[page_size]": 1},
            sorting="-id",
        ),
    )
    page = {"pagination[offset]": "1", "pagination[page_size]": "1", "sorting": "-id"}
    one_page = (await api.get("agent_spans", agent_instance_id=run, **page)).json()
    assert one_page["pagination"]["item_start"] == one_page["pagination"]["item_end"] == 2
    assert outputs == {
        "show-run": (await api.get(f"agent_instance/{run}")).json(),
        "list-runs": (await api.get("agent_instance", agent_id="a1")).json(),
        "list-spans": (await api.get("agent_spans", agent_instance_id=run, sorting="-id")).json(),
        "one-page": one_page,
        "one-page-by-query-names": one_page,
    }


async def test_every_output_about_a_terminated_run_has_the_control_signal(api: Api) -> None:
    run = await api.start()
    span = await api.created(run)
    outputs = await bulk(
        api,
        create(run, "create-1"),
        item("agent_instances/terminate", "end-0001", agent_instance_id=run, reason="r"),
        create(run, "create-2"),
        item("agent_spans/finish", "finish-1", agent_span_id=span["id"]),
    )
    assert outputs["end-0001"]["details"]["status"] == "terminated"
    control = {"terminate": True, "reason": "r"}
    assert {key: output.get("control") for key, output in outputs.items()} == {
        "create-1": None,
        "end-0001": None,
        "create-2": control,
        "finish-1": control,
    }


async def test_fields_that_an_item_does_not_need_are_passed_over(api: Api) -> None:
    run = await api.start()
    span = await api.created(run)
    more = {"method": "POST", "path": "/api/v1/agent_spans", "body": [1], "mood": None}
    outputs = await bulk(
        api,
        {**create(run, "create-1"), **more},
        item("agent_spans/list", "list-spans", agent_instance_id=run, **more),
        # The service ends the span of a wrapped finish, without a result.
        item(
            "agent_spans/finish",
            "finish-1",
            agent_span_id=span["id"],
            details={"status": "failed", "result_payload": {"n": 1}},
        ),
    )
    assert len(outputs["list-spans"]["summaries"]) == 2
    finished = outputs["finish-1"]["details"]
    assert (finished["status"], finished["result_payload"]) == ("complete", None)


# --- order and errors


async def test_items_run_in_order_up_to_the_first_error(api: Api) -> None:
    run, other = await api.start(), await api.start()
    outputs = await bulk(
        api,
        create(run, "create-1", payload={"n": 1}),
        create(run, "create-2", parent_span_id="nobody"),
        create(run, "create-3", payload={"n": 3}),
        create(other, "create-4"),
    )
    assert [(key, output["status"]) for key, output in outputs.items()] == [
        ("create-1", "success"),
        ("create-2", "error"),
    ]
    assert await spans_as_stored(api, run) == [("active", {"n": 1})]
    assert await api.spans(other) == []


async def test_an_error_after_spans_leaves_the_totals_of_their_run(api: Api) -> None:
    run = await api.start()
    wrong = [
        item("agent_instances/finish", "wrong-finish", agent_instance_id=run, status="wrong"),
        item("agent_instances/terminate", "wrong-reason", agent_instance_id=run, reason=" "),
        create(run, "wrong-parent", parent_span_id="nobody"),
        item("agent_spans/finish", "wrong-span", agent_span_id="nobody"),
        item("agents/show", "wrong-agent", agent_id="nobody"),
        item("nothing", "wrong-type"),
    ]
    for total, last in enumerate(wrong, start=1):
        outputs = await bulk(api, create(run, f"create-{total}"), last)
        assert [output["status"] for output in outputs.values()] == ["success", "error"]
        assert (await api.instance(run))["span_counts"]["active"] == total


async def test_what_failed_and_what_came_after_it_can_be_sent_again(api: Api) -> None:
    run = await api.start()
    parent = generate_related(run)
    items = [
        create(run, "create-1", payload={"n": 1}),
        create(run, "create-2", payload={"n": 2}, parent_span_id=parent),
        create(run, "create-3", payload={"n": 3}),
    ]
    first = await bulk(api, *items)
    assert first.keys() == {"create-1", "create-2"}
    await api.created(run, id=parent)
    again = await bulk(api, *items)
    assert again["create-1"] == first["create-1"]
    assert {output["status"] for output in again.values()} == {"success"}
    assert len(await api.spans(run)) == 4


async def wrong_calls(api: Api) -> dict[str, tuple[str, Body, str, Body]]:
    """For each wrong call: its path and body, and the type and fields of the same bulk item."""
    run, done = await api.start(), await api.start()
    await api.done(f"agent_instance/{done}/finish", {})
    span = (await api.created(run))["id"]
    await api.done(f"agent_spans/{span}/finish", {})
    calls: dict[str, tuple[str, Body, str, Body]] = {
        "register nothing": ("agent_instance/register", {}, "agent_instances/register", {}),
        "end a span twice": (
            f"agent_spans/{span}/finish",
            {},
            "agent_spans/finish",
            {"agent_span_id": span},
        ),
    }
    naive = {"timestamp": "2026-01-01T12:00:00"}
    for name, verb, id, body in [
        ("start twice", "start", run, {}),
        ("start nobody", "start", "i0", {}),
        ("finish twice", "finish", done, {}),
        ("finish at a naive time", "finish", run, naive),
        ("terminate what ended", "terminate", done, {"reason": "r"}),
        ("terminate nobody", "terminate", "i0", {"reason": "r"}),
        ("terminate without a reason", "terminate", run, {}),
    ]:
        fields = {"agent_instance_id": id, **body}
        calls[name] = (f"agent_instance/{id}/{verb}", body, f"agent_instances/{verb}", fields)
    for name, details in {
        "a span of a run that ended": span_of(done),
        "a span of an unknown parent": span_of(run, parent_span_id="nobody"),
        "a span with a wrong payload": span_of(run, payload=[1]),
        "a span without a run": {"schema_name": "s", "status": "active", "payload": {}},
    }.items():
        wrapped = {"details": details}
        calls[name] = ("agent_spans", wrapped, "agent_spans/create", wrapped)
        calls[f"{name}, flat"] = ("agent_spans", wrapped, "agent_spans/create", details)
    two_keys = {"details": span_of(run, idempotency_key="another-key")}
    calls["a span with two keys"] = ("agent_spans", two_keys, "agent_spans/create", two_keys)
    return calls


async def test_the_output_of_an_error_is_what_the_single_call_answers(api: Api) -> None:
    for name, (path, body, type, parameters) in (await wrong_calls(api)).items():
        single = await api.post(path, {"idempotency_key": "the-key-1", **body})
        assert single.status_code >= 400, name
        outputs = await bulk(api, item(type, "the-key-1", **parameters))
        assert outputs == {"the-key-1": single.json()}, name


LACKING = [
    ({"_type": "agent_instances/start"}, "agent_instance_id", "required"),
    ({"_type": "agent_instances/finish"}, "agent_instance_id", "required"),
    (
        {"_type": "agent_instances/terminate", "reason": "r"},
        "agent_instance_id",
        "required",
    ),
    ({"_type": "agent_instances/show"}, "agent_instance_id", "required"),
    ({"_type": "agent_spans/finish"}, "agent_span_id", "required"),
    ({"_type": "agent_spans/list"}, "agent_instance_id", "required"),
    ({"_type": "agent_instances/list"}, "agent_id", "required"),
    ({"_type": "agent_instances/list", "agent_id": 5}, "agent_id", "invalid_value"),
    ({"_type": "agent_spans/finish", "agent_span_id": 5}, "agent_span_id", "invalid_value"),
    ({"_type": "agent_spans/create", "details": None}, "details", "invalid_value"),
    (
        {"_type": "agent_instances/list", "agent_id": "a1", "pagination": {"offset": -1}},
        "pagination[offset]",
        "invalid_value",
    ),
    (
        {"_type": "agent_instances/list", "agent_id": "a1", "pagination": {"offset": 1.5}},
        "pagination[offset]",
        "invalid_value",
    ),
    ({"_type": "agent_spans/delete"}, "_type", "invalid_value"),
    ({"_type": ""}, "_type", "invalid_value"),
]


async def test_what_an_item_lacks_is_the_error_of_that_item_alone(api: Api) -> None:
    for number, (parameters, field, code) in enumerate(LACKING):
        with case(parameters, field, code):
            run = await api.register()
            start = f"start-{number:02}"
            started = item("agent_instances/start", start, agent_instance_id=run)
            outputs = await bulk(api, started, {"idempotency_key": "wrong-01", **parameters})
            assert outputs[start]["status"] == "success"
            wrong = outputs["wrong-01"]
            assert (wrong["status"], wrong["code"]) == ("error", "validation_errors")
            assert {name: error["code"] for name, error in wrong["errors"].items()} == {field: code}


# --- the form of the request


def without(name: str, body: Body) -> Body:
    return {key: value for key, value in body.items() if key != name}


WRONG_FORMS = [
    (without("idempotency_key", create("i0", "")), "idempotency_key", "required"),
    (create("i0", "") | {"idempotency_key": None}, "idempotency_key", "invalid_value"),
    (create("i0", "k" * 7), "idempotency_key", "invalid_value"),
    (create("i0", "k" * 129), "idempotency_key", "invalid_value"),
    (create("i0", "start-01"), "idempotency_key", "invalid_value"),
    (without("_type", create("i0", "create-1")), "_type", "required"),
    (create("i0", "create-1") | {"_type": 5}, "_type", "invalid_value"),
    ("create", "items[1]", "invalid_value"),
]


async def test_a_request_of_the_wrong_form_is_refused_before_anything_is_done(api: Api) -> None:
    for last, field, code in WRONG_FORMS:
        with case(last, field, code):
            run = await api.register()
            started = item("agent_instances/start", "start-01", agent_instance_id=run)
            invalid(await api.post("bulk", {"items": [started, last]}), field, code)
            assert (await api.instance(run))["status"] == "pending"


async def test_a_key_has_8_to_128_characters(api: Api) -> None:
    for length in [8, 128]:
        with case(length):
            key = "k" * length
            outputs = await bulk(api, item("agent_instances/list", key, agent_id="a1"))
            assert outputs[key]["status"] == "success"


async def test_a_request_without_items_is_refused(api: Api) -> None:
    for body, code in [
        ({}, "required"),
        ({"items": []}, "invalid_value"),
        ({"items": {}}, "invalid_value"),
    ]:
        with case(body, code):
            invalid(await api.post("bulk", body), "items", code)


async def test_a_request_that_is_no_json_object_is_a_bad_request(api: Api) -> None:
    for body in [b"{", b"[]", b'{"items": [{"a": "\xff"}]}']:
        with case(body):
            refused(await api.post("bulk", body), 400, "bad_request")


async def test_a_bulk_needs_the_token_and_is_a_post() -> None:
    async with opened(":memory:", api_token="right") as api:
        items = {"items": [item("agent_instances/list", "list-runs", agent_id="a1")]}
        refused(await api.post("bulk", items), 401, "bad_authtoken")
        refused(await api.post("bulk", b"{"), 401, "bad_authtoken")
        api.http.headers["Authorization"] = "Bearer right"
        assert (await api.post("bulk", items)).status_code == 200
        refused(await api.get("bulk"), 405, "bad_request")


async def test_a_bulk_knows_the_agents_that_the_single_calls_know() -> None:
    async with opened(":memory:", agents=["a2"]) as api:
        outputs = await bulk(api, item("agent_instances/register", "register-1", **REGISTRATION))
        assert outputs["register-1"]["code"] == "not_found"


# --- idempotency


async def writes(api: Api, key: str) -> dict[str, tuple[str, Body, Body]]:
    """For each write: the path and body of the single call, and the same bulk item."""
    pending, run = await api.register(), await api.start()
    span = (await api.created(run))["id"]
    beside, inside = {"idempotency_key": key}, span_of(run, idempotency_key=key)
    details = span_of(run, payload={"z": 1.5, "a": [None, "ü"]}, started_at=NOON)
    ended = {"status": "failed", "timestamp": None}
    path = "agent_instance/register"
    register, start, finish = (f"agent_instances/{w}" for w in ("register", "start", "finish"))
    flat = item("agent_spans/create", key, **details)
    wrapped = item("agent_spans/create", key, details=details)
    both = item("agent_spans/create", key, details=inside)
    return {
        "register": (path, {**REGISTRATION, **beside}, item(register, key, **REGISTRATION)),
        "start": (
            f"agent_instance/{pending}/start",
            {"timestamp": NOON, **beside},
            item(start, key, agent_instance_id=pending, timestamp=NOON),
        ),
        "finish": (
            f"agent_instance/{run}/finish",
            {**ended, **beside},
            item(finish, key, agent_instance_id=run, **ended),
        ),
        "terminate": (
            f"agent_instance/{run}/terminate",
            {"reason": "r", **beside},
            item("agent_instances/terminate", key, agent_instance_id=run, reason="r"),
        ),
        "finish span": (
            f"agent_spans/{span}/finish",
            {"result_payload": {"n": 1}, **beside},
            item("agent_spans/finish", key, agent_span_id=span, result_payload={"n": 1}),
        ),
        "create wrapped, key beside": ("agent_spans", {"details": details, **beside}, wrapped),
        "create wrapped, key inside": (
            "agent_spans",
            {"details": {**details, **beside}},
            wrapped,
        ),
        "create wrapped, key in both": ("agent_spans", {"details": inside, **beside}, both),
        "create in both, then beside": ("agent_spans", {"details": span_of(run), **beside}, both),
        "create flat, key beside": ("agent_spans", {"details": details, **beside}, flat),
        "create flat, key inside": ("agent_spans", {"details": {**details, **beside}}, flat),
    }


WRITES = [
    "register",
    "start",
    "finish",
    "terminate",
    "finish span",
    "create wrapped, key beside",
    "create wrapped, key inside",
    "create wrapped, key in both",
    "create in both, then beside",
    "create flat, key beside",
    "create flat, key inside",
]


async def test_the_same_write_with_the_same_key_has_one_effect_however_it_is_sent() -> None:
    for name, order in product(WRITES, ["bulk first", "single first", "bulk twice"]):
        with case(name, order):
            async with opened(":memory:") as api:
                await has_one_effect(api, name, order)


async def has_one_effect(api: Api, name: str, order: str) -> None:
    key = "the-key-1"
    path, body, same = (await writes(api, key))[name]

    async def single() -> Any:
        answer: httpx.Response = await api.post(path, body)
        return answer.json()

    async def in_bulk() -> Any:
        return (await bulk(api, same))[key]

    before = await everything(api)
    first = await (single() if order == "single first" else in_bulk())
    after = await everything(api)
    assert first["status"] == "success"
    assert after != before
    again = await (single() if order == "bulk first" else in_bulk())
    assert again == first
    assert await everything(api) == after


async def test_a_key_of_a_bulk_cannot_be_used_for_another_call(api: Api) -> None:
    run = await api.start()
    await bulk(api, create(run, "create-1"))
    body = {"details": span_of(run, payload={"n": 1}), "idempotency_key": "create-1"}
    refused(await api.post("agent_spans", body), 409, "idempotency_key_reused")
    outputs = await bulk(api, create(run, "create-1", payload={"n": 1}))
    assert outputs["create-1"]["code"] == "idempotency_key_reused"
    assert await spans_as_stored(api, run) == [("active", {})]


# --- storage and speed


async def test_what_was_stored_in_bulk_is_in_the_file(tmp_path: Path) -> None:
    path = str(tmp_path / "prefactor.db")
    async with opened(path) as api:
        run = await api.start()
        items = [create(run, f"create-{n}", payload={"n": n}) for n in range(20)]
        first = await bulk(api, *items)
    async with opened(path) as api:
        assert await bulk(api, *items) == first
        assert len(await api.spans(run)) == 20


async def test_a_storage_that_fails_fails_the_request_and_no_item(tmp_path: Path) -> None:
    path = str(tmp_path / "prefactor.db")
    async with opened(path, lock_timeout=0.1) as api:
        run = await api.start()
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        items = [create(run, "create-1"), create(run, "create-2")]
        refused(await api.post("bulk", {"items": items}), 503, "storage_unavailable")
        other.close()
        outputs = await bulk(api, *items)
        assert [output["status"] for output in outputs.values()] == ["success"] * 2


async def test_a_span_in_a_bulk_costs_at_most_130_calls(api: Api) -> None:
    run = await api.start()
    payload = {"prompt": "Which mountain is higher? " * 20}
    items = [create(run, f"create-{n:03}", payload=payload) for n in range(500)]
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        outputs = await bulk(api, *items)
    finally:
        sys.setprofile(None)
    assert len(outputs) == 500
    assert calls <= 130 * 500  # 118 when this was written
