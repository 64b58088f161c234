"""Secrets are recognised by their keys, at any depth."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime
from enum import Enum
from functools import partial
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import Struct, field
from support.cases import for_each

from prefactor_core.exceptions import PrefactorValueError
from prefactor_core.payloads.plain_json import PlainEncoder
from prefactor_core.payloads.redaction import SECRETS, redact_keys
from prefactor_core.payloads.secret_str import SecretStr

CANARY = "canary-7f3a"

SECRET_KEYS = [
    *("password", "Password", "db_password", "DB-PASSWORD", "userPassword", "passwd"),
    *("passphrase", "pwd", "admin_pwd", "secret", "client_secret", "clientSecret"),
    *("secret_key", "secrets", "aws_secret_access_key", "SecretAccessKey", "api_key"),
    *("apiKey", "API-KEY", "x-api-key", "X-Api-Key", "openai_api_key", "OPENAI_API_KEY"),
    *("apikey", "authorization", "Authorization", "Proxy-Authorization", "auth", "cookie"),
    *("Cookie", "Set-Cookie", "cookies", "session_token", "X-Amz-Security-Token", "token"),
    *("access_token", "accessToken", "refresh_token", "id_token", "idToken", "auth_token"),
    *("authToken", "bearer_token", "PREFACTOR_API_TOKEN", "github_token", "csrf-token"),
    *("user_token", "personal_access_token", "oauth_token", "private_key", "privateKey"),
    *("ssh_private_key", "aws_access_key_id", "signing_key", "encryptionKey", "credentials"),
    *("credential", "jwt"),
    # of code hosts, registries, clouds
    *("GH_TOKEN", "GITHUB_TOKEN", "gitHubToken", "GITLAB_TOKEN", "PRIVATE-TOKEN", "CI_JOB_TOKEN"),
    *("NPM_TOKEN", "npmToken", "PYPI_TOKEN", "DOCKER_TOKEN", "_authToken", "X-Registry-Auth"),
    *("HF_TOKEN", "hfToken", "VAULT_TOKEN", "SLACK_BOT_TOKEN", "X-Vault-Token"),
    # databases
    *(
        "DATABASE_URL",
        "databaseUrl",
        "db-uri",
        "REDIS_URL",
        "SQLALCHEMY_DATABASE_URI",
        "SENTRY_DSN",
    ),
    *("connectionString", "CONNECTION STRING", "smtp_pass", "PGPASSWORD", "dsn"),
    # sessions, signatures, codes
    *(
        "sessionid",
        "sessionId",
        "X-Session-ID",
        "PHPSESSID",
        "JSESSIONID",
        "connect.sid",
        "sid",
        "ASP.NET_SessionId",
        "sessionKey",
    ),
    *("X-Amz-Signature", "X-Hub-Signature-256", "sig", "X-Amz-Credential", "webhookSecret"),
    *("otp", "smsOtp", "cvv", "cardCVC", "pin", "card-pin", "recoveryCodes", "code_verifier"),
    # keys
    *("Ocp-Apim-Subscription-Key", "subscriptionKey", "AccountKey", "SSH_KEY", "tls.pem"),
    *("OPENAI_KEY", "anthropicKey", "HMAC-Key", "seedPhrase", "jwt", "user_jwt", "bearer"),
    # however they are written
    *("accesstoken", "X-Access-Token", "x.access.token", "access token", "openaiApiKey"),
    *("OPENAI_API_KEY", "open-ai-api-key", "@password", "$password", "user[password]", "__token__"),
]


OTHER_KEYS = [
    *("max_tokens", "maxTokens", "input_tokens", "output_tokens", "total_tokens"),
    *("prompt_tokens", "completion_tokens", "inputTokens", "totalTokens", "token_count"),
    *("tokenCount", "tokens", "reasoning_tokens", "cached_tokens", "time_to_first_token"),
    *("gen_ai.usage.input_tokens", "token_usage", "tokenizer", "token_type"),
    *("next_page_token", "eos_token", "stop_token", "max_completion_tokens", "author"),
    *("authority", "authored_by", "key", "keys", "primary_key", "foreign_key", "keyboard"),
    *("secretary", "secretariat", "passage", "compass", "passenger", "prompt", "messages"),
    *("jpg_url", "imdbUrl", "overwrite_key", "map_key"),
    *("content", "model", "chat_session_id", "conversation_id", "cook", "cookies_enabled"),
    *("account_sid", "inside", "shopping", "gpio_pin", "signature", "function_signature", "dsnap"),
    *(
        "url",
        "image_url",
        "urlencoded",
        "first_pass",
        "passed",
        "pass",
        "has_nothing",
        "high_token",
    ),
    *(
        "jpg_url",
        "imdbUrl",
        "overwrite_key",
        "map_key",
        "half_token",
        "max_output_tokens",
        "valid_token",
        "logit_bias",
        "keyword",
        "sort_key",
    ),
    *("idempotency_key", "cache_key", "thread_id", "conversation_id", "webhook_url", "hotpink"),
]


def spellings(name: str) -> list[str]:
    """The ways in which programs write a name of several words."""
    words = name.split("_")
    camel = words[0] + "".join(map(str.capitalize, words[1:]))
    divided = [between.join(words) for between in ("_", "-", " ", ".", "")]
    pascal = [camel[:1].upper() + camel[1:], "-".join(map(str.capitalize, words))]
    return [camel, *pascal, *divided, *map(str.upper, divided), f"_{name}", f"{name}__"]


@for_each("key", SECRET_KEYS)
def test_the_ready_made_patterns_hide_what_is_secret(key: str) -> None:
    assert redact_keys()({"a": [{key: CANARY}]}) == {"a": [{key: "[redacted]"}]}


@for_each("key", OTHER_KEYS)
def test_the_ready_made_patterns_leave_what_is_not(key: str) -> None:
    assert redact_keys()({key: 17}) == {key: 17}


@for_each(
    "name",
    [
        *("access_token", "open_ai_api_key", "x_csrf_token", "client_secret", "db_password"),
        *("connection_string", "private_key", "proxy_authorization", "session_token"),
        *("subscription_key", "database_url", "aws_secret_access_key", "personal_access_token"),
    ],
)
def test_a_name_is_one_however_it_is_written(name: str) -> None:
    for spelling in spellings(name):
        assert redact_keys()({spelling: CANARY}) == {spelling: "[redacted]"}
        assert redact_keys(name)({spelling: CANARY}) == {spelling: "[redacted]"}
        assert redact_keys(spelling)({name: CANARY}).get(name) == (
            # What divides words at the edge of a pattern is meant.
            CANARY if "_" in (spelling[0], spelling[-1]) else "[redacted]"
        )


@for_each("name", ["max_tokens", "time_to_first_token", "user_id", "sort_key"])
def test_what_is_no_secret_is_none_however_it_is_written(name: str) -> None:
    payload: dict[str, object] = dict.fromkeys(spellings(name), 1)
    assert redact_keys()({**payload}) == payload


names = st.text(alphabet="abAB_- .", max_size=8)
letters = st.text(alphabet="ab", min_size=1, max_size=3)


@given(names, letters)
def test_stars_stand_for_any_text(name: str, pattern: str) -> None:
    text = "".join(filter(str.isalpha, name)).lower()
    for written, expected in (
        (pattern, text == pattern),
        (f"*{pattern}", text.endswith(pattern)),
        (f"{pattern}*", text.startswith(pattern)),
        (f"*{pattern}*", pattern in text),
        (f"a*{pattern}", text[:1] == "a" and text[1:].endswith(pattern)),
        (f"*{pattern}*b*", "b" in text.partition(pattern)[2]),
    ):
        assert redact_keys(written).hides(name) == expected, written


def test_many_stars_take_no_time_on_a_long_name() -> None:
    assert not redact_keys("*a*b*a*b*a*b*c").hides("ab" * 50_000)


@for_each(
    ("pattern", "hidden", "shown"),
    [
        ("*_pin", ["card_pin", "cardPin", "CARD-PIN", "my.card pin", "_pin"], ["pin", "hotpin"]),
        ("pin_*", ["pin_code", "pinCode"], ["pin", "pinned"]),
        ("*_pin_*", ["my_pin_code", "myPinCode"], ["my_pinned", "my_pin", "pin_code"]),
        ("_id", ["_id"], ["id", "my_id"]),
        ("email", ["email", "EMAIL", "Email", "e_mail"], ["emails", "my_email"]),
        ("*email*", ["email", "my-email-address"], ["mail"]),
        (
            "user-name",
            ["user_name", "User-Name", "userName", "username", "user name"],
            ["users_name"],
        ),
        ("user_name", ["user-name"], ["userXname"]),
        ("id?", ["id1", "ids"], ["id", "id12"]),
        ("a[b-c]", ["a[b-c]", "a[b_c]"], ["ab", "ac", "a-"]),
        ("a.b", ["a.b"], ["axb"]),
        ("straße", ["STRASSE", "Straße"], ["strase"]),
        ("*", ["", "anything\nat all"], []),
    ],
)
def test_a_pattern_hides_what_it_matches_as_a_whole(
    pattern: str, hidden: list[str], shown: list[str]
) -> None:
    payload: dict[str, object] = dict.fromkeys((*hidden, *shown), 1)
    expected = dict.fromkeys(hidden, "[redacted]") | dict.fromkeys(shown, 1)
    assert redact_keys(pattern)(payload) == expected


def test_own_patterns_stand_alone_or_beside_the_ready_made() -> None:
    payload = {"email": 1, "password": 2}
    assert redact_keys("email")({**payload}) == {"email": "[redacted]", "password": 2}
    both = redact_keys("email", *SECRETS, replacement="***")
    assert both({**payload}) == {"email": "***", "password": "***"}


@for_each("value", [None, 1, [], {}, {"deep": [{"er": 1}]}, ["a"]])
def test_a_hidden_value_is_replaced_whatever_it_is(value: object) -> None:
    assert redact_keys()({"password": value}) == {"password": "[redacted]"}


def test_long_keys_are_matched_too() -> None:
    key = "x" * 100_000 + "_password"
    assert redact_keys()({key: CANARY}) == {key: "[redacted]"}


def test_depth_does_not_matter() -> None:
    payload: Any = {"password": CANARY}
    for _ in range(10_000):
        payload = {"a": [payload]}
    value = redact_keys()(payload)
    for _ in range(10_000):
        (value,) = value["a"]  # type: ignore[misc]
    assert value == {"password": "[redacted]"}


trees = st.recursive(
    st.none() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.sampled_from([*SECRET_KEYS, *OTHER_KEYS]), inner)
    ),
)


def hidden(value: Any) -> Any:
    """The visible part of a value, by the lists of keys above."""
    if isinstance(value, dict):
        return {
            key: "[redacted]" if key in SECRET_KEYS else hidden(item) for key, item in value.items()
        }
    return [hidden(item) for item in value] if isinstance(value, list) else value


@given(trees)
def test_all_that_is_under_a_hidden_key_goes_and_all_else_stays(tree: Any) -> None:
    expected = hidden({"tree": tree})
    assert redact_keys()({"tree": tree}) == expected


PAIRS: list[tuple[Any, Any]] = [
    (["Authorization", "Bearer x"], ["Authorization", "[redacted]"]),
    (["authorization", {"a": [1]}], ["authorization", "[redacted]"]),
    (
        [["Accept", "*/*"], ["X-Api-Key", "x"], ["Set-Cookie", "x"]],
        [["Accept", "*/*"], ["X-Api-Key", "[redacted]"], ["Set-Cookie", "[redacted]"]],
    ),
    ({"name": "Authorization", "value": "x"}, {"name": "Authorization", "value": "[redacted]"}),
    ({"key": "X-Api-Key", "value": {"a": 1}}, {"key": "X-Api-Key", "value": "[redacted]"}),
    ({"value": "x", "name": "password"}, {"value": "[redacted]", "name": "password"}),
    ({"Name": "DB_PASSWORD", "Value": "x"}, {"Name": "DB_PASSWORD", "Value": "[redacted]"}),
    ({"Key": "token", "Value": ["x"]}, {"Key": "token", "Value": "[redacted]"}),
    (
        {"key": "a", "name": "password", "value": 1},
        {"key": "a", "name": "password", "value": "[redacted]"},
    ),
    *(
        (same, same)
        for same in (
            *(
                ["a", "b"],
                ["secret", 2],
                ["token", None],
                ["Authorization"],
                ["Authorization", "a", "b"],
                ["a", "password"],
            ),
            *({"name": "Authorization", "values": 1}, {"name": "a", "value": 1}, {"value": 1}),
            *({"name": ["password"], "value": 1}, {"name": None, "value": 1}, [["password"], 1]),
            ["the password in this text is none, for no name has so many characters. " * 2, "x"],
        )
    ),
]


@for_each(("value", "expected"), PAIRS)
def test_pairs_and_headers_are_names_with_their_values(value: Any, expected: Any) -> None:
    assert redact_keys()({"in": [value]}) == {"in": [expected]}


class Status(Enum):
    OPEN = "open"
    AUTH = "Authorization"


class Plain(Struct):
    model: object
    value: object = None


class Named(Struct):
    name: object
    value: object


class Renamed(Struct):
    model: object = field(name="apiKey")
    role: object = field(name="content", default=None)


class Tagged(Struct, tag="x", tag_field="token"):
    model: object = None


class Row(Struct, array_like=True):
    first: object
    second: object


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False)
    | st.sampled_from([*SECRET_KEYS, *OTHER_KEYS, *Status, UUID(int=1), date(2026, 1, 1), b"ab"])
    | st.text(max_size=5)
)
keys = st.sampled_from(
    [*SECRET_KEYS[:20], *OTHER_KEYS[:20], "name", "key", "value", "Key", "Value"]
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=2).map(tuple)
        | st.frozensets(scalars, max_size=2)
        | st.dictionaries(keys, inner, max_size=3)
        | st.builds(Plain, inner, inner)
        | st.builds(Named, inner, inner)
        | st.builds(Renamed, inner, inner)
        | st.builds(Tagged, inner)
        | st.builds(Row, inner, inner)
    ),
    max_leaves=8,
)


def vouches(quick: PlainEncoder, payload: object) -> bool:
    try:
        return quick.encode([payload], 1_000_000) is not None
    except Exception:
        return False


@given(values)
@example([Row("password", 1)])
@example(["Authorization", "x"])
@example([Status.AUTH, "x"])
@example(Named(Status.AUTH, "x"))
@example(Named(b"password", "x"))
@example({"a": Renamed(1)})
@example(Tagged())
def test_where_the_quick_look_finds_nothing_there_is_nothing(value: Any) -> None:
    redact = redact_keys()
    quick = PlainEncoder(redact)
    for payload in (value, {"model": value}):
        if vouches(quick, payload):
            as_json = msgspec.json.decode(msgspec.json.encode({"model": payload}))
            assert redact(msgspec.json.decode(msgspec.json.encode(as_json))) == as_json


class Text(str):
    __slots__ = ()


class Hostile(dict[str, object]):
    def __iter__(self) -> Any:
        raise RuntimeError


class Unhashable(type):
    __hash__ = None  # type: ignore[assignment]


class Odd(metaclass=Unhashable):
    pass


def circular() -> list[object]:
    ring: list[object] = []
    ring.append(ring)
    return ring


def test_the_quick_look_finds_nothing_in_what_is_usual() -> None:
    quick = PlainEncoder(redact_keys())
    for payload in (
        {"model": "small-1", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 10},
        Plain("small-1", [{"a": (1, 2.5, None, True)}]),
        {
            "at": datetime.now(UTC),
            "id": UUID(int=1),
            "status": Status.OPEN,
            "tags": {"a", "b", "c"},
        },
        {"data": b"bytes", "headers": [("Accept", "*/*"), ("Host", "x")], "value": 1},
        [],
        None,
        "password",
    ):
        assert vouches(quick, payload), payload


@for_each(
    "payload",
    [
        *({"password": 1}, {"a": [{"b": {"apiKey": 1}}]}, {b"password": 1}, {1: 2}, {Text("a"): 1}),
        *({"a": Text("b")}, {"a": object()}, Hostile(a=1), {"a": Odd()}, Odd(), circular()),
        *([("Authorization", "x")], [(b"Authorization", b"x")]),
        *({str(n): [n] for n in range(40_000)}, [[n] for n in range(40_000)], SecretStr("x")),
        *({SecretStr("x"): 1}, {"a": [bytearray(b"x"), 1]}),
    ],
    ids=lambda payload: type(payload).__name__,
)
def test_the_quick_look_vouches_for_nothing_else(payload: object) -> None:
    assert not vouches(PlainEncoder(redact_keys()), payload)


def test_the_quick_look_remembers_no_more_names_than_it_may() -> None:
    redact = redact_keys()
    redact.hides("x" * 1_000_000)
    for n in range(10_000):
        redact.hides(f"name {n}")
    kept = [name for names in (redact.shown, redact._hidden) for name in names]
    assert len(kept) <= 2_000
    assert max(map(len, kept)) <= 100


def test_threads_may_ask_at_once() -> None:
    quick = PlainEncoder(redact_keys())
    payloads = [{f"a{n % 3_000}": n, "x": [{"y": n}]} for n in range(6_000)]
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(partial(vouches, quick), payloads))
        assert not any(pool.map(partial(vouches, quick), [{**p, "pwd": 1} for p in payloads]))


def test_what_redacts_is_shown_by_how_it_was_made() -> None:
    assert repr(redact_keys()) == "redact_keys()"
    assert repr(redact_keys("ssn", "*card*")) == "redact_keys('ssn', '*card*')"


@for_each("pattern", ["", None, 1, b"password", ["password"]])
def test_a_pattern_that_cannot_be_is_refused(pattern: Any) -> None:
    with pytest.raises(PrefactorValueError, match="a pattern of redact_keys must be the text"):
        redact_keys("email", pattern)


def test_a_replacement_that_is_no_text_is_refused() -> None:
    replacement: Any = None
    with pytest.raises(PrefactorValueError, match="replacement must be a string"):
        redact_keys(replacement=replacement)
