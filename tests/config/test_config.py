"""The configuration of a client is checked at construction, and never shows the token."""

from __future__ import annotations

import copy
import math
import pickle
import re
import signal
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from msgspec import structs
from rich.pretty import pretty_repr
from support.cases import case, for_each

from prefactor_core import (
    HttpClientConfig,
    PrefactorCoreConfig,
    PrefactorCoreError,
    PrefactorValueError,
    QueueConfig,
    SchemaRegistry,
    open_prefactor,
)
from prefactor_core.config.core import PrefactorOptions
from prefactor_core.payloads.redaction import REDACT_SECRETS
from prefactor_core.payloads.secret_str import SecretStr

URL = "https://app.prefactorai.com"
TOKEN = "a-secret-that-nobody-may-see"

TOO_SMALL: list[tuple[str, Any]] = [("0", 0), ("-1", -1), ("'-0.5'", "-0.5"), ("nan", float("nan"))]
NO_NUMBER: list[tuple[str, Any]] = [
    ("'soon'", "soon"),
    ("None", None),
    ("True", True),
    ("list", []),
]

_TOKEN_REQUIRED = (
    f"api_token is required for {URL!r}: pass api_token=, or set PREFACTOR_API_TOKEN in the "
    "environment; only local:PATH and http://127.0.0.1 need none"
)

# Field, value, message.
REFUSED_HTTP: list[tuple[str, Any, str]] = [
    ("api_url", "", "api_url is required"),
    ("api_url", " \n", "api_url is required"),
    ("api_url", None, "api_url must be a string, got NoneType"),
    (
        "api_url",
        "app.prefactorai.com",
        (
            "api_url must begin with https://, http://, local:, redis://, rediss:// or unix://, "
            "got 'app.prefactorai.com'"
        ),
    ),
    *(
        (
            "api_url",
            url,
            f"api_url must have a host, and a port up to 65535 if any, got {url!r}",
        )
        for url in ("http://", "http://:80", "http://a:port", "http://a:99999", "http://[::1")
    ),
    (
        "api_url",
        "local:",
        (
            "api_url 'local:' names no file: write 'local:PATH', or 'local::memory:' for a "
            "database that is gone afterwards"
        ),
    ),
    *(
        (
            "api_url",
            url,
            "api_url must end with its path, and hold no '?', '#' or blank: paths are added to it",
        )
        for url in (f"{URL}?y=1", f"{URL}/path?", f"{URL}/#part", f"{URL}/a path", "https://a b.c")
    ),
    ("api_token", "", _TOKEN_REQUIRED),
    ("api_token", "  ", _TOKEN_REQUIRED),
    ("api_token", None, "api_token must be a string, got NoneType"),
    *(
        (field, value, f"{field} must be positive, got {shown}")
        for field in ("request_timeout", "connect_timeout", "initial_retry_delay")
        for shown, value in TOO_SMALL
    ),
    ("max_retry_delay", 0, "max_retry_delay must be positive, got 0"),
    ("max_retries", -1, "max_retries must be non-negative, got -1"),
    ("max_retries", 2.5, "max_retries must be a whole number, got 2.5"),
    ("retry_multiplier", 0.9, "retry_multiplier must be >= 1, got 0.9"),
    ("retry_multiplier", float("nan"), "retry_multiplier must be >= 1, got nan"),
    *(
        (field, value, f"{field} must be a number, got {shown}")
        for field in (
            *("request_timeout", "connect_timeout", "initial_retry_delay", "max_retry_delay"),
            *("max_retries", "retry_multiplier"),
        )
        for shown, value in NO_NUMBER
    ),
    (
        "retry_on_status_codes",
        (429, "often"),
        "retry_on_status_codes must be a number, got 'often'",
    ),
]
REFUSED_QUEUE: list[tuple[str, Any, str]] = [
    ("num_workers", 0, "num_workers must be between 1 and 20, got 0"),
    ("num_workers", 21, "num_workers must be between 1 and 20, got 21"),
    ("num_workers", 1.5, "num_workers must be a whole number, got 1.5"),
    ("num_workers", "many", "num_workers must be a number, got 'many'"),
    ("max_retries", -1, "max_retries must be non-negative, got -1"),
    ("retry_delay_base", 0, "retry_delay_base must be positive, got 0"),
    ("retry_delay_base", "-1", "retry_delay_base must be positive, got '-1'"),
    ("report_after", -1, "report_after must be non-negative, got -1"),
    ("report_after", math.nan, "report_after must be non-negative, got nan"),
    ("report_after", "soon", "report_after must be a number, got 'soon'"),
    ("batch_window", -0.1, "batch_window must be non-negative, got -0.1"),
    ("max_batch_operations", 0, "max_batch_operations must be at least 1, got 0"),
    ("max_batch_bytes", 0, "max_batch_bytes must be at least 1, got 0"),
    ("max_pending_operations", 0, "max_pending_operations must be at least 1, got 0"),
    ("max_pending_operations", 1.5, "max_pending_operations must be a whole number, got 1.5"),
    ("max_pending_bytes", -1, "max_pending_bytes must be at least 1, got -1"),
    ("when_full", "block", "when_full must be 'drop' or 'wait', got 'block'"),
]
REFUSED_CORE: list[tuple[str, Any, str]] = [
    ("registration_timeout", 0, "registration_timeout must be positive, got 0"),
    ("on_refused", "ignore", "on_refused must be 'log' or 'raise', got 'ignore'"),
    ("on_refused", None, "on_refused must be 'log' or 'raise', got None"),
    ("registration_timeout", "soon", "registration_timeout must be a number, got 'soon'"),
    ("drain_timeout", -0.5, "drain_timeout must be non-negative, got -0.5"),
    ("validate_token", 1, "validate_token must be True or False, got 1"),
    ("sdk_header_entry", 3, "sdk_header_entry must be a string, got int"),
    *(
        (
            "sdk_header_entry",
            entry,
            (
                "sdk_header_entry must be package@version, such as 'prefactor-langchain@0.3.0' "
                f"(several are divided by one blank), in printable ASCII, got {shown}"
            ),
        )
        for entry, shown in (
            *((entry, repr(entry)) for entry in ("", " ", "langchain", "a@", "@1", "é@1")),
            ("a@1\nb@2", "a text of length 7"),
            ("a@1  b@2", "a text of length 8"),
            ("a@1 b", "a text of length 5"),
        )
    ),
    ("drain_timeout", None, "drain_timeout must be a number, got None"),
    (
        "http_config",
        None,
        (
            "http_config must be an HttpClientConfig, a mapping of its fields or an object with "
            "the same attributes, got NoneType without api_url"
        ),
    ),
    (
        "http_config",
        {"api_token": TOKEN},
        (
            "http_config must be an HttpClientConfig, a mapping of its fields or an object with "
            "the same attributes, got dict without api_url"
        ),
    ),
    (
        "http_config",
        {"api_url": URL, "api_token": TOKEN, "timeout": 3},
        (
            "http_config has no field 'timeout'; its fields are api_url, api_token, "
            "request_timeout, connect_timeout, max_retries, initial_retry_delay, "
            "max_retry_delay, retry_multiplier, retry_on_status_codes, default_idempotency_key"
        ),
    ),
    (
        "queue_config",
        {"workers": 3},
        (
            "queue_config has no field 'workers'; its fields are num_workers, max_retries, "
            "retry_delay_base, report_after, batch_window, max_batch_operations, "
            "max_batch_bytes, max_pending_operations, max_pending_bytes, when_full"
        ),
    ),
    *(
        ("journal", value, f"journal must be the path of a folder, got {shown}")
        for value, shown in (
            *((1, "1"), (b"x", "bytes"), ("a\0b", "a text of length 3")),
            ("a\ud800", "a text of length 2"),
        )
    ),
    ("journal_sync", "power", "journal_sync must be 'process' or 'disk', got 'power'"),
    ("journal_max_bytes", 999_999, "journal_max_bytes must be at least 1000000, got 999999"),
    (
        "queue_config",
        None,
        "queue_config must be a QueueConfig or a mapping of its fields, got NoneType",
    ),
]


def http(**fields: Any) -> HttpClientConfig:
    return HttpClientConfig(**{"api_url": URL, "api_token": TOKEN, **fields})


def core(**fields: Any) -> PrefactorCoreConfig:
    return PrefactorCoreConfig(**{"http_config": http(), **fields})


def exactly(message: str) -> str:
    return f"^{re.escape(message)}$"


@for_each(("field", "value", "message"), REFUSED_HTTP)
def test_the_http_config_refuses_by_field_value_and_bound(
    field: str, value: Any, message: str
) -> None:
    with pytest.raises(PrefactorValueError, match=exactly(message)):
        http(**{field: value})
    with pytest.raises(PrefactorValueError, match=exactly(message)):
        core(http_config={"api_url": URL, "api_token": TOKEN, field: value})


@for_each(("field", "value", "message"), REFUSED_QUEUE)
def test_the_queue_config_refuses_by_field_value_and_bound(
    field: str, value: Any, message: str
) -> None:
    with pytest.raises(PrefactorValueError, match=exactly(message)):
        QueueConfig(**{field: value})
    with pytest.raises(PrefactorValueError, match=exactly(message)):
        core(queue_config={field: value})


@for_each(("field", "value", "message"), REFUSED_CORE)
def test_the_core_config_refuses_by_field_value_and_bound(
    field: str, value: Any, message: str
) -> None:
    with pytest.raises(PrefactorValueError, match=exactly(message)):
        core(**{field: value})


@for_each("codes", [503, None, "429"])
def test_status_codes_that_are_no_collection_are_refused(codes: Any) -> None:
    with pytest.raises(PrefactorValueError, match="retry_on_status_codes"):
        http(retry_on_status_codes=codes)


def test_a_refusal_is_an_error_of_ours_and_a_value_error() -> None:
    with pytest.raises(ValueError, match="num_workers") as caught:
        QueueConfig(num_workers=0)
    assert isinstance(caught.value, PrefactorCoreError)


@for_each("workers", [1, 20])
def test_the_bounds_themselves_are_taken(workers: int) -> None:
    assert QueueConfig(num_workers=workers, max_retries=0).num_workers == workers
    assert QueueConfig(batch_window=0, max_batch_operations=1).batch_window == 0
    assert http(max_retries=0, retry_multiplier=1).retry_multiplier == 1
    assert core(drain_timeout=0).drain_timeout == 0


def test_the_defaults_are_those_that_are_documented() -> None:
    assert msgspec.structs.asdict(http()) == {
        "api_url": URL,
        "api_token": TOKEN,
        "request_timeout": 30.0,
        "connect_timeout": 10.0,
        "max_retries": 3,
        "initial_retry_delay": 1.0,
        "max_retry_delay": 60.0,
        "retry_multiplier": 2.0,
        "retry_on_status_codes": (429, 500, 502, 503, 504),
        "default_idempotency_key": None,
    }
    assert msgspec.structs.asdict(core()) == {
        "http_config": http(),
        "queue_config": QueueConfig(
            num_workers=3,
            max_retries=3,
            retry_delay_base=1.0,
            batch_window=0.1,
            max_batch_operations=500,
            max_batch_bytes=1_000_000,
            max_pending_operations=200_000,
            max_pending_bytes=128 * 1024 * 1024,
            when_full="drop",
        ),
        "schema_registry": None,
        "registration_timeout": 10.0,
        "on_refused": "log",
        "drain_timeout": 10.0,
        "enabled": True,
        "sdk_header_entry": None,
        "validate_token": False,
        "termination_poll_interval": 30.0,
        "cancel_on_signals": (),
        "raise_on_loss": False,
        "check_payloads": "off",
        "capture_payloads": True,
        "max_payload_bytes": 500_000,
        "redact": REDACT_SECRETS,
        "journal": "",
        "journal_sync": "process",
        "journal_max_bytes": 256 * 1024 * 1024,
    }


def test_numbers_may_be_given_as_text() -> None:
    taken = http(
        request_timeout="2.5",
        max_retries="3",
        retry_multiplier=" 4 ",
        retry_on_status_codes=["418"],
    )
    assert (taken.request_timeout, taken.retry_multiplier) == (2.5, 4.0)
    assert taken.retry_on_status_codes == (418,)
    queue = core(queue_config={"num_workers": "3"}, drain_timeout="7").queue_config
    for whole in (taken.max_retries, queue.num_workers):
        assert (whole, type(whole)) == (3, int)


def test_blanks_around_url_and_token_are_cut() -> None:
    assert http(api_url=f" {URL}\n", api_token=f"\t{TOKEN}\r\n") == http()


@dataclass
class OfficialHttpClientConfig:
    """What users of the official package have in their hands."""

    api_url: str = URL
    api_token: str = TOKEN
    request_timeout: float = 5.0
    connect_timeout: float = 2.0
    max_retries: int = 1
    initial_retry_delay: float = 0.5
    max_retry_delay: float = 9.0
    retry_multiplier: float = 3.0
    retry_on_status_codes: tuple[int, ...] = (429,)
    default_idempotency_key: str | None = None


def test_an_object_with_the_same_attributes_stands_in_for_a_config() -> None:
    official = OfficialHttpClientConfig()
    taken = core(http_config=official, queue_config=SimpleNamespace(num_workers=2))
    assert taken.http_config == http(**vars(official))
    assert taken.queue_config == QueueConfig(num_workers=2)


def test_an_object_with_the_same_attributes_is_checked_too() -> None:
    with pytest.raises(PrefactorValueError, match="connect_timeout must be positive, got 0"):
        core(http_config=OfficialHttpClientConfig(connect_timeout=0))


def test_a_mapping_stands_in_for_a_config() -> None:
    taken = core(http_config={"api_url": URL, "api_token": TOKEN}, queue_config={"max_retries": 0})
    assert (taken.http_config, taken.queue_config) == (http(), QueueConfig(max_retries=0))


def test_configs_are_kept_as_the_objects_that_were_given() -> None:
    given_http, given_queue = http(), QueueConfig()
    taken = core(http_config=given_http, queue_config=given_queue)
    assert taken.http_config is given_http
    assert taken.queue_config is given_queue


def test_the_core_config_takes_keywords_only_and_a_registry_later() -> None:
    with pytest.raises(TypeError):
        PrefactorCoreConfig(http())
    config, registry = core(), SchemaRegistry()
    config.schema_registry = registry
    assert config.schema_registry is registry


@for_each("url", ["local:prefactor.db", "local::memory:"])
def test_a_local_url_needs_no_token(url: str) -> None:
    assert HttpClientConfig(api_url=url).is_local
    assert not http().is_local


HERE = [
    *("http://127.0.0.1:8787", "http://127.9.9.9", "http://localhost:8787/", "HTTP://LocalHost"),
    "http://[::1]:8787",
]
ELSEWHERE = [
    *("https://127.0.0.1:8787", "https://localhost", "http://192.168.1.5:8787", "http://0.0.0.0"),
    *("http://localhost.example", "http://127.0.0.1.example", "http://prefactor.example"),
]


@for_each("url", HERE)
def test_a_server_on_this_machine_needs_no_token(url: str) -> None:
    assert HttpClientConfig(api_url=url).api_token == ""
    assert HttpClientConfig(api_url=url, api_token=TOKEN).api_token == TOKEN


@for_each("url", ELSEWHERE)
def test_every_other_server_needs_a_token(url: str) -> None:
    with pytest.raises(PrefactorValueError, match="api_token is required for"):
        HttpClientConfig(api_url=url)
    assert HttpClientConfig(api_url=url, api_token=TOKEN).api_token == TOKEN


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment in which nothing is configured."""
    monkeypatch.delenv("PREFACTOR_API_URL", raising=False)
    monkeypatch.delenv("PREFACTOR_API_TOKEN", raising=False)
    monkeypatch.delenv("PREFACTOR_ENABLED", raising=False)
    monkeypatch.delenv("PREFACTOR_JOURNAL", raising=False)
    return monkeypatch


def test_the_environment_names_a_journal_unless_the_program_does(
    env: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert core().journal == ""
    env.setenv("PREFACTOR_JOURNAL", f" {tmp_path} ")
    assert core().journal == str(tmp_path)
    assert core(journal=tmp_path / "own").journal == str(tmp_path / "own")
    assert core(journal="").journal == ""


def test_the_path_of_a_journal_is_absolute_from_the_first_moment(
    env: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    env.chdir(tmp_path)
    env.setenv("HOME", "/home/agent")
    assert core(journal="journal").journal == str(tmp_path / "journal")
    assert core(journal="~/journal").journal == "/home/agent/journal"
    gone = tmp_path / "gone"
    gone.mkdir()
    env.chdir(gone)
    gone.rmdir()
    with pytest.raises(PrefactorValueError, match="the working directory was deleted, got 'j'"):
        core(journal="j")
    env.chdir(tmp_path)


def test_the_environment_gives_url_and_token(env: pytest.MonkeyPatch) -> None:
    env.setenv("PREFACTOR_API_URL", URL)
    env.setenv("PREFACTOR_API_TOKEN", TOKEN)
    registry = SchemaRegistry()
    assert PrefactorCoreConfig.from_env(schema_registry=registry) == core(schema_registry=registry)


def test_arguments_go_before_the_environment(env: pytest.MonkeyPatch) -> None:
    env.setenv("PREFACTOR_API_URL", "https://other.example")
    env.setenv("PREFACTOR_API_TOKEN", "other-token")
    assert PrefactorCoreConfig.from_env(api_url=URL, api_token=TOKEN) == core()


@pytest.mark.parametrize("url", [None, "", "  "])
def test_where_nothing_is_configured_both_ways_out_are_named(
    env: pytest.MonkeyPatch, url: str | None
) -> None:
    if url is not None:
        env.setenv("PREFACTOR_API_URL", url)
    with pytest.raises(PrefactorValueError) as caught:
        PrefactorCoreConfig.from_env()
    for way in ("PREFACTOR_API_URL", "PREFACTOR_API_TOKEN", 'api_url="local:'):
        assert way in str(caught.value)


def test_a_url_without_a_token_says_where_a_token_is_taken_from(env: pytest.MonkeyPatch) -> None:
    env.setenv("PREFACTOR_API_URL", URL)
    with pytest.raises(PrefactorValueError) as caught:
        PrefactorCoreConfig.from_env()
    for part in (URL, "PREFACTOR_API_TOKEN", "api_token=", "local:"):
        assert part in str(caught.value)


@pytest.mark.parametrize("token", [TOKEN, "not\na token"])
def test_the_token_of_the_environment_is_not_used_with_a_local_url(
    env: pytest.MonkeyPatch, token: str
) -> None:
    env.setenv("PREFACTOR_API_TOKEN", token)
    config = PrefactorCoreConfig.from_env(api_url="local::memory:")
    assert config.http_config.api_token == ""


def test_the_token_is_in_no_text_of_a_config() -> None:
    config = core()
    texts = [show(c) for c in (config, config.http_config) for show in (repr, str, format)]
    for text in texts:
        assert TOKEN not in text
        assert URL in text


def test_the_token_is_not_in_what_rich_shows_of_a_config() -> None:
    assert TOKEN not in pretty_repr(core())
    assert TOKEN not in pretty_repr({"token": http().api_token}, max_string=10)


COPIES: dict[str, Any] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda config: pickle.loads(pickle.dumps(config)),
    "replace of msgspec": msgspec.structs.replace,
    "the same": lambda config: config,
}


@for_each("made", COPIES)
@for_each("config", [http(), core(), core().replace(drain_timeout=1)])
def test_the_token_is_for_who_asks_and_for_no_encoder(made: str, config: Any) -> None:
    given = COPIES[made](config)
    inner = given if isinstance(given, HttpClientConfig) else given.http_config
    assert f"Bearer {inner.api_token}" == f"Bearer {TOKEN}"
    assert inner.api_token == TOKEN
    for text in (repr(given), pretty_repr(given), repr(msgspec.structs.asdict(given))):
        assert TOKEN not in text
    for encode in (msgspec.json.encode, msgspec.msgpack.encode, msgspec.to_builtins):
        with pytest.raises(TypeError) as caught:
            encode(given)
        assert TOKEN not in str(caught.value)


def test_a_token_that_is_assigned_later_is_hidden_too() -> None:
    config = http(api_token="first")
    config.api_token = TOKEN
    assert config.api_token == TOKEN
    assert TOKEN not in repr([config, config.api_token])
    with pytest.raises(TypeError):
        msgspec.json.encode(config)


def test_a_part_of_a_secret_is_a_secret() -> None:
    secret = SecretStr(TOKEN)
    for part in (secret, secret[:8], secret[1:], secret[0], secret[::-1]):
        assert repr(part) == "'***'"
    assert (str(secret), secret[:8] + "", len(secret)) == (TOKEN, TOKEN[:8], len(TOKEN))


@for_each(
    "token",
    [f"{TOKEN}\nX-Header: 1", f"{TOKEN}\x00", f"{TOKEN}é", f"{TOKEN} x", TOKEN.encode(), [TOKEN]],
)
def test_a_refused_token_is_not_shown(token: Any) -> None:
    with pytest.raises(PrefactorValueError, match="api_token") as caught:
        http(api_token=token)
    assert TOKEN not in repr(caught.value)


@pytest.mark.parametrize(
    ("variable", "argument", "enabled"),
    [
        (None, None, True),
        ("", None, True),
        (" 1\n", None, True),
        (" 0 ", None, False),
        ("0", True, True),
        ("1", False, False),
        ("perhaps", True, True),
        ("perhaps", False, False),
    ],
)
def test_the_argument_switches_off_before_the_environment(
    env: pytest.MonkeyPatch, variable: str | None, argument: bool | None, enabled: bool
) -> None:
    if variable is not None:
        env.setenv("PREFACTOR_ENABLED", variable)
    assert core(enabled=argument).enabled is enabled
    from_env = PrefactorCoreConfig.from_env(api_url="local:x.db", enabled=argument)
    assert from_env.enabled is enabled


@pytest.mark.parametrize("text", ["2", "true", "off", "no", "0.0", "00"])
def test_what_is_no_switch_in_the_environment_is_refused(
    env: pytest.MonkeyPatch, text: str
) -> None:
    env.setenv("PREFACTOR_ENABLED", text)
    message = f"PREFACTOR_ENABLED in the environment must be 0 or 1, got {text!r}"
    for make in (core, PrefactorCoreConfig, PrefactorCoreConfig.from_env):
        with pytest.raises(PrefactorValueError, match=exactly(message)):
            make()


@for_each("value", [0, 1, "0", "false", []])
def test_the_switch_is_true_or_false(value: Any) -> None:
    with pytest.raises(PrefactorValueError, match="enabled must be True or False, got"):
        core(enabled=value)


def test_where_it_is_off_no_address_and_no_token_is_asked_for(env: pytest.MonkeyPatch) -> None:
    assert not PrefactorCoreConfig(enabled=False).enabled
    env.setenv("PREFACTOR_API_URL", "nonsense")
    env.setenv("PREFACTOR_API_TOKEN", "line\nbreak")
    for config in (
        PrefactorCoreConfig.from_env(enabled=False),
        PrefactorCoreConfig.from_env(api_url=URL, enabled=False),
    ):
        assert not config.enabled
        assert config.http_config.api_token == ""


def test_what_is_given_where_it_is_off_is_kept_and_checked() -> None:
    assert core(enabled=False).http_config == http()
    with pytest.raises(PrefactorValueError, match="http_config must be"):
        PrefactorCoreConfig(http_config=3, enabled=False)  # type: ignore[arg-type]
    with pytest.raises(PrefactorValueError, match="drain_timeout must be"):
        PrefactorCoreConfig(drain_timeout=-1, enabled=False)


def test_a_config_with_another_field_is_a_new_one_and_checked() -> None:
    config = core(drain_timeout=3)
    other = config.replace(sdk_header_entry=" a@1 ")
    assert (other.sdk_header_entry, other.drain_timeout) == ("a@1", 3)
    assert config == core(drain_timeout=3)
    with pytest.raises(PrefactorValueError, match="drain_timeout must be non-negative"):
        config.replace(drain_timeout=-1)
    with pytest.raises(PrefactorValueError, match="drain_timeout must be non-negative"):
        open_prefactor(config, drain_timeout=-1)


FIELDS = [
    *((PrefactorCoreConfig.from_env, name) for name in PrefactorOptions.__annotations__),
    *((core().replace, name) for name in PrefactorOptions.__annotations__),
    *((open_prefactor, name) for name in (*PrefactorOptions.__annotations__, "api_token")),
    *((lambda **field: core(queue_config=field), f.name) for f in structs.fields(QueueConfig)),
    *(
        (lambda **field: core(http_config={"api_url": URL, **field}), f.name)
        for f in structs.fields(HttpClientConfig)
    ),
]


@for_each(("take", "name"), FIELDS)
def test_for_a_misspelled_field_the_nearest_is_named(take: Any, name: str) -> None:
    for place in range(1, len(name)):
        misspelled = name[:place] + name[place + 1 :]
        with case(misspelled), pytest.raises(PrefactorValueError) as caught:
            take(**{misspelled: 1})
        assert f"the nearest is {name!r}" in str(caught.value) or misspelled in ("edact", "redct")


def test_a_field_of_another_class_is_shown_in_its_place() -> None:
    for name in ("num_workers", "num_worker"):
        with pytest.raises(PrefactorValueError, match=r"use queue_config=QueueConfig\(num_w"):
            open_prefactor(**{name: 2})  # type: ignore[arg-type]


VARIABLES = [
    ({"PREFACTOR_API_URL": "example"}, "PREFACTOR_API_URL must begin with"),
    ({"PREFACTOR_API_URL": "https://a@b.c"}, "PREFACTOR_API_URL must not hold a user name"),
    ({"PREFACTOR_API_URL": "https://"}, "PREFACTOR_API_URL must have a host"),
    ({"PREFACTOR_API_URL": f"{URL}?a=1"}, "PREFACTOR_API_URL must end with its path"),
    ({"PREFACTOR_API_URL": "local:"}, "PREFACTOR_API_URL 'local:' names no file"),
    ({"PREFACTOR_API_URL": "redis://h/x"}, "the database in PREFACTOR_API_URL must be a number"),
    ({"PREFACTOR_API_URL": URL, "PREFACTOR_API_TOKEN": "a\nb"}, "PREFACTOR_API_TOKEN has a char"),
    ({"PREFACTOR_API_URL": "local:x", "PREFACTOR_ENABLED": "yes"}, "PREFACTOR_ENABLED in the"),
]


@pytest.mark.parametrize(("variables", "message"), VARIABLES)
def test_the_error_of_a_variable_names_the_variable(
    env: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    for name, text in variables.items():
        env.setenv(name, text)
    with pytest.raises(PrefactorValueError) as caught:
        PrefactorCoreConfig.from_env()
    assert str(caught.value).startswith(message)


def test_the_error_of_an_argument_does_not_name_a_variable(env: pytest.MonkeyPatch) -> None:
    env.setenv("PREFACTOR_API_URL", "example")
    env.setenv("PREFACTOR_API_TOKEN", "a\nb")
    with pytest.raises(PrefactorValueError, match="^api_url must begin with"):
        PrefactorCoreConfig.from_env(api_url="nothing")
    with pytest.raises(PrefactorValueError, match="^api_token has a character"):
        PrefactorCoreConfig.from_env(api_url=URL, api_token="c\nd")


@for_each(
    ("signals", "shown"),
    [
        (("SIGTERM",), "'SIGTERM'"),
        ([signal.SIGTERM, 0], "0"),
        ("SIGTERM", "'SIGTERM'"),
        (signal.SIGTERM, "Signals"),
        ([None], "None"),
    ],
)
def test_of_signals_the_wrong_one_is_shown(signals: Any, shown: str) -> None:
    message = f"cancel_on_signals must be signals, such as (signal.SIGTERM,), got {shown}"
    with pytest.raises(PrefactorValueError, match=exactly(message)):
        core(cancel_on_signals=signals)
