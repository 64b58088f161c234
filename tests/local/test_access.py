"""Access: the hosts, origins, tokens and bodies that the local server takes, by their values."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import anyio
import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from support.cases import case

from prefactor_core.exceptions.checks import is_loopback
from prefactor_core.local import open_local_prefactor
from prefactor_core.local.access import Access

PORT = 8787
HOST = f"127.0.0.1:{PORT}"
TOKEN = "correct horse"
JSON = ("Content-Type", "application/json")


@dataclass
class App:
    """An application that answers 200 to all, and keeps what reached it."""

    bodies: list[bytes] = field(default_factory=list)
    after: list[Message] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.bodies.append((await receive())["body"])
        self.after.append(await receive())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        return str(json.loads(self.body)["code"]) if self.body else ""


Headers = Sequence[tuple[str, str]]


async def ask(
    access: Access,
    method: str = "GET",
    path: str = "/",
    headers: Headers = (("Host", HOST),),
    body: Iterable[bytes] = (b"",),
    *,
    leaves: bool = False,
) -> Answer:
    """One request; ``body`` in its parts, after which the client may hang, or leave."""
    parts = list(body)
    incoming: list[Message] = [
        {"type": "http.request", "body": part, "more_body": n < len(parts)}
        for n, part in enumerate(parts, 1)
    ]
    if not parts or leaves:
        for message in incoming:
            message["more_body"] = True
    answered: list[Message] = []

    async def receive() -> Message:
        if incoming:
            return incoming.pop(0)
        if not parts:
            await anyio.sleep_forever()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        answered.append(message)

    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
    scope: dict[str, Any] = {
        "type": "http",
        "method": method,
        "scheme": "http",
        "path": path,
        "query_string": b"",
        "headers": raw,
        "server": ("127.0.0.1", PORT),
    }
    with anyio.fail_after(60):
        await access(scope, receive, send)
    if not answered:
        return Answer(0, {}, b"")
    start, *rest = answered
    names = {name.decode(): value.decode() for name, value in start["headers"]}
    return Answer(start["status"], names, b"".join(part.get("body", b"") for part in rest))


def access_to(app: ASGIApp, *, host: str = "127.0.0.1", port: int = PORT, **options: Any) -> Access:
    return Access(app, host=host, port=port, **options)


# --- hosts

LOOPBACK = ["127.0.0.1", "localhost", "LocalHost", "localhost.", "127.8.9.10", "[::1]", "[0:0::1]"]
# DNS rebinding names, names that hold a loopback name, other ways to write loopback.
FOREIGN = [
    "evil.example",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "evil.localhost",
    "xlocalhost",
    "localhost..",
    "user@localhost",
    "127.1",
    "2130706433",
    "0x7f.0.0.1",
    "127.0.0.1\t",
    "::1",
    "[::1",
    "[localhost]x",
    "[fe80::1]",
    "192.168.1.5",
    "0.0.0.0",
    "[::]",
    "\u217cocalhost".encode().decode("latin-1"),
    "",
    ",",
]


async def test_every_way_to_name_this_machine_is_answered_and_nothing_else() -> None:
    app = App()
    for served in ("127.0.0.1", "localhost", "::1"):
        access = access_to(app, host=served)
        for name in LOOPBACK:
            with case(served, name):
                assert (await ask(access, headers=[("Host", f"{name}:{PORT}")])).status == 200
        for name, port in product(FOREIGN, (f":{PORT}", "")):
            with case(served, name, port):
                answer = await ask(access, headers=[("Host", name + port)])
                assert (answer.status, answer.code) == (403, "forbidden_host")
    assert len(app.bodies) == 3 * len(LOOPBACK)


async def test_the_port_of_the_host_must_be_the_one_that_is_served() -> None:
    access, web = access_to(App()), access_to(App(), port=80)
    for name, port in product(
        LOOPBACK, ("", ":", ":80", ":8788", ":08787x", ":-1", ":878\uff17", ":+8787")
    ):
        with case(name, port):
            header = (name + port).encode().decode("latin-1")
            assert (await ask(access, headers=[("Host", header)])).status == 403
            # Port 80 is left out by browsers.
            status = (await ask(web, headers=[("Host", header)])).status
            assert status == (200 if port in ("", ":80") else 403)


async def test_one_host_is_named_exactly_once() -> None:
    access = access_to(App())
    for headers in [], [("Host", HOST), ("Host", HOST)], [("Host", HOST), ("Host", "evil.example")]:
        assert (await ask(access, headers=headers)).status == 403


async def test_the_served_host_is_answered_too() -> None:
    for served, name in (
        ("192.168.1.5", "192.168.1.5"),
        ("box.lan", "BOX.lan."),
        ("Box.LAN", "box.lan"),
        ("fe80::1", "[fe80::1]"),
        ("192.168.1.5", "localhost"),
    ):
        with case(served, name):
            access = access_to(App(), host=served)
            assert (await ask(access, headers=[("Host", f"{name}:{PORT}")])).status == 200
            assert (await ask(access, headers=[("Host", f"evil.example:{PORT}")])).status == 403
            assert (await ask(access, headers=[("Host", f"10.0.0.1:{PORT}")])).status == 403


async def test_a_server_on_all_addresses_is_asked_by_any_address_or_its_own_name() -> None:
    for served in "0.0.0.0", "::":
        access = access_to(App(), host=served)
        for name in ("10.0.0.1", "[fe80::1]", "0.0.0.0", "localhost", socket.gethostname()):
            with case(served, name):
                assert (await ask(access, headers=[("Host", f"{name}:{PORT}")])).status == 200
        for name in ("evil.example", "10.0.0.1.evil.example", "10.0.0.256"):
            with case(served, name):
                assert (await ask(access, headers=[("Host", f"{name}:{PORT}")])).status == 403


def test_loopback_is_what_other_machines_do_not_reach() -> None:
    hosts = ["127.0.0.1", "127.9.9.9", "::1", "localhost", "LOCALHOST"]
    assert [host for host in hosts if not is_loopback(host)] == []
    hosts = ["0.0.0.0", "::", "", "10.0.0.1", "box.lan", "localhost.evil.example", "fe80::1"]
    assert [host for host in hosts if is_loopback(host)] == []


# --- origins

OTHER_ORIGINS = [
    "null",
    "",
    "http://127.0.0.1",
    "http://127.0.0.1:8788",
    "https://127.0.0.1:8787",
    "http://localhost:8787",
    "http://127.0.0.1:8787.evil.example",
    "http://127.0.0.1:8787/",
    "http://evil.example:8787",
    "http://[::1]:8787",
    "127.0.0.1:8787",
    "file://",
]
WRITES = ["POST", "PUT", "DELETE", "PATCH"]


async def test_only_the_servers_own_pages_and_no_other_page_may_write() -> None:
    app = App()
    access = access_to(app)
    for method, path in product(WRITES, ("/api/v1/agent", "/-/login")):
        for origin in OTHER_ORIGINS:
            with case(method, path, origin):
                headers = [("Host", HOST), ("Origin", origin), JSON]
                answer = await ask(access, method, path, headers)
                assert (answer.status, answer.code) == (403, "forbidden_origin")
        # A second header may not hide the first.
        headers = [("Host", HOST), ("Origin", f"http://{HOST}"), ("Origin", "http://e.example")]
        assert (await ask(access, method, path, headers)).status == 403
    assert app.bodies == []
    for method, host in product(WRITES, ("127.0.0.1", "localhost", "[::1]", "LOCALHOST")):
        with case(method, host):
            headers = [("Host", f"{host}:{PORT}"), ("Origin", f"http://{host.lower()}:{PORT}")]
            assert (await ask(access, method, "/api/v1/agent", headers)).status == 200


async def test_reading_and_clients_that_name_no_origin_pass() -> None:
    access = access_to(App())
    for method, path in product(WRITES, ("/api/v1/agent", "/api/v1/bulk")):
        assert (await ask(access, method, path)).status == 200
    for method in "GET", "HEAD", "OPTIONS":
        headers = [("Host", HOST), ("Origin", "https://evil.example")]
        assert (await ask(access, method, "/api/v1/agent", headers)).status == 200


async def test_a_private_call_that_writes_is_json() -> None:
    access = access_to(App())
    forms = [
        "",
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
    ]
    for kind in [*forms, "application/jsonx", "text/plain; application/json"]:
        with case(kind):
            answer = await ask(access, "POST", "/-/x", [("Host", HOST), ("Content-Type", kind)])
            assert (answer.status, answer.code) == (415, "unsupported_media_type")
    for kind in "application/json", "Application/JSON ; charset=utf-8":
        headers = [("Host", HOST), ("Content-Type", kind)]
        assert (await ask(access, "POST", "/-/x", headers)).status == 200
    assert (await ask(access, "GET", "/-/x")).status == 200


# --- the token

OPEN = [
    "/",
    "/agents",
    "/cli/connect",
    "/runs/01m8mrs7528sfp82jrtegnsebwg2k6ve",
    "/-/static/a/b.js",
]
SECRET = [
    "/api/v1/ping",
    "/api/v1/agent",
    "/-/runs",
    "/-/runs/1",
    "/-/events",
    "/-/about",
    "/spans/1",
    "/runs/1/2",
    "/runs/",
    "/agents/1",
    "//api/v1/agent",
    "/-/login/x",
    "/-/staticx",
    "/favicon.ico",
    "/\n",
]
WRONG = [
    "",
    "Bearer",
    "Bearer ",
    f"Bearer {TOKEN}x",
    f"Bearer {TOKEN[:-1]}",
    f"bearer {TOKEN}",
    TOKEN,
]


async def logged_in(access: Access, token: str = TOKEN) -> Answer:
    body = json.dumps({"token": token}).encode()
    return await ask(access, "POST", "/-/login", [("Host", HOST), JSON], [body])


async def test_all_but_the_empty_pages_asks_for_the_token() -> None:
    access = access_to(App(), token=TOKEN)
    for path in OPEN:
        with case(path):
            assert (await ask(access, path=path)).status == 200
    for path in SECRET:
        for authorization in WRONG:
            with case(path, authorization):
                headers = [("Host", HOST), ("Authorization", authorization)]
                answer = await ask(access, path=path, headers=headers)
                assert (answer.status, answer.code) == (401, "bad_authtoken")
                assert answer.headers["www-authenticate"] == "Bearer"
                assert TOKEN.encode() not in answer.body
        headers = [("Host", HOST), ("Authorization", f"Bearer {TOKEN}")]
        assert (await ask(access, path=path, headers=headers)).status == 200


async def test_a_browser_signs_in_and_sends_a_cookie_that_no_script_reads() -> None:
    app = App()
    access = access_to(app, token=TOKEN)
    answer = await logged_in(access)
    assert (answer.status, answer.body) == (204, b"")
    cookie, *attributes = answer.headers["set-cookie"].split("; ")
    assert {name.lower() for name in attributes} == {"httponly", "path=/", "samesite=strict"}
    # The token itself is not in it: browsers send it to the other ports of the host.
    assert "horse" not in cookie
    for path in SECRET:
        answer = await ask(access, path=path, headers=[("Host", HOST), ("Cookie", cookie)])
        assert answer.status == 200
        for wrong in (f"{cookie}0", cookie[:-1], f"prefactor_token={TOKEN}", "prefactor_token="):
            answer = await ask(access, path=path, headers=[("Host", HOST), ("Cookie", wrong)])
            assert answer.status == 401
    assert len(app.bodies) == len(SECRET)


async def test_the_api_itself_checks_the_tokens_that_it_made() -> None:
    async with open_local_prefactor(":memory:", api_token=TOKEN) as local:
        access = access_to(local, token=TOKEN)
        cookie = (await logged_in(access)).headers["set-cookie"].partition(";")[0]
        body = [b'{"details": {"token_scope": "account"}}']
        headers = [("Host", HOST), ("Cookie", cookie)]
        answer = await ask(access, "POST", "/api/v1/api_token", headers, body)
        made = json.loads(answer.body)["token"]
        for token, path, status in (
            (made, "/api/v1/agent", 200),
            (f"{made}x", "/api/v1/agent", 401),
            ("pflocal_", "/api/v1/agent", 401),
            (made, "/-/runs", 401),
        ):
            with case(token, path):
                headers = [("Host", HOST), ("Authorization", f"Bearer {token}")]
                assert (await ask(access, path=path, headers=headers)).status == status


async def test_a_wrong_login_sets_no_cookie() -> None:
    access = access_to(App(), token=TOKEN)
    for token in "", "wrong", TOKEN + " ", "\u217c":
        answer = await logged_in(access, token)
        assert (answer.status, answer.code) == (401, "bad_authtoken")
        assert "set-cookie" not in answer.headers
    for body, status in ((b"[", 400), (b"{}", 422), (b'{"token": 1}', 422), (b"", 422)):
        headers = [("Host", HOST), JSON]
        assert (await ask(access, "POST", "/-/login", headers, [body])).status == status
    headers = [("Host", HOST), JSON, ("Origin", "http://evil.example")]
    assert (await ask(access, "POST", "/-/login", headers, [b"{}"])).status == 403


async def test_without_a_token_every_login_is_right_and_needs_no_cookie() -> None:
    answer = await logged_in(access_to(App()), "any")
    assert answer.status == 204
    assert "set-cookie" not in answer.headers


# --- bodies


async def test_a_body_reaches_the_app_whole_up_to_the_limit() -> None:
    app = App()
    access = access_to(app, max_body_bytes=10)
    for body in [], [b"0123456789"], [b"01234", b"", b"56789"], [b"", b""]:
        parts = body or [b""]
        assert (await ask(access, "POST", "/api/v1/bulk", body=parts)).status == 200
        assert app.bodies.pop() == b"".join(parts)
        # What comes after the body is the client's own: that it left.
        assert app.after.pop() == {"type": "http.disconnect"}


async def test_a_body_beyond_the_limit_is_counted_and_not_kept() -> None:
    app = App()
    access = access_to(app, max_body_bytes=10)
    for path, declared in product(("/api/v1/bulk", "/-/login"), (None, "1", "11", "-1")):
        headers = [("Host", HOST), JSON]
        if declared is not None:
            headers.append(("Content-Length", declared))
        answer = await ask(access, "POST", path, headers, [b"x" * 6, b"x" * 5, b"x" * 100])
        assert (answer.status, answer.code) == (413, "payload_too_large")
        assert "111 bytes, at most 10" in answer.body.decode()
    assert app.bodies == []


@pytest.mark.virtual_time
async def test_a_body_that_does_not_arrive_in_time_is_given_up() -> None:
    app = App()
    began = anyio.current_time()
    answer = await ask(access_to(app, body_timeout=7), "POST", "/api/v1/bulk", body=[])
    assert (answer.status, answer.code) == (408, "request_timeout")
    assert anyio.current_time() - began == pytest.approx(7)
    # The same for a request that is refused anyway.
    answer = await ask(access_to(app, body_timeout=7), "POST", "/api/v1/bulk", [], [])
    assert answer.status == 408
    assert app.bodies == []


async def test_a_client_that_leaves_within_its_body_gets_no_answer() -> None:
    app = App()
    answer = await ask(access_to(app), "POST", "/api/v1/bulk", body=[b"{"], leaves=True)
    assert (answer.status, app.bodies) == (0, [])


# --- headers


async def test_all_but_the_api_has_the_headers_that_keep_a_page_to_itself() -> None:
    access = access_to(App(), token=TOKEN)
    for path, host in product([*OPEN, "/-/runs"], (HOST, "evil.example")):
        with case(path, host):
            answer = await ask(access, path=path, headers=[("Host", host)])
            policy = answer.headers["content-security-policy"].split("; ")
            assert "default-src 'none'" in policy
            assert "require-trusted-types-for 'script'" in policy
            assert not any("unsafe" in rule or "*" in rule for rule in policy)
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["referrer-policy"] == "no-referrer"
    assert "content-security-policy" not in (await ask(access, path="/api/v1/agent")).headers
