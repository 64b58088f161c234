"""Secrets stay in the program: they are not stored, logged, shown or printed."""

from __future__ import annotations

import io
import logging
import sys
import traceback
from base64 import b64encode
from collections import UserDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import anyio
import attrs
import httpx
import msgspec
import pydantic
import pytest
from rich.console import Console
from rich.pretty import pretty_repr
from rich.traceback import Traceback

from prefactor_core import (
    HttpClientConfig,
    PrefactorCoreConfig,
    PrefactorCoreError,
    QueueConfig,
    SchemaRegistry,
    open_prefactor,
    open_prefactor_sync,
    redact_credentials,
    traced,
)
from prefactor_core.local import open_local_prefactor

TOKEN = "token-of-the-api-c0ffee-" + "x" * 60
AGENT: dict[str, Any] = {"agent_id": "secretive", "agent_version": {"name": "Secretive"}}

NAMES = [
    *("password", "DB_PASSWORD", "apiKey", "OPENAI_API_KEY", "X-Api-Key", "Authorization"),
    *("Cookie", "access_token", "refreshToken", "GITHUB_TOKEN", "NPM_TOKEN", "client_secret"),
    *("aws_secret_access_key", "private_key", "DATABASE_URL", "connectionString", "jwt"),
    *("Ocp-Apim-Subscription-Key", "session_token", "webhookSecret", "X-Amz-Signature"),
]
SECRETS = {name: f"secret-number-{n:02}-c0ffee" for n, name in enumerate(NAMES)}
assert len(SECRETS) > 20


def token_config(path: str = "x") -> HttpClientConfig:
    return HttpClientConfig(api_url=f"local:{path}", api_token=TOKEN)


def core_config() -> PrefactorCoreConfig:
    return PrefactorCoreConfig(http_config=token_config())


# What hides a secret under a name that says nothing of it.


@dataclass
class HidingDataclass:
    shown: str
    inner: str = field(default=SECRETS["password"], repr=False)


@attrs.define
class HidingAttrs:
    shown: str
    inner: str = attrs.field(default=SECRETS["password"], repr=False)


class HidingModel(pydantic.BaseModel):
    shown: str
    inner: str = pydantic.Field(SECRETS["password"], repr=False)
    other: pydantic.SecretStr = pydantic.SecretStr(SECRETS["jwt"])


class Around(pydantic.BaseModel):
    models: list[HidingModel]


# What has secrets under their names.


class Login(msgspec.Struct):
    user: str
    password: str = SECRETS["password"]
    key: str = msgspec.field(name="apiKey", default=SECRETS["apiKey"])


@dataclass
class LoginDataclass:
    user: str
    password: str = SECRETS["password"]
    access_token: str = SECRETS["access_token"]


class LoginModel(pydantic.BaseModel):
    user: str
    password: str = SECRETS["password"]


@attrs.define
class LoginAttrs:
    user: str
    client_secret: str = SECRETS["client_secret"]


BYTES = {name.encode(): value.encode() for name, value in SECRETS.items()}

PAYLOADS: dict[str, Callable[[], object]] = {
    "flat": lambda: SECRETS,
    "nested": lambda: {"a": [{"b": ({"c": SECRETS},)}]},
    "a mapping": lambda: {"environ": UserDict(SECRETS), "more": MappingProxyType(SECRETS)},
    "beside what JSON has not": lambda: {"o": object(), "a": SECRETS, "s": {1, 2}},
    "beside a circle": lambda: (lambda ring: ring.update(ring=ring, a=SECRETS) or ring)({}),
    "bytes as keys": lambda: BYTES,
    "bytes as keys, nested": lambda: {"a": [BYTES, {b"inner": BYTES}]},
    "bytes as keys with other values": lambda: {"a": {n.encode(): [v] for n, v in SECRETS.items()}},
    "pairs in tuples": lambda: {"headers": tuple(SECRETS.items())},
    "pairs in lists": lambda: {"headers": [list(pair) for pair in SECRETS.items()]},
    "a pair": lambda: {"header": ("Authorization", SECRETS["Authorization"])},
    "pairs of bytes": lambda: {"headers": list(BYTES.items())},
    "headers of httpx": lambda: {"headers": httpx.Headers(SECRETS)},
    "raw headers of httpx": lambda: {"headers": httpx.Headers(SECRETS).raw},
    "headers as HAR has them": lambda: {
        "headers": [{"name": name, "value": value} for name, value in SECRETS.items()],
        "attributes": [{"key": name, "value": {"is": v}} for name, v in SECRETS.items()],
    },
    "a struct": lambda: Login("Ada"),
    "a struct inside": lambda: {"logins": [Login("Ada")]},
    "a dataclass": lambda: LoginDataclass("Ada"),
    "a dataclass inside": lambda: {"logins": [LoginDataclass("Ada")]},
    "a model": lambda: LoginModel(user="Ada"),
    "a model inside": lambda: {"logins": [LoginModel(user="Ada")]},
    "an object of attrs": lambda: {"logins": [LoginAttrs("Ada")]},
    "a dataclass that hides it": lambda: {"a": HidingDataclass("Ada")},
    "a dataclass that hides it, alone": lambda: HidingDataclass("Ada"),
    "an object of attrs that hides it": lambda: {"a": HidingAttrs("Ada")},
    "an object of attrs that hides it, alone": lambda: HidingAttrs("Ada"),
    "a model that hides it": lambda: {"a": HidingModel(shown="Ada")},
    "a model that hides it, alone": lambda: HidingModel(shown="Ada"),
    "a model around one that hides it": lambda: Around(models=[HidingModel(shown="Ada")]),
    "the configuration": lambda: {"config": core_config()},
    "the configuration, alone": core_config,
    "the configuration of the API": lambda: {"a": [token_config()]},
    "the configuration of the API, alone": token_config,
    "the token": lambda: {"a": token_config().api_token, "b": [token_config().api_token]},
    "the token as a key": lambda: {"a": {token_config().api_token: 1}},
    "what is said of the configuration": lambda: {"a": f"{core_config()} {token_config()!r}"},
}


def spellings() -> list[bytes]:
    """The secrets, as text and as what bytes become in JSON."""
    texts = [text.encode() for text in (TOKEN, *SECRETS.values())]
    return [*texts, *map(b64encode, texts)]


def seen_in(data: bytes) -> list[bytes]:
    return [each for each in spellings() if each in data]


def stored(path: Path) -> bytes:
    """All that is in the folder of the database: the file, its log and its index."""
    files = list(path.parent.glob(f"{path.name}*"))
    return b"".join(file.read_bytes() for file in files)


def make_registry() -> SchemaRegistry:
    registry = SchemaRegistry()
    registry.register("agent:tool", {"type": "object"})
    registry.register_quality_schema("score", {"type": "object"})
    return registry


def make_config(path: Path, **options: Any) -> PrefactorCoreConfig:
    return PrefactorCoreConfig(
        http_config=token_config(str(path)), schema_registry=make_registry(), **options
    )


@pytest.mark.parametrize("kind", PAYLOADS)
async def test_no_secret_of_a_payload_is_stored(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    path = tmp_path / "runs.db"
    make: Any = PAYLOADS[kind]
    with anyio.fail_after(20):
        async with open_prefactor(make_config(path)) as client:
            async with client.agent_instance(**AGENT) as instance:

                @traced("agent:tool")
                def work(value: object, here: str) -> object:
                    return value

                async with instance.span("agent:tool", payload=make()) as span:
                    span.set_result(make())
                async with instance.span("agent:tool") as span:
                    await span.start(make())
                    await span.fail(make())
                work(make(), here="marker")
                await instance.record_quality("score", {"of": make()})
                await client.flush()
                assert seen_in(stored(path)) == []
            statistics = client.statistics()
    assert seen_in(stored(path)) == []
    assert b"marker" in stored(path)
    assert statistics.lost == 0
    assert seen_in(f"{caplog.text} {statistics}".encode()) == []


# Without a name by which it is known, and without redaction: our own token is in none.
OF_THE_TOKEN = [kind for kind in PAYLOADS if "configuration" in kind or "token" in kind]


@pytest.mark.parametrize("redact", [None, redact_credentials(None)], ids=["none", "credentials"])
@pytest.mark.parametrize("kind", OF_THE_TOKEN)
async def test_the_token_is_not_stored_whatever_redact_is(
    kind: str, redact: Any, tmp_path: Path
) -> None:
    path = tmp_path / "runs.db"
    with anyio.fail_after(20):
        async with (
            open_prefactor(make_config(path, redact=redact)) as client,
            client.agent_instance(**AGENT) as instance,
        ):
            payload: Any = PAYLOADS[kind]()
            async with instance.span("agent:tool", payload=payload) as span:
                span.set_result(payload)
    assert seen_in(stored(path)) == []


async def test_without_redaction_secrets_are_recorded_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    with anyio.fail_after(20):
        async with (
            open_prefactor(make_config(path, redact=None)) as client,
            client.agent_instance(**AGENT) as instance,
        ):
            async with instance.span("agent:tool", payload=SECRETS):
                pass
    assert len(seen_in(stored(path))) >= len(SECRETS)


async def test_no_secret_is_in_an_error_a_log_a_repr_or_on_the_command_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    path = tmp_path / "runs.db"
    config = make_config(path)
    shown: list[object] = [config, config.http_config]
    with anyio.fail_after(20):
        async with open_prefactor(config) as client:
            async with client.agent_instance(**AGENT) as instance:
                with pytest.raises(ConnectionError):
                    async with instance.span("agent:tool", payload=SECRETS) as span:
                        shown += [span, instance]
                        raise ConnectionError(f"no answer with {config}, {config.http_config!r}")
                with pytest.raises(PrefactorCoreError) as caught:
                    async with instance.span("agent:tool", SECRETS):  # type: ignore[call-overload]
                        pass
                shown.append(caught.value)
            shown += [client, client.statistics()]
    texts = [text for each in shown for text in (repr(each), str(each), pretty_repr(each))]
    command = ["show", "secretive", "--api-url", f"local:{path}"]
    with anyio.fail_after(30):
        process = await anyio.run_process([sys.executable, "-m", "prefactor_core", *command])
    printed = process.stdout
    assert b"agent:tool  failed" in printed
    assert seen_in(stored(path) + printed + "\n".join([*texts, caplog.text]).encode()) == []


# Tracebacks with locals.


@dataclass
class Official:
    """What users of another package have in their hands; it hides nothing."""

    api_url: str = "https://prefactor.invalid"
    api_token: str = TOKEN
    request_timeout: float = 5.0


URL = "https://prefactor.invalid"
WRONG: dict[str, Callable[[], object]] = {
    "open_prefactor": lambda: open_prefactor(api_url=URL, api_token=TOKEN, drain_timeout=-1),
    "an option": lambda: open_prefactor(api_url=URL, api_token=TOKEN, none=1),  # type: ignore[arg-type]
    "open_prefactor_sync": lambda: open_prefactor_sync(api_url="x", api_token=TOKEN),
    "beside a config": lambda: open_prefactor(core_config(), api_token=TOKEN),
    "the environment": lambda: open_prefactor(api_url="x"),
    "the environment's options": lambda: open_prefactor(api_url=URL, max_payload_bytes=1),
    "from_env": lambda: PrefactorCoreConfig.from_env(api_url="x", api_token=TOKEN),
    "HttpClientConfig": lambda: HttpClientConfig(api_url=URL, api_token=TOKEN, max_retries=-1),
    "a token that is none": lambda: HttpClientConfig(api_url=URL, api_token=f"{TOKEN}\n{TOKEN}"),
    "a field": lambda: PrefactorCoreConfig(
        http_config={"api_url": URL, "api_token": TOKEN, "timeout": 1}
    ),
    "a mapping": lambda: PrefactorCoreConfig(http_config={"api_token": TOKEN}),
    "a mapping with a wrong value": lambda: PrefactorCoreConfig(
        http_config={"api_url": "x", "api_token": TOKEN}
    ),
    "an object": lambda: PrefactorCoreConfig(http_config=Official(api_url="x")),  # type: ignore[arg-type]
    "a namespace": lambda: PrefactorCoreConfig(
        http_config=SimpleNamespace(api_token=TOKEN)  # type: ignore[arg-type]
    ),
    "beside an object": lambda: PrefactorCoreConfig(
        http_config=Official(),  # type: ignore[arg-type]
        queue_config=QueueConfig(num_workers=0),
    ),
    "the switch": lambda: PrefactorCoreConfig(
        http_config={"api_url": URL, "api_token": TOKEN},
        enabled=1,  # type: ignore[arg-type]
    ),
    "replace": lambda: core_config().replace(drain_timeout=-1),
}


def shown_with_locals(error: BaseException) -> bytes:
    """What rich, and the standard library, show of a traceback with all that is around it,
    but for the frames of the test."""
    raised = error.__traceback__
    while raised is not None and raised.tb_frame.f_code.co_filename == __file__:
        raised = raised.tb_next
    assert raised is not None
    console = Console(file=io.StringIO(), width=500)
    found = Traceback.from_exception(
        type(error),
        error,
        raised,
        show_locals=True,
        locals_max_length=1_000,
        locals_max_string=10_000,
    )
    console.print(found)
    assert isinstance(console.file, io.StringIO)
    plain = traceback.TracebackException(type(error), error, raised, capture_locals=True)
    return (console.file.getvalue() + "".join(plain.format())).encode()


@pytest.mark.parametrize("kind", WRONG)
def test_the_token_is_in_no_traceback_with_locals(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFACTOR_API_TOKEN", TOKEN)
    with pytest.raises((PrefactorCoreError, TypeError)) as caught:
        WRONG[kind]()
    assert seen_in(shown_with_locals(caught.value)) == []


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"SSL_CERT_FILE": "/nowhere/at/all.pem"}, "certificates"),
        *(
            ({"HTTPS_PROXY": f"{kind}://user:{SECRETS['password']}@{host}"}, "HTTPS_PROXY")
            for kind, host in (("http", ""), ("http", "[x"), ("http", "x:0"), ("ftp", "x"))
        ),
        (
            {
                "HTTPS_PROXY": f"https://user:{SECRETS['password']}@x",
                "SSL_CERT_FILE": "/nowhere/at/all.pem",
            },
            "certificates",
        ),
        ({}, "https://localhost:1"),
    ],
)
async def test_the_token_is_in_no_traceback_of_an_opening(
    environment: Mapping[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    from prefactor_core.client.connection import open_api

    config = HttpClientConfig(api_url="https://localhost:1", api_token=TOKEN)
    with anyio.fail_after(20):
        with pytest.raises(PrefactorCoreError, match=message) as caught:
            async with open_api(config) as api:
                await api.ping()
    assert seen_in(shown_with_locals(caught.value)) == []


async def test_the_token_is_in_no_traceback_of_a_refusal() -> None:
    with anyio.fail_after(20):
        async with open_local_prefactor(":memory:", api_token="another") as app:
            with pytest.raises(PrefactorCoreError) as caught:
                async with open_prefactor(
                    api_url=URL, api_token=TOKEN, asgi_app=app, validate_token=True
                ):
                    pass
    assert seen_in(shown_with_locals(caught.value)) == []


async def test_the_token_is_in_no_traceback_of_what_an_agent_raises() -> None:
    @traced("agent:tool")
    def work() -> None:
        raise LookupError

    with anyio.fail_after(20):
        async with open_local_prefactor(":memory:") as app:
            with pytest.raises(LookupError) as caught:
                async with (
                    open_prefactor(
                        api_url=URL,
                        api_token=TOKEN,
                        asgi_app=app,
                        schema_registry=make_registry(),
                    ) as client,
                    client.agent_instance(**AGENT) as instance,
                    instance.span("agent:tool"),
                ):
                    work()
    assert seen_in(shown_with_locals(caught.value)) == []
