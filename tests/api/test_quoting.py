"""Foreign text is shown without the token, on one line, and bounded."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import anyio
import anyio.abc
import msgspec
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from prefactor_core.api.client import ApiClient
from prefactor_core.api.errors import error_from_answer
from prefactor_core.api.quoting import quoted
from prefactor_core.config import HttpClientConfig
from prefactor_core.exceptions import PrefactorApiError, PrefactorContractError
from prefactor_core.models.clock import to_nanoseconds
from prefactor_core.models.lifecycle import SpanStatus
from prefactor_core.operations import CreateSpan, RegisterAgentInstance

TOKEN = "pf/secret+token-0123456789=="
TIME = to_nanoseconds(datetime(2026, 1, 2, 3, 4, 5, 678901, UTC))
ID = "0123456789abcdef0123456789abcdef"

tokens = st.text(
    st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="*"),
    min_size=8,
    max_size=60,
).map("Zq7!".__add__)  # so that no word of a message is a part of a token
# Texts that must not stand in a log line, and the text around them.
texts = st.text(
    st.characters() | st.sampled_from("\n\r\x1b\x00\x9b\u202e\u2028\u200f\ud800\\%"), max_size=40
)
spellings: list[Callable[[str], str]] = [
    str,
    lambda token: quote(token, safe=""),
    lambda token: quote(token),
    lambda token: quote(token).lower() if token.islower() else quote(token),
    lambda token: "".join(f"%{ord(c):02X}" for c in token),
    lambda token: quote(quote(token, safe=""), safe=""),
    lambda token: msgspec.json.encode(token).decode()[1:-1],
    lambda token: msgspec.json.encode(token).decode()[1:-1].replace("/", "\\/"),
    lambda token: "".join(f"\\u{ord(c):04x}" for c in token),
    lambda token: repr(token)[1:-1],
]
LONE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\u200e\u200f]")


def is_clean(text: str, token: str) -> bool:
    return not LONE.search(text) and all(spelt(token) not in text for spelt in spellings)


@given(
    token=tokens,
    before=texts,
    after=texts,
    spelt=st.sampled_from(spellings),
    times=st.integers(1, 30),
)
@example(token=TOKEN, before="x" * 490, after="", spelt=str, times=1)
@example(token=TOKEN, before="x" * 1990, after="y" * 3000, spelt=str, times=1)
@example(token="0123456789", before="\x1b[31m", after="\r\nWARNING forged", spelt=str, times=1)
def test_a_quoted_text_is_clean_and_bounded(
    token: str, before: str, after: str, spelt: Callable[[str], str], times: int
) -> None:
    shown = quoted((before + spelt(token) + after) * times, token)
    assert is_clean(shown, token)
    assert len(shown) <= 501
    shown.encode()


@given(text=st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=500))
def test_a_plain_text_is_quoted_as_it_is(text: str) -> None:
    assert quoted(text, "") == text
    assert quoted(text, "a token that is nowhere") == text


def test_what_a_terminal_would_obey_is_escaped() -> None:
    assert quoted("a\n\x1b[2J\x9b1m\u202e\u2028b\ud800ü", TOKEN) == (
        r"a\n\x1b[2J\x9b1m\u202e\u2028b\ud800ü"
    )


def test_a_long_run_of_backslashes_is_quoted_at_once() -> None:
    assert quoted("\\" * 1_000_000, "\\" * 50 + "x").startswith("\\")


def shown_by(error: BaseException) -> str:
    return " ".join([str(error), repr(error), repr(error.args), repr(vars(error))])


@given(
    token=tokens,
    text=texts,
    spelt=st.sampled_from(spellings),
    status=st.sampled_from([400, 401, 404, 409, 418, 422, 429, 500, 503]),
)
def test_an_error_shows_no_token_wherever_the_answer_has_it(
    token: str, text: str, spelt: Callable[[str], str], status: int
) -> None:
    echo = (text + spelt(token) + text).encode(errors="replace").decode()
    body = {
        "status": "error",
        "code": echo,
        "message": echo,
        "errors": {echo: {"message": echo}, echo + "2": [echo], "3": {"code": echo}},
    }
    error = error_from_answer("GET x", status, msgspec.json.encode(body), echo, token=token)
    assert is_clean(str(error), token)
    assert is_clean(error.code, token)
    for name, message in getattr(error, "errors", {}).items():
        assert is_clean(name, token)
        assert is_clean(message, token)
    assert token not in shown_by(error).replace("\\\\", "\\")


async def ask_of(body: object, ask: Callable[[ApiClient], Awaitable[Any]], token: str) -> Any:
    """The result of ``ask`` if every request is answered ``body``."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": msgspec.json.encode(body)})

    async with ApiClient(HttpClientConfig("http://api.test", token), lambda: "a@1", app) as api:
        return await ask(api)


REGISTER = RegisterAgentInstance(
    timestamp=TIME,
    idempotency_key="i1-register",
    agent_id="a1",
    agent_version={"name": "An agent"},
    agent_schema_version={"span_type_schemas": []},
    instance_id="i1",
)
CREATE = CreateSpan(
    timestamp=TIME,
    idempotency_key="s1-create",
    instance_id="i1",
    span_id="s1",
    schema_name="agent:llm",
    status=SpanStatus.ACTIVE,
    payload=msgspec.Raw(b"{}"),
)


@given(token=tokens, text=texts, spelt=st.sampled_from(spellings))
async def test_no_answer_brings_the_token_or_a_line_break_into_what_is_shown(
    token: str, text: str, spelt: Callable[[str], str]
) -> None:
    echo = (text + spelt(token) + text).encode(errors="replace").decode()
    assume(token not in ID and token not in "GET POST agent_instance at http://api.test")

    with pytest.raises(PrefactorContractError) as caught:
        details = {"id": echo, "status": "active"}
        await ask_of({"details": details}, lambda api: api.send(REGISTER), token)
    assert is_clean(str(caught.value), token)

    control = {"terminate": True, "reason": echo}
    span = {"id": ID, "status": "active", "agent_instance_id": ID, "schema_name": "x"}
    created = await ask_of(
        {"details": span, "control": control}, lambda api: api.send(CREATE), token
    )
    assert is_clean(created.control.reason, token)

    run = {"id": ID, "status": "terminated", "termination_reason": echo}
    stored = await ask_of({"details": run}, lambda api: api.get_agent_instance(ID), token)
    assert is_clean(stored.termination_reason, token)

    async def first(api: ApiClient) -> Any:
        (run,) = [instance async for instance in api.list_agent_instances("a1")]
        return run

    assert is_clean((await ask_of({"summaries": [run]}, first, token)).termination_reason, token)

    outputs = {"s1-create": {"status": "error", "code": echo, "message": echo, "control": control}}
    given_outputs = await ask_of(
        {"outputs": outputs}, lambda api: api.bulk([CREATE], [True]), token
    )
    output = given_outputs["s1-create"]
    for shown in (output.code, output.message, output.control.reason):
        assert is_clean(shown, token)


ECHOES = {
    "reason": b"HTTP/1.1 401 No %b\r\nContent-Length: 2\r\n\r\n{}" % TOKEN.encode(),
    "header": b"HTTP/1.1 200 OK\r\nX-Echo: Bearer %b\r\nContent-Length: 2\r\n\r\n{}"
    % TOKEN.encode(),
    "location": b"HTTP/1.1 302 Found\r\nLocation: http://x/?t=%b\r\nContent-Length: 0\r\n\r\n"
    % quote(TOKEN, safe="").encode(),
    "not http": b"Authorization: Bearer %b\r\n\r\n" % TOKEN.encode(),
    "odd header": b"HTTP/1.1 200 OK\r\n%b \x1b[2J\r\n\r\n" % TOKEN.encode(),
    "odd length": b"HTTP/1.1 200 OK\r\nContent-Length: %b\r\n\r\n" % TOKEN.encode(),
}


@pytest.mark.parametrize("said", ECHOES.values(), ids=ECHOES.keys())
async def test_no_log_record_of_any_logger_has_the_token(
    said: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    got: list[bytes] = []

    async def serve(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            got.append(await stream.receive())
            await stream.send(said)

    error = ""
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        async with anyio.create_task_group() as group:
            group.start_soon(listener.serve, serve)
            port = listener.extra(anyio.abc.SocketAttribute.local_port)
            async with ApiClient(
                HttpClientConfig(f"http://127.0.0.1:{port}", TOKEN), lambda: "a@1"
            ) as api:
                with anyio.fail_after(10):
                    try:
                        await api.ping()
                    except PrefactorApiError as caught:
                        error = shown_by(caught)
            group.cancel_scope.cancel()
    assert TOKEN.encode() in got[0]
    records = [r for r in caplog.records if r.name.startswith(("httpcore.http11", "httpx"))]
    assert records
    for shown in [error, caplog.text, *(repr(vars(record)) for record in caplog.records)]:
        assert TOKEN not in shown
        assert quote(TOKEN, safe="") not in shown
        assert "\x1b" not in shown


async def test_when_its_last_client_is_closed_a_token_is_kept_nowhere(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    async with ApiClient(HttpClientConfig("http://api.test", TOKEN), lambda: "a@1"):
        async with ApiClient(HttpClientConfig("http://api.test", TOKEN), lambda: "a@1"):
            pass
        logging.getLogger("httpcore.http11").debug("sent %s", TOKEN)
    logging.getLogger("httpcore.http11").debug("then %s", TOKEN)
    messages = [record.getMessage() for record in caplog.records]
    assert "sent ***" in messages
    assert f"then {TOKEN}" in messages
