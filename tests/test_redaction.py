"""Secrets are known by the keys they stand under, at any depth."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefactor_core.exceptions import PrefactorValueError
from prefactor_core.redaction import SECRETS, redact_keys

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
]


OTHER_KEYS = [
    *("max_tokens", "maxTokens", "input_tokens", "output_tokens", "total_tokens"),
    *("prompt_tokens", "completion_tokens", "inputTokens", "totalTokens", "token_count"),
    *("tokenCount", "tokens", "reasoning_tokens", "cached_tokens", "time_to_first_token"),
    *("gen_ai.usage.input_tokens", "token_usage", "tokenizer", "token_type"),
    *("next_page_token", "eos_token", "stop_token", "max_completion_tokens", "author"),
    *("authority", "authored_by", "key", "keys", "primary_key", "foreign_key", "keyboard"),
    *("secretary", "secretariat", "passage", "compass", "passenger", "prompt", "messages"),
    *("content", "model", "session_id", "cook"),
]


@pytest.mark.parametrize("key", SECRET_KEYS)
def test_the_ready_made_patterns_hide_what_is_secret(key: str) -> None:
    assert redact_keys()({"a": [{key: CANARY}]}) == {"a": [{key: "[redacted]"}]}


@pytest.mark.parametrize("key", OTHER_KEYS)
def test_the_ready_made_patterns_leave_what_is_not(key: str) -> None:
    assert redact_keys()({key: 17}) == {key: 17}


@pytest.mark.parametrize(
    ("pattern", "hidden", "shown"),
    [
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


@pytest.mark.parametrize("value", [None, 1, [], {}, {"deep": [{"er": 1}]}, ["a"]])
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
    """What is to be seen of a value, told by the lists of keys above."""
    if isinstance(value, dict):
        return {
            key: "[redacted]" if key in SECRET_KEYS else hidden(item) for key, item in value.items()
        }
    return [hidden(item) for item in value] if isinstance(value, list) else value


@given(trees)
def test_all_that_is_under_a_hidden_key_goes_and_all_else_stays(tree: Any) -> None:
    expected = hidden({"tree": tree})
    assert redact_keys()({"tree": tree}) == expected


@pytest.mark.parametrize("pattern", ["", None, 1, b"password", ["password"]])
def test_a_pattern_that_cannot_be_is_refused(pattern: Any) -> None:
    with pytest.raises(PrefactorValueError, match="a pattern of redact_keys must be the text"):
        redact_keys("email", pattern)


def test_a_replacement_that_is_no_text_is_refused() -> None:
    replacement: Any = None
    with pytest.raises(PrefactorValueError, match="replacement must be a string"):
        redact_keys(replacement=replacement)
