"""The API client over ASGI applications and over real loopback sockets."""

from __future__ import annotations

import logging
import socket
import traceback
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from itertools import product
from typing import Any

import anyio
import anyio.abc
import msgspec
import pytest
from msgspec import Raw
from support.answering import http_answer, open_server
from support.cases import case
from support.harness import FaultyApi, open_faulty_api

from prefactor_core.api.answers import AgentInstanceAnswer, Control
from prefactor_core.api.client import ApiClient, AsgiMessage
from prefactor_core.config import HttpClientConfig
from prefactor_core.exceptions import (
    PrefactorApiError,
    PrefactorConflictError,
    PrefactorContractError,
    PrefactorNotFoundError,
    PrefactorRateLimitError,
    PrefactorServerError,
    PrefactorUnreachableError,
    PrefactorValidationError,
    PrefactorValueError,
)
from prefactor_core.local import LocalPrefactor
from prefactor_core.local.requests import CreateSpanBody, RegisterBody, SpanDetails
from prefactor_core.local.service import Service
from prefactor_core.local.store import Store
from prefactor_core.models.clock import to_nanoseconds
from prefactor_core.models.lifecycle import InstanceStatus, SpanStatus
from prefactor_core.operations import (
    CreateSpan,
    FinishAgentInstance,
    FinishSpan,
    RegisterAgentInstance,
    StartAgentInstance,
)

TOKEN = "pf/secret+token-0123456789=="
TIME = to_nanoseconds(datetime(2026, 1, 2, 3, 4, 5, 678901, UTC))
TIME_TEXT = "2026-01-02T03:04:05.678901Z"
STORED_ID = "0123456789abcdef0123456789abcdef"
STORED = {
    "id": STORED_ID,
    "status": "active",
    "agent_instance_id": "i1",
    "schema_name": "agent:llm",
}
WAIT = 60

REGISTER = RegisterAgentInstance(
    timestamp=TIME,
    idempotency_key="i1-register",
    agent_id="a1",
    agent_version={"name": "An agent"},
    agent_schema_version={"span_type_schemas": []},
    instance_id="i1",
)
START = StartAgentInstance(timestamp=TIME, idempotency_key="i1-start", instance_id="i1")
FINISH = FinishAgentInstance(
    timestamp=TIME, idempotency_key="i1-finish", instance_id="i1", status=InstanceStatus.FAILED
)
CREATE_SPAN = CreateSpan(
    timestamp=TIME,
    idempotency_key="s1-create",
    instance_id="i1",
    span_id="s1",
    schema_name="agent:llm",
    status=SpanStatus.ACTIVE,
    payload=Raw(b'{"prompt":"hi"}'),
)
FINISH_SPAN = FinishSpan(
    timestamp=TIME,
    idempotency_key="s1-finish",
    instance_id="i1",
    span_id="s1",
    status=SpanStatus.COMPLETE,
)
CREATE_SPAN_DETAILS = {
    "id": "s1",
    "agent_instance_id": "i1",
    "schema_name": "agent:llm",
    "status": "active",
    "payload": {"prompt": "hi"},
    "started_at": TIME_TEXT,
    "idempotency_key": "s1-create",
}
CALLS: dict[str, Callable[[ApiClient], Awaitable[object]]] = {
    "ping": lambda api: api.ping(),
    "register": lambda api: api.send(REGISTER),
    "start": lambda api: api.send(START),
    "finish": lambda api: api.send(FINISH),
    "terminate": lambda api: api.terminate_agent_instance("i1", "over budget"),
    "create span": lambda api: api.send(CREATE_SPAN),
    "finish span": lambda api: api.send(FINISH_SPAN),
    "get": lambda api: api.get_agent_instance("i1"),
}


async def nowhere(scope: AsgiMessage, receive: Any, send: Any) -> None:
    raise AssertionError("nothing is behind this application")


def answering(status: int, body: object, headers: dict[str, str] | None = None) -> FaultyApi:
    """An application that gives the same answer to every call, and keeps the calls."""
    content = body if isinstance(body, bytes) else msgspec.json.encode(body)
    return FaultyApi(nowhere, faults={"*": (status, headers or {}, content)})


def make_api(app: Any = None, api_url: str = "http://api.test", **options: Any) -> ApiClient:
    config = HttpClientConfig(**{"api_url": api_url, "api_token": TOKEN, **options})
    return ApiClient(config, lambda: "adapter@2 prefactor-core@1", app)


POSTED = [
    (
        REGISTER,
        "agent_instance/register",
        {
            "agent_id": "a1",
            "agent_version": {"name": "An agent"},
            "agent_schema_version": {"span_type_schemas": []},
            "update_current_version": True,
            "idempotency_key": "i1-register",
        },
    ),
    (
        START,
        "agent_instance/i1/start",
        {"timestamp": TIME_TEXT, "idempotency_key": "i1-start"},
    ),
    (
        FINISH,
        "agent_instance/i1/finish",
        {"status": "failed", "timestamp": TIME_TEXT, "idempotency_key": "i1-finish"},
    ),
    (
        CREATE_SPAN,
        "agent_spans",
        {"details": CREATE_SPAN_DETAILS, "idempotency_key": "s1-create"},
    ),
    (
        FINISH_SPAN,
        "agent_spans/s1/finish",
        {"status": "complete", "timestamp": TIME_TEXT, "idempotency_key": "s1-finish"},
    ),
]


async def test_an_operation_is_posted_in_the_form_of_the_api() -> None:
    for operation, path, body in POSTED:
        with case(operation, path, body):
            app = answering(200, {"status": "success", "details": STORED})
            async with make_api(app) as api:
                await api.send(operation)
            (call,) = app.calls
            assert (call.method, call.path) == ("POST", f"/api/v1/{path}")
            assert call.body == body


async def test_every_termination_has_a_key_of_its_own() -> None:
    app = answering(200, {"status": "success", "details": STORED})
    async with make_api(app) as api:
        for _ in range(2):
            await api.terminate_agent_instance("i1", "over budget")
    keys = {call.body.pop("idempotency_key") for call in app.calls}
    assert len(keys) == 2
    assert {len(key) for key in keys} == {32}
    for call in app.calls:
        assert (call.method, call.path) == ("POST", "/api/v1/agent_instance/i1/terminate")
        assert call.body == {"reason": "over budget"}


async def test_an_id_of_a_run_that_is_no_pfid_is_not_what_the_api_is_known_to_answer() -> None:
    app = answering(200, {"status": "success", "details": {**STORED, "id": "i1"}})
    async with make_api(app) as api:
        with pytest.raises(PrefactorContractError, match="'i1', which is no PFID"):
            await api.send(REGISTER)


async def test_an_id_given_to_a_run_is_registered() -> None:
    app = answering(200, {"status": "success", "details": STORED})
    async with make_api(app) as api:
        given = await api.send(
            msgspec.structs.replace(REGISTER, instance_id="i7", asks_for_id=True)
        )
    assert app.calls[0].body["id"] == "i7"
    assert given.details.id == STORED_ID


async def test_a_question_has_no_body() -> None:
    for name, path in [("ping", "ping"), ("get", "agent_instance/i1")]:
        with case(name, path):
            app = answering(200, {"status": "success", "details": STORED})
            async with make_api(app) as api:
                await CALLS[name](api)
            (call,) = app.calls
            assert (call.method, call.path, call.body) == ("GET", f"/api/v1/{path}", None)


async def test_every_call_has_the_token_the_sdk_header_and_json() -> None:
    for name in CALLS:
        with case(name):
            app = answering(200, {"status": "success", "details": STORED})
            async with make_api(app) as api:
                await CALLS[name](api)
            headers = app.calls[0].headers
            assert headers["authorization"] == f"Bearer {TOKEN}"
            assert headers["x-prefactor-sdk"] == "adapter@2 prefactor-core@1"
            assert headers["content-type"] == "application/json"
            assert headers["accept"] == "application/json"


async def test_without_a_token_there_is_no_authorization() -> None:
    app = answering(200, {})
    async with make_api(app, api_url="local::memory:", api_token="") as api:
        await api.ping()
    assert "authorization" not in app.calls[0].headers


@pytest.mark.parametrize(
    ("ending", "path"),
    [
        ("", b"/api/v1/ping"),
        ("/", b"/api/v1/ping"),
        ("///", b"/api/v1/ping"),
        ("/eu//", b"/eu/api/v1/ping"),
    ],
)
async def test_trailing_slashes_of_the_url_are_cut(ending: str, path: bytes) -> None:
    async with (
        open_server(http_answer(200, b"{}")) as (address, requests),
        make_api(api_url=f"http://{address}{ending}") as api,
    ):
        await api.ping()
    assert requests[0].startswith(b"GET " + path + b" HTTP/1.1\r\n")


FAULTS = [
    (404, PrefactorNotFoundError),
    (422, PrefactorValidationError),
    (429, PrefactorRateLimitError),
    (503, PrefactorServerError),
    (ConnectionResetError("gone"), PrefactorUnreachableError),
]


async def test_a_call_that_fails_makes_one_attempt() -> None:
    for name, (fault, error_class) in product(CALLS, FAULTS):
        with case(name, fault, error_class):
            app = FaultyApi(nowhere, faults={"*": fault})
            async with make_api(app) as api:
                with pytest.raises(error_class) as caught:
                    await CALLS[name](api)
            assert len(app.calls) == 1
            assert f"{app.calls[0].method} {app.calls[0].path.removeprefix('/api/v1/')} at " in str(
                caught.value
            )


async def test_the_wait_asked_for_comes_from_the_header() -> None:
    async with make_api(answering(503, {}, {"Retry-After": "7"})) as api:
        with pytest.raises(PrefactorServerError) as caught:
            await api.ping()
    assert caught.value.retry_after == 7


async def test_a_status_configured_as_passing_is_a_server_error() -> None:
    async with make_api(answering(425, {}), retry_on_status_codes=(425,)) as api:
        with pytest.raises(PrefactorServerError):
            await api.ping()


async def test_fields_that_a_later_api_adds_are_passed_over() -> None:
    details = {**STORED, "mood": {"is": "good"}, "payload": {"prompt": "hi"}, "started_at": None}
    answer = {"status": "success", "details": details, "advice": [1, 2]}
    control = {"terminate": True, "reason": "budget", "by": "someone"}
    async with make_api(answering(200, {**answer, "control": control})) as api:
        span = await api.send(CREATE_SPAN)
        instance = await api.get_agent_instance("i1")
    assert span.details.payload == Raw(b'{"prompt":"hi"}')
    assert span.details.result_payload == Raw(b"null")
    assert span.control == Control(terminate=True, reason="budget")
    assert instance == AgentInstanceAnswer(id=STORED_ID, status="active")


async def test_an_answer_without_control_asks_for_nothing() -> None:
    async with make_api(answering(200, {"details": STORED})) as api:
        assert (await api.send(FINISH_SPAN)).control is None


async def test_an_answer_that_holds_the_text_of_the_token_is_read_as_it_came() -> None:
    details = {**STORED, "agent_id": "demo-agent"}
    async with make_api(answering(200, {"details": details}), api_token="demo") as api:
        assert (await api.get_agent_instance("i1")).agent_id == "demo-agent"


OTHER_FORMS = [
    b"<html>Welcome</html>",
    b"",
    b"[]",
    b'{"status": "success"}',
    b'{"status": "success", "details": {"id": 7, "status": "active"}}',
    b'{"status": "success", "details": {"id": "\xff", "status": "active"}}',
    b'{"details": ' + b'{"more": ' * 100_000 + b"1",
]


async def test_a_success_in_another_form_breaks_the_contract() -> None:
    for body in OTHER_FORMS:
        with case(body):
            async with make_api(answering(200, body)) as api:
                with pytest.raises(PrefactorContractError, match=r"is api_url right\?") as caught:
                    await api.get_agent_instance("i1")
            assert caught.value.status_code == 200


# httpx leaves the body that it cannot decode to the garbage collector, which trio minds.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_an_answer_that_cannot_be_unpacked_is_an_error_of_ours() -> None:
    for status in [200, 502]:
        with case(status):
            app = answering(status, b"this is not gzip", {"Content-Encoding": "gzip"})
            async with make_api(app) as api:
                with pytest.raises(PrefactorApiError):
                    await api.ping()


async def test_a_redirect_is_not_followed() -> None:
    for status in [301, 302, 307, 308]:
        with case(status):
            app = answering(status, b"", {"Location": "http://elsewhere.test/api/v1/ping"})
            async with make_api(app) as api:
                with pytest.raises(PrefactorContractError) as caught:
                    await api.ping()
            assert caught.value.status_code == status
            assert len(app.calls) == 1


async def test_a_refused_connection_is_an_unreachable_api() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        async with make_api(api_url=url) as api:
            with anyio.fail_after(WAIT), pytest.raises(PrefactorUnreachableError) as caught:
                await api.ping()
    assert str(caught.value).startswith(f"GET ping at {url}: ")
    assert caught.value.status_code is None


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"HTTP/1.1 2",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"status": "suc',
        b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"sta\r\n',
        b"SSH-2.0-OpenSSH_9.6\r\n",
    ],
    ids=["nothing", "status line", "headers", "body", "chunks", "another protocol"],
)
async def test_an_answer_that_breaks_off_is_an_unreachable_api(said: bytes) -> None:
    async with (
        open_server(said) as (address, requests),
        make_api(api_url=f"http://{address}") as api,
    ):
        with pytest.raises(PrefactorUnreachableError):
            await api.ping()
    assert len(requests) == 1


@pytest.mark.virtual_time
async def test_a_call_that_is_never_answered_ends_at_the_request_timeout() -> None:
    async with make_api(FaultyApi(nowhere, hanging=True), request_timeout=7) as api:
        with (
            anyio.fail_after(100),
            pytest.raises(PrefactorUnreachableError, match="no answer within 7 s"),
        ):
            await api.ping()
    assert anyio.current_time() == pytest.approx(7)


@pytest.mark.virtual_time
async def test_an_answer_that_trickles_in_ends_at_the_request_timeout() -> None:
    async def trickle(scope: AsgiMessage, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await anyio.sleep(1)
            await send({"type": "http.response.body", "body": b" ", "more_body": True})

    async with make_api(trickle, request_timeout=7) as api:
        with (
            anyio.fail_after(100),
            pytest.raises(PrefactorUnreachableError, match="no answer within 7 s"),
        ):
            await api.ping()
    assert anyio.current_time() == pytest.approx(7)


@pytest.mark.virtual_time
async def test_a_call_that_is_cancelled_raises_nothing_of_its_own() -> None:
    async with make_api(FaultyApi(nowhere, hanging=True)) as api:
        with anyio.move_on_after(1) as scope:
            await api.ping()
    assert scope.cancelled_caught
    assert anyio.current_time() == pytest.approx(1)


@pytest.mark.parametrize("count", [0, 1, 100, 101, 250])
async def test_lists_are_read_to_the_end_oldest_first(count: int) -> None:
    store = Store(":memory:")
    service = Service(store)
    registered = [
        msgspec.json.decode(
            service.register(RegisterBody(agent_id="a1", agent_version={}, agent_schema_version={}))
        )["details"]["id"]
        for _ in range(max(count, 1))
    ]
    span = SpanDetails(
        agent_instance_id=registered[0], schema_name="agent:llm", status="active", payload={}
    )
    created = [
        msgspec.json.decode(service.create_span(CreateSpanBody(details=span)))["details"]["id"]
        for _ in range(count)
    ]
    app = FaultyApi(LocalPrefactor(store))
    async with make_api(app) as api:
        instances = [instance.id async for instance in api.list_agent_instances("a1")]
        spans = [span.id async for span in api.list_agent_spans(registered[0])]
        assert [i.id async for i in api.list_agent_instances("another agent")] == []
    store.close()
    assert instances == sorted(registered)
    assert spans == sorted(created)
    assert [call.name for call in app.calls].count("agent_spans") == max(1, -(-count // 100))


async def test_a_list_without_pagination_is_one_page() -> None:
    app = answering(200, {"summaries": [STORED, STORED], "pagination": None, "sorting": None})
    async with make_api(app) as api:
        assert len([span async for span in api.list_agent_spans("i1")]) == 2
    assert len(app.calls) == 1


async def test_a_list_that_fails_on_a_later_page_raises_after_the_first() -> None:
    first = {"summaries": [STORED], "pagination": {"next_page_offset": 1}}
    faults = {"agent_spans": [(200, {}, msgspec.json.encode(first)), 503]}
    async with make_api(FaultyApi(nowhere, faults=faults)) as api:
        spans = api.list_agent_spans("i1")
        assert (await anext(spans)).id == STORED_ID
        with pytest.raises(PrefactorServerError):
            await anext(spans)


async def test_what_is_sent_is_what_local_prefactor_takes() -> None:
    async with open_faulty_api(api_token=TOKEN) as app, make_api(app) as api:
        await api.ping()
        instance_id = (await api.send(REGISTER)).details.id
        own = {"instance_id": instance_id}
        started = await api.send(msgspec.structs.replace(START, **own))
        # A PFID of the server's partition, like the id of a run.
        span_id = instance_id[:-1] + ("0" if instance_id[-1] != "0" else "1")
        own["span_id"] = span_id
        created = await api.send(msgspec.structs.replace(CREATE_SPAN, **own))
        done = await api.send(msgspec.structs.replace(FINISH_SPAN, **own))
        own.pop("span_id")
        finished = await api.send(msgspec.structs.replace(FINISH, **own))
        stored = await api.get_agent_instance(instance_id)
    assert (started.details.status, started.details.started_at) == ("active", TIME_TEXT)
    assert (created.details.id, created.details.payload) == (span_id, CREATE_SPAN.payload)
    assert (done.details.status, done.details.finished_at) == ("complete", TIME_TEXT)
    assert stored == finished.details
    assert (stored.status, stored.finished_at) == ("failed", TIME_TEXT)


async def test_a_terminated_run_says_so_in_the_answer_and_to_its_recorder() -> None:
    async with open_faulty_api(api_token=TOKEN) as app, make_api(app) as api:
        own = {"instance_id": (await api.send(REGISTER)).details.id}
        await api.send(msgspec.structs.replace(START, **own))
        terminated = await api.terminate_agent_instance(own["instance_id"], "over budget")
        created = await api.send(msgspec.structs.replace(CREATE_SPAN, **own), given_id=False)
        with pytest.raises(PrefactorConflictError, match="409 invalid_action"):
            await api.terminate_agent_instance(own["instance_id"], "over budget")
        stored = await api.get_agent_instance(own["instance_id"])
    # The span that came late is counted, and nothing else has changed.
    assert msgspec.structs.replace(stored, span_counts=terminated.span_counts) == terminated
    assert (stored.span_counts or {})["total"] == 1
    assert (terminated.status, terminated.termination_reason) == ("terminated", "over budget")
    assert created.control == Control(terminate=True, reason="over budget")


ESCAPED = TOKEN.replace("/", "\\/")
SPELLED = TOKEN.replace("p", "\\u0070")


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (401, f'{{"code": "bad_authtoken", "message": "no such token: {TOKEN}"}}'),
        (401, f'{{"code": "{TOKEN}"}}'),
        (422, f'{{"code": "c", "errors": {{"{TOKEN}": {{"message": "{TOKEN}"}}}}}}'),
        (422, f'{{"code": "c", "errors": {{"token": ["{TOKEN}"]}}}}'),
        (500, f"Authorization: Bearer {TOKEN}"),
        (404, f"<html>{TOKEN}</html>"),
        (200, f"<html>{TOKEN}</html>"),
        (200, f'{{"details": {{"id": "{TOKEN}", "status": 7}}}}'),
        (401, f'{{"code": "bad_authtoken", "message": "no such token: {ESCAPED}"}}'),
        (401, f'{{"code": "bad_authtoken", "message": "no such token: {SPELLED}"}}'),
        (422, f'{{"code": "c", "errors": {{"token": ["{ESCAPED}"]}}}}'),
    ],
    ids=[
        "message",
        "code",
        "field",
        "odd field",
        "500",
        "404 html",
        "200 html",
        "200",
        "escaped slash",
        "escaped letter",
        "escaped in a field",
    ],
)
async def test_the_token_is_in_no_error_repr_or_log_even_if_the_server_repeats_it(
    status: int, body: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with (
        open_server(http_answer(status, body.encode())) as (address, requests),
        make_api(api_url=f"http://{address}") as api,
    ):
        with pytest.raises(PrefactorApiError) as caught:
            await api.get_agent_instance("i1")
    assert TOKEN.encode() in requests[0]
    error = caught.value
    shown = [
        str(error),
        repr(error),
        repr(vars(error)),
        *traceback.format_exception(error),
        repr(api),
        repr(HttpClientConfig(api_url="http://api.test", api_token=TOKEN)),
        caplog.text,
        *(repr(vars(record)) for record in caplog.records),
    ]
    assert caplog.records
    for text in shown:
        assert TOKEN not in text
        assert ESCAPED not in text


URLS_WITH_PASSWORDS = [
    "https://user:qqqq@api.test",
    "http://user:qqqq@api.test:port",
    "http://user:qq#qq@api.test",
    "http://user:qq/qq@api.test",
    "htps://user:qqqq@api.test",
    "user:qqqq@api.test",
]


def test_a_url_with_a_password_is_refused_and_not_shown() -> None:
    for api_url in URLS_WITH_PASSWORDS:
        with case(api_url):
            with pytest.raises(PrefactorValueError) as caught:
                make_api(api_url=api_url)
            assert "qq" not in str(caught.value)


async def test_an_id_that_fits_into_no_address_is_an_unreachable_api() -> None:
    async with make_api(api_url="http://api.test") as api:
        with pytest.raises(PrefactorUnreachableError, match="non-printable"):
            await api.get_agent_instance("line\nbreak")


async def test_an_address_that_cannot_be_is_an_unreachable_api() -> None:
    with anyio.fail_after(WAIT), pytest.raises(PrefactorUnreachableError):
        async with make_api(api_url="http://api..test") as api:
            await api.ping()
