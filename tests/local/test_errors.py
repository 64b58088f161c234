"""Errors: bodies, fields, tokens and failures, each as a JSON object of the API."""

from __future__ import annotations

import sqlite3
from itertools import product
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.cases import case
from support.local_api import (
    REGISTRATION,
    WRITES,
    Api,
    calling,
    invalid,
    opened,
    refused,
    span_of,
    write,
)

from prefactor_core.local import open_local_prefactor


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
        # Nothing was changed, and no key was used up.
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


async def test_every_answer_is_a_json_object(api: Api) -> None:
    for path in ["", "ping", "agent_spans", "bulk", "agent/a%ff", "a%00/\u2028"]:
        with case(path):
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


NO_SCHEMAS = [
    None,
    {},
    {"span_schemas": None, "span_result_schemas": None},
    {"span_type_schemas": [], "span_schemas": None, "span_result_schemas": {}},
]


async def test_a_run_may_have_no_schemas(api: Api) -> None:
    for version in NO_SCHEMAS:
        with case(version):
            run = await api.register(agent_schema_version=version)
            assert (await api.created(run))["flags"] == []
            without = {key: REGISTRATION[key] for key in ("agent_id", "agent_version")}
            await api.done("agent_instance/register", without)


async def test_an_agent_has_an_id_that_is_not_empty(api: Api) -> None:
    answer = await api.post("agent_instance/register", {**REGISTRATION, "agent_id": ""})
    invalid(answer, "agent_id", "required")


REQUIRED = [
    ("register", "agent_id"),
    ("register", "agent_version"),
    ("create span", "details"),
    ("create span", "agent_instance_id"),
    ("create span", "schema_name"),
    ("create span", "status"),
    ("create span", "payload"),
]


async def test_a_missing_field_is_required(api: Api) -> None:
    for name, field in REQUIRED:
        with case(name, field):
            path, body, _ = await write(api, name)
            (body if field in body else body["details"]).pop(field)
            invalid(await api.post(path, body), field, "required")


@pytest.mark.parametrize("path", ["agent_instance", "agent_spans"])
async def test_a_list_needs_to_know_of_what(api: Api, path: str) -> None:
    refused(await api.get(path), 422, "validation_errors")


WRONG_TYPES = [
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
]


async def test_a_value_of_the_wrong_type_is_invalid(api: Api) -> None:
    for name, field, value in WRONG_TYPES:
        with case(name, field, value):
            path, body, _ = await write(api, name)
            if name == "create span" and field != "details":
                body["details"][field] = value
            else:
                body[field] = value
            invalid(await api.post(path, body), field)


async def test_a_body_that_is_no_json_object_is_a_bad_request(api: Api) -> None:
    contents = [b"{", b"agent_id=a1", b"\xff\xfe", b"null", b"[]", b'"text"', b"7"]
    for name, content in product(WRITES, contents):
        with case(name, content):
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
    # A body that can just be decoded needs a little more depth to be encoded.
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


NOWHERE = [
    ("GET", "agent_instance/i0"),
    ("POST", "agent_instance/i0/start"),
    ("POST", "agent_instance/i0/finish"),
    ("POST", "agent_spans/s0/finish"),
    ("GET", "agent_spans?agent_instance_id=i0"),
    ("GET", "nowhere"),
    ("GET", "ping/"),
    ("GET", "/"),
]


async def test_what_is_not_there_is_not_found_in_json(api: Api) -> None:
    for method, path in NOWHERE:
        with case(method, path):
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


async def test_a_configured_token_is_asked_for() -> None:
    wrong = [None, "", "Bearer", "Bearer wrong", "Bearer rights", "Basic right", "right"]
    paths = ["ping", "agent_instance?agent_id=a1", "agent_instance/register"]
    for authorization, path in product(wrong, paths):
        headers = {} if authorization is None else {"Authorization": authorization}
        with case(authorization, path):
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
