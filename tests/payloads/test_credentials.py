"""Credentials are recognised by their form, in any text of a payload."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.cases import for_each

from prefactor_core import PrefactorValueError, redact_credentials, redact_keys

BASIC = b64encode(b"user:pass word").decode()
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"
RANDOM = "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8"

PEM = f"""-----BEGIN RSA PRIVATE KEY-----
Proc-Type: 4,ENCRYPTED

{RANDOM}+/=
{RANDOM}
-----END RSA PRIVATE KEY-----"""

# A text, and the credential in it.
CREDENTIALS: list[tuple[str, str]] = [
    ("Authorization: Bearer canary-7f3a", "canary-7f3a"),
    (f"curl -H 'authorization: bearer {RANDOM}' x", RANDOM),
    (f"BEARER  {RANDOM}.", f"{RANDOM}."),
    (f"Authorization: Basic {BASIC}", BASIC),
    *(
        (f"the key {key}, said it", key)
        for key in (
            *(f"sk-{RANDOM}", f"sk-proj-{RANDOM}", f"sk-ant-api03-{RANDOM}", f"sk_live_{RANDOM}"),
            *(f"{kind}_{RANDOM}" for kind in ("ghp", "gho", "ghs", "ghu", "ghr", "github_pat")),
            *(f"glpat-{RANDOM}", f"npm_{RANDOM}", f"pypi-{RANDOM}", f"hf_{RANDOM}", JWT),
            *(f"xox{kind}-1234567890-{RANDOM}" for kind in "abpr"),
            *(f"xapp-1-{RANDOM}", f"dckr_pat_{RANDOM}", "AKIAIOSFODNN7EXAMPLE", f"AIza{RANDOM}"),
            *(f"whsec_{RANDOM}", f"SG.{RANDOM}.{RANDOM}", f"GOCSPX-{RANDOM}", f"ya29.{RANDOM}"),
        )
    ),
    ('{"key":"sk-' + RANDOM + '"}', f"sk-{RANDOM}"),
    ("postgres://user:pa55@host:5432/db", "pa55"),
    ("postgresql+asyncpg://user:p@55:w@host/db?x=1", "p@55:w"),
    ("redis://:pa55@host", "pa55"),
    ("mongodb://u:pa55@h1:27017,h2:27017/x", "pa55"),
    (f"git clone https://oauth2:{RANDOM}@host/x.git", RANDOM),
    (f"a\n{PEM}\nb", PEM),
    ("a " + PEM.replace("\n", "\\n") + " b", PEM.replace("\n", "\\n")),
    (f"cut: -----BEGIN PRIVATE KEY-----\n{RANDOM}", f"-----BEGIN PRIVATE KEY-----\n{RANDOM}"),
    (f"https://hooks.slack.com/services/T0/B0/{RANDOM}", f"T0/B0/{RANDOM}"),
]

NONE = [
    *("", "Hello", "Bearer authentication", "the bearer of this letter", "Bearer of bad news"),
    *("Basic information", "basic principles of design", "BASIC programs", "Basic abcd"),
    *("sk-learn-contrib-is-a-package", "task-1234567890123456789", "risk-12345678901234567890"),
    *("https://host:8080/path", "https://host/a:b@c", "see http://a:80 and mail b@c.org"),
    *(
        "ghp_short",
        "xox",
        "AKIA",
        "eyJ",
        "eyJhbGciOiJIUzI1NiJ9",
        "npm_config_registry_of_this_host",
    ),
    *("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----", "user:password@host"),
    *("01m82j0znw4pb4s0pv8pgmsadbt3zr1j", "123e4567-e89b-12d3-a456-426614174000"),
    *("hf_hub_download_of_a_model_enabled_here", "the ASIAN market", "data:image/png;base64,iVBO"),
]


@for_each(("text", "credential"), CREDENTIALS)
def test_the_credential_goes_and_the_text_around_it_stays(text: str, credential: str) -> None:
    expected = text.replace(credential, "[redacted]")
    assert expected != text
    for around in ("", "He said: ", "first line\n"):
        payload: dict[str, object] = {"a": [{"b": around + text}], around + text: 1}
        masked = {"a": [{"b": around + expected}], around + expected: 1}
        assert redact_credentials()(payload) == masked


@for_each("text", NONE)
def test_a_text_without_a_credential_stays(text: str) -> None:
    assert redact_credentials(None)({text: [text]}) == {text: [text]}


def test_several_in_one_text_all_go() -> None:
    text = " and ".join(text for text, _ in CREDENTIALS)
    masked = str(redact_credentials()({"text": text})["text"])
    for _, credential in CREDENTIALS:
        assert credential not in masked


def test_what_stood_under_two_credentials_is_kept() -> None:
    payload: dict[str, object] = {"Bearer a1234567": 1, "x": 2, "Bearer b1234567": [3]}
    masked = redact_credentials()(payload)
    assert masked == {"Bearer [redacted]": 1, "x": 2, "Bearer [redacted] 2": [3]}
    assert list(masked) == ["Bearer [redacted]", "x", "Bearer [redacted] 2"]


def test_names_of_secrets_are_hidden_too_unless_something_else_is_asked_for() -> None:
    payload = {"password": "canary", "ssn": "078", "text": "Bearer canary-7f3a"}
    text = "Bearer [redacted]"
    assert redact_credentials()({**payload}) == {
        "password": "[redacted]",
        "ssn": "078",
        "text": text,
    }
    assert redact_credentials(redact_keys("ssn"))({**payload}) == {
        "password": "canary",
        "ssn": "[redacted]",
        "text": text,
    }
    assert redact_credentials(None)({**payload}) == {**payload, "text": text}
    assert redact_credentials(lambda seen: {"seen": seen["text"]})({**payload}) == {"seen": text}
    assert redact_credentials(None, replacement=r"\1")({"a": "Bearer canary-7f3a"}) == {
        "a": r"Bearer \1"
    }


@for_each("then", [1, "password", redact_keys, redact_credentials])
def test_what_is_no_function_of_a_payload_is_refused(then: Any) -> None:
    with pytest.raises(PrefactorValueError, match="then must be a function"):
        redact_credentials(then)


def test_a_replacement_that_is_no_text_is_refused() -> None:
    replacement: Any = None
    with pytest.raises(PrefactorValueError, match="replacement must be a string"):
        redact_credentials(replacement=replacement)


trees = st.recursive(
    st.none() | st.integers() | st.text() | st.sampled_from([text for text, _ in CREDENTIALS]),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text() | st.sampled_from([text for text, _ in CREDENTIALS]), inner)
    ),
)


@given(trees)
def test_no_credential_is_left_anywhere_and_masking_again_changes_nothing(tree: Any) -> None:
    redact = redact_credentials(None)
    masked = redact({"tree": tree})
    left = repr(masked)
    for _, credential in CREDENTIALS:
        assert len(credential) < 8 or credential not in left
    again = redact({"tree": masked})["tree"]
    assert repr(again) == left


@pytest.mark.parametrize(
    "part",
    [
        *("eyJ", "eyJ.", "eyJaaaaaaaa.", "sk-", "sk-a", "bearer ", "bearer a", "bearer aaaa1 "),
        *("://a:b", "://:", "://" + "a" * 255, "a:", "basic abcd", "basic ", "ghp_", "ghp_a-"),
        *(
            "-----BEGIN PRIVATE KEY-----\n",
            "-----BEGIN RSA PRIVATE KEY",
            "-",
            "SG.aaaaaaaaaaaaaaaa",
        ),
        *("SG.", "xoxb-", "hooks.slack.com/services/", "AKIA", "a@"),
    ],
)
def test_no_text_takes_more_than_linear_time(part: str) -> None:
    # With twice the time for twice the text it is 0.1 s; with four times it would be minutes.
    for before in ("", "://", "bearer ", "-----BEGIN PRIVATE KEY-----"):
        redact_credentials(None)({"text": before + part * (1_000_000 // len(part))})


def test_depth_does_not_matter() -> None:
    payload: Any = {"text": "Bearer canary-7f3a"}
    for _ in range(10_000):
        payload = {"a": [payload]}
    value: Any = redact_credentials()(payload)
    for _ in range(10_000):
        (value,) = value["a"]
    assert value == {"text": "Bearer [redacted]"}
