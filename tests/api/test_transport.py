"""Connections to the API: names, proxies, certificates, and the cost of opening a client."""

from __future__ import annotations

import gc
import json
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import pytest
from anyio.streams.tls import TLSStream
from support.cases import case

from prefactor_core import PrefactorValueError
from prefactor_core.api.client import ApiClient
from prefactor_core.api.proxies import Proxy, proxy_for
from prefactor_core.config import HttpClientConfig
from prefactor_core.exceptions import PrefactorUnreachableError
from prefactor_core.operations import identifiers

TOKEN = "pf/secret+token-0123456789=="
WAIT = 60
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")

BEGIN = """
import asyncio, json, socket, ssl, sys, threading, time
import anyio
from prefactor_core import open_prefactor, open_prefactor_sync

AGENT = dict(agent_id="a", agent_version={"name": "A", "external_identifier": "1"},
             agent_schema_version={"external_identifier": "1", "span_type_schemas": []})
"""

HANGING_RESOLVER = """
lookups = 0
def hang(*args, **options):
    global lookups
    lookups += 1
    threading.Event().wait(600)
socket.getaddrinfo = hang

OPTIONS = dict(api_url="http://api.test", api_token="t", registration_timeout=0.5,
               drain_timeout=0.5, http_config=None)
del OPTIONS["http_config"]

async def main():
    async with open_prefactor(**OPTIONS) as client:
        async with client.agent_instance(**AGENT):
            pass
    print("left", flush=True)

def main_sync():
    with open_prefactor_sync(**OPTIONS) as client:
        with client.agent_instance(**AGENT):
            pass
    print("left", flush=True)
"""


def run(code: str, **environment: str) -> list[str]:
    """The lines that a Python program prints; it ends within two minutes."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("PREFACTOR_") and name.lower() not in PROXIES
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", BEGIN + code],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[:-1]


@pytest.fixture(autouse=True)
def no_proxies_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)


def make_api(api_url: str, **options: Any) -> ApiClient:
    return ApiClient(HttpClientConfig(api_url=api_url, api_token=TOKEN, **options), lambda: "a@1")


@asynccontextmanager
async def open_server(answer: bytes) -> AsyncGenerator[tuple[int, list[bytes]]]:
    """A TCP server that sends ``answer`` to every request: its port, and the requests."""
    got: list[bytes] = []

    async def serve(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            got.append(await stream.receive())
            await stream.send(answer)

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, serve)
        with anyio.fail_after(WAIT):
            yield listener.extra(anyio.abc.SocketAttribute.local_port), got
        group.cancel_scope.cancel()


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"


# Host names


@pytest.mark.parametrize(
    "call",
    ["asyncio.run(main())", "anyio.run(main, backend='trio')", "main_sync()"],
    ids=["asyncio", "trio", "sync"],
)
def test_a_resolver_that_hangs_holds_up_no_exit(call: str) -> None:
    # The resolver hangs for ten minutes; the program is killed after two.
    assert run(f"{HANGING_RESOLVER}\n{call}\nprint(lookups)") == ["left", "1"]


def test_requests_that_need_the_same_name_share_one_lookup() -> None:
    code = """
from prefactor_core.api.client import ApiClient
from prefactor_core.config import HttpClientConfig
from prefactor_core.exceptions import PrefactorUnreachableError

async def ask(api):
    try:
        await api.ping()
    except PrefactorUnreachableError:
        pass

async def main():
    config = HttpClientConfig("http://api.test", "t", request_timeout=0.2)
    async with ApiClient(config, lambda: "a@1") as api:
        for _ in range(3):
            async with anyio.create_task_group() as group:
                for _ in range(20):
                    group.start_soon(ask, api)
    names = [thread.name for thread in threading.enumerate()]
    print(lookups, names.count("prefactor-resolve api.test"))
"""
    assert run(f"{HANGING_RESOLVER}\n{code}\nasyncio.run(main())") == ["1 1"]


def test_a_child_that_was_forked_during_a_lookup_looks_up_for_itself() -> None:
    code = """
import os
from prefactor_core.api.resolver import resolve
original = socket.getaddrinfo

async def child():
    socket.getaddrinfo = original
    print(await resolve("localhost", 80) != [], flush=True)

async def main():
    with anyio.move_on_after(0.1):
        await resolve("localhost", 80)

anyio.run(main)
if os.fork() == 0:
    anyio.run(child)
    os._exit(0)
assert os.wait()[1] == 0
"""
    assert run(
        HANGING_RESOLVER.replace("socket.getaddrinfo = hang", "")
        + code.replace("anyio.run(main)", "socket.getaddrinfo = hang\nanyio.run(main)")
    ) == ["True"]


async def test_a_name_is_reached_by_the_address_that_answers() -> None:
    # "localhost" may be ::1 first, where nothing listens here.
    async with open_server(OK) as (port, got), make_api(f"http://localhost:{port}") as api:
        await api.ping()
    assert len(got) == 1


async def test_a_name_without_an_address_is_an_unreachable_api() -> None:
    async with make_api("http://nowhere.invalid", request_timeout=WAIT) as api:
        with pytest.raises(PrefactorUnreachableError, match=r"nowhere\.invalid has no address"):
            await api.ping()


async def test_a_cancelled_tls_handshake_leaves_no_connection_open() -> None:
    hung_up = anyio.Event()

    async def serve(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await stream.receive()  # the client's hello
            asking.cancel()
            with suppress(anyio.EndOfStream):
                await stream.receive()
            hung_up.set()

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    with anyio.fail_after(WAIT):
        async with (
            listener,
            make_api(f"https://127.0.0.1:{port}") as api,
            anyio.create_task_group() as group,
        ):
            group.start_soon(listener.serve, serve)
            with anyio.CancelScope() as asking:
                await api.ping()
            await hung_up.wait()
            group.cancel_scope.cancel()


SELF_SIGNED = Path(__file__).parents[1] / "support" / "self_signed.pem"
"""A certificate and its key, made for the test below."""


async def test_a_request_cancelled_while_it_is_written_leaves_nothing_to_the_collector() -> None:
    async def serve(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await stream.receive()
            request.cancel()  # the rest waits to be written
            await anyio.sleep_forever()

    request = anyio.CancelScope()
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, serve)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        async with make_api(f"http://127.0.0.1:{port}") as api:
            with anyio.fail_after(WAIT), request:
                await api.terminate_agent_instance(identifiers.generate(0), 30_000_000 * "x")
        assert request.cancelled_caught
        group.cancel_scope.cancel()
    gc.collect()  # a warning is an error


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", r"no TLS connection: \[SSL: .*(?i:wrong.version)"),
        (bytes([0x15, 3, 3, 0, 2, 2, 0x28]), r"no TLS connection: \[SSL: .*(?i:handshake failure)"),
        (b"", "no TLS connection: the server has hung up"),
        (bytes([0x16, 3, 3, 0, 100]), "no TLS connection: the server has hung up"),
        (None, "no TLS connection: .*CERTIFICATE_VERIFY_FAILED"),
    ],
    ids=["speaks http", "refuses", "hangs up", "breaks off", "self-signed"],
)
async def test_a_failed_tls_handshake_says_why(said: bytes | None, reason: str) -> None:
    async def serve(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            if said is None:
                with suppress(anyio.BrokenResourceError, anyio.EndOfStream, ssl.SSLError):
                    await TLSStream.wrap(stream, server_side=True, ssl_context=context)
            else:
                await stream.receive()  # the client's hello
                await stream.send(said)

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(SELF_SIGNED)
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    with anyio.fail_after(WAIT):
        async with (
            listener,
            make_api(f"https://127.0.0.1:{port}") as api,
            anyio.create_task_group() as group,
        ):
            group.start_soon(listener.serve, serve)
            with pytest.raises(PrefactorUnreachableError, match=reason):
                await api.ping()
            group.cancel_scope.cancel()


async def test_each_address_is_tried_once_if_nothing_listens() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        async with make_api(f"http://localhost:{bound.getsockname()[1]}") as api:
            with anyio.fail_after(WAIT), pytest.raises(PrefactorUnreachableError):
                await api.ping()


# Proxies


NAMED_PROXIES = [
    ({}, "http://api.test", None),
    ({"HTTP_PROXY": "http://p:81"}, "http://api.test", Proxy("http", "p", 81)),
    ({"http_proxy": "p:81"}, "http://api.test", Proxy("http", "p", 81)),
    ({"HTTP_PROXY": "http://p:81"}, "https://api.test", None),
    ({"HTTPS_PROXY": "http://p"}, "https://api.test", Proxy("http", "p", 80)),
    ({"HTTPS_PROXY": "https://p"}, "https://api.test", Proxy("https", "p", 443)),
    ({"ALL_PROXY": "http://[::1]:9"}, "https://api.test", Proxy("http", "::1", 9)),
    (
        {"ALL_PROXY": "http://q", "HTTPS_PROXY": "http://u:p%40ss@p:81"},
        "https://api.test",
        Proxy("http", "p", 81, "u", "p@ss"),
    ),
    ({"HTTP_PROXY": "http://p", "NO_PROXY": "api.test"}, "http://api.test", None),
    ({"HTTP_PROXY": "http://p", "NO_PROXY": ".test"}, "http://api.test:80", None),
    ({"HTTP_PROXY": "http://p", "NO_PROXY": "*"}, "http://api.test", None),
    ({"HTTP_PROXY": "http://p", "NO_PROXY": "::1"}, "http://[::1]:80", None),
    ({"HTTP_PROXY": "socks://p", "NO_PROXY": "api.test"}, "http://api.test", None),
    (
        {"HTTP_PROXY": "http://p", "NO_PROXY": "[::1,http://,\x01,:,//, ,::ff/99,a:b:c"},
        "http://api.test",
        Proxy("http", "p", 80),
    ),
]


def test_the_environment_names_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for environment, url, expected in NAMED_PROXIES:
        with case(environment, url, expected), monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            assert proxy_for(url) == expected


WRONG_VARIABLES = [
    ("ALL_PROXY", "socks://u:qqqq@p:1080", "of a kind that is not supported"),
    ("all_proxy", "socks4://u:qqqq@p:1080", "of a kind that is not supported"),
    ("ALL_PROXY", "socks5://u:qqqq@p:1080", "socksio"),
    ("HTTPS_PROXY", "ftp://u:qqqq@p", "of a kind that is not supported"),
    ("HTTPS_PROXY", "http://u:qqqq@p:port", "no address of a proxy"),
    ("HTTPS_PROXY", "http://u:qq#qq@p:80", "no address of a proxy"),
    ("HTTPS_PROXY", "http://u:qqqq@", "no address of a proxy"),
    ("HTTPS_PROXY", "http://[u:qqqq@p", "no address of a proxy"),
    ("https_proxy", "http://p p:80", "no address of a proxy"),
    ("https_proxy", "http://p:99999", "no address of a proxy"),
    ("SSL_CERT_FILE", "/nowhere/ca.pem", "no certificates can be read"),
    ("SSL_CERT_DIR", "/nowhere", "no such folder"),
    ("SSL_CERT_FILE", __file__, "no certificates can be read"),
]


async def test_what_the_environment_says_wrongly_is_an_error_that_names_the_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value, message in WRONG_VARIABLES:
        with case(name, value, message), monkeypatch.context() as patch:
            patch.setenv(name, value)
            with (
                anyio.fail_after(WAIT),
                pytest.raises(PrefactorValueError, match=message) as caught,
            ):
                async with make_api("https://api.test"):
                    pytest.fail("it must not open")
            assert name in str(caught.value)
            assert "qq" not in str(caught.value)
            assert caught.value.__cause__ is None
            assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize("name", ["ALL_PROXY", "SSL_CERT_FILE", "NO_PROXY", "HTTP_PROXY"])
async def test_an_api_inside_the_process_looks_at_none_of_them(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from prefactor_core import open_prefactor

    monkeypatch.setenv(name, "socks://[:")
    with anyio.fail_after(WAIT):
        async with open_prefactor(api_url="local::memory:") as client:
            await client.flush()


async def test_a_request_goes_by_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_server(OK) as (port, got):
        monkeypatch.setenv("HTTP_PROXY", f"http://us%65r:p%40ss@127.0.0.1:{port}")
        async with make_api("http://api.test") as api:
            await api.ping()
    assert got[0].startswith(b"GET http://api.test/api/v1/ping HTTP/1.1\r\n")
    assert b"\r\nProxy-Authorization: Basic dXNlcjpwQHNz\r\n" in got[0]


async def test_a_proxy_that_lets_nothing_through_is_an_unreachable_api(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer = b"HTTP/1.1 407 Log in, %b\r\nContent-Length: 0\r\n\r\n" % TOKEN.encode()
    async with open_server(answer) as (port, got):
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
        async with make_api("https://api.test") as api:
            with pytest.raises(PrefactorUnreachableError, match="407 Log in") as caught:
                await api.ping()
    assert got[0].startswith(b"CONNECT api.test:443 HTTP/1.1\r\n")
    assert TOKEN not in str(caught.value)


# The cost of opening


def test_clients_that_are_opened_at_once_share_one_tls_context() -> None:
    code = """
made = []
original = ssl.SSLContext.load_verify_locations
def load(*args, **options):  # once for each context, whichever version of httpx makes it
    made.append(threading.current_thread() is threading.main_thread())
    return original(*args, **options)
ssl.SSLContext.load_verify_locations = load

async def opened():
    async with open_prefactor(api_url="https://127.0.0.1:1", api_token="t"):
        pass

async def main():
    async with anyio.create_task_group() as group:
        for _ in range(200):
            group.start_soon(opened)
    print(json.dumps(made))
"""
    for backend in ("asyncio", "trio"):
        (line,) = run(f"{code}\nanyio.run(main, backend={backend!r})")
        # One, and not in the loop's thread.
        assert json.loads(line) == [False]


@pytest.mark.parametrize("api_url", ["https://127.0.0.1:1", "http://127.0.0.1:1", "local::memory:"])
def test_what_an_open_client_needs_is_imported_in_another_thread(api_url: str) -> None:
    code = f"""
class Imports:
    def find_spec(self, name, path=None, target=None):
        if threading.current_thread() is threading.main_thread():
            in_loop.append(name)
        else:
            elsewhere.add(name)

in_loop, elsewhere = [], set()
sys.meta_path.insert(0, Imports())
contexts = []
original = ssl.SSLContext.load_verify_locations
ssl.SSLContext.load_verify_locations = lambda *a, **o: contexts.append(1) or original(*a, **o)

async def main():
    client = open_prefactor(api_url={api_url!r}, api_token="t")
    in_loop.clear()
    async with client:
        opening = list(in_loop)
    print(json.dumps([opening, "httpx" in elsewhere, "httpcore" in elsewhere, len(contexts)]))

anyio.run(main)
"""
    (line,) = run(code)
    in_loop, has_httpx, has_httpcore, contexts = json.loads(line)
    assert in_loop == []
    assert has_httpx
    assert has_httpcore or api_url.startswith("local:")
    assert contexts == api_url.startswith("https:")


def test_certificates_that_change_make_a_new_context(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import certifi

    from prefactor_core.api.tls import tls_context

    file = tmp_path / "ca.pem"
    file.write_bytes(Path(certifi.where()).read_bytes())
    plain = tls_context()
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    first = tls_context()
    assert first is not plain
    assert tls_context() is first
    file.write_bytes(file.read_bytes() + b"\n")
    assert tls_context() is not first
    monkeypatch.delenv("SSL_CERT_FILE")
    assert tls_context() is plain
