"""The exception for an error of the API: its class, code, fields and wait."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import product

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.cases import case

from prefactor_core.api.errors import error_from_answer
from prefactor_core.exceptions import (
    PrefactorApiError,
    PrefactorAuthError,
    PrefactorConflictError,
    PrefactorContractError,
    PrefactorNotFoundError,
    PrefactorRateLimitError,
    PrefactorServerError,
    PrefactorValidationError,
)

CALL = "POST agent_spans at http://api.test"

UNREADABLE = {
    "empty": b"",
    "html": b"<html><h1>Bad Gateway</h1></html>",
    "cut off": b'{"code": "not_fo',
    "not utf-8": b"\xff\xfe\x00",
    "a text that is not utf-8": b'{"code": "\xff"}',
    "a list": b'["not_found"]',
    "null": b"null",
    "a code that is no text": b'{"code": 7, "message": "no"}',
    "nested too deep": b'{"nested": ' + b"[" * 100_000 + b"}",
}


def error_body(**fields: object) -> bytes:
    return msgspec.json.encode({"status": "error", **fields})


STATUSES = [
    (400, "bad_request", PrefactorValidationError),
    (401, "bad_authtoken", PrefactorAuthError),
    (403, "forbidden", PrefactorAuthError),
    (404, "not_found", PrefactorNotFoundError),
    (405, "bad_request", PrefactorApiError),
    (409, "invalid_action", PrefactorConflictError),
    (413, "too_large", PrefactorApiError),
    (422, "validation_errors", PrefactorValidationError),
    (429, "rate_limited", PrefactorRateLimitError),
    (500, "internal", PrefactorServerError),
    (503, "unavailable", PrefactorServerError),
    (599, "strange", PrefactorServerError),
]


def test_the_status_decides_the_class_and_the_body_gives_the_code() -> None:
    for status, code, error_class in STATUSES:
        with case(status, code, error_class):
            error = error_from_answer(
                CALL, status, error_body(code=code, message="that won't do"), None
            )
            assert type(error) is error_class
            assert (error.status_code, error.code) == (status, code)
            assert str(error).startswith(f"{CALL} was answered {status} {code}: that won't do")


def test_an_error_of_the_api_may_have_no_code() -> None:
    error = error_from_answer(CALL, 404, b'{"status":"error"}', None)
    assert type(error) is PrefactorNotFoundError
    assert error.code == "unknown"
    assert str(error) == f"{CALL} was answered 404"


OTHER_FORMS = [
    b"",
    b"<html>Sign in</html>",
    b"{}",
    b'{"message": "Not Found"}',
    b'{"status": 404, "error": "Not Found"}',
    b'{"error": {"code": 403, "status": "PERMISSION_DENIED"}}',
    b"[]",
]


def test_an_error_status_in_another_form_is_a_gateways_and_no_refusal() -> None:
    for status, body in product([400, 401, 403, 404, 407, 409, 413, 422, 451], OTHER_FORMS):
        with case(status, body):
            error = error_from_answer(CALL, status, body, "3")
            assert type(error) is PrefactorContractError
            assert (error.status_code, error.code, error.retry_after) == (status, "unknown", 3.0)
            assert "not in the form of the Prefactor API" in str(error)


def test_an_auth_error_says_what_to_look_at() -> None:
    with_token = error_from_answer(CALL, 401, error_body(), None, token="wr0ng")
    assert "is the API token right" in str(with_token)
    without = error_from_answer(CALL, 401, error_body(), None)
    assert "no API token was given" in str(without)


def test_each_wrong_field_is_named_with_its_message() -> None:
    for status in [400, 422]:
        with case(status):
            errors = {
                "payload": {"status": "error", "code": "required", "message": "is required"},
                "status": {"status": "error", "code": "invalid_value"},
                "id": ["is odd"],
            }
            body = error_body(code="validation_errors", message="validation failed", errors=errors)
            error = error_from_answer(CALL, status, body, None)
            assert isinstance(error, PrefactorValidationError)
            assert error.errors == {
                "payload": "is required",
                "status": "invalid_value",
                "id": '["is odd"]',
            }
            assert str(error).endswith(
                "validation_errors: validation failed "
                '(payload: is required, status: invalid_value, id: ["is odd"])'
            )


def test_an_answer_without_fields_has_no_field_errors() -> None:
    error = error_from_answer(CALL, 422, error_body(code="validation_errors", errors=None), None)
    assert isinstance(error, PrefactorValidationError)
    assert error.errors == {}


WAITS = [
    (None, None, None),
    ("7", None, 7.0),
    ("0.5", None, 0.5),
    (" 7 ", None, 7.0),
    ("-3", None, 0.0),
    ("", None, None),
    ("soon", None, None),
    ("inf", None, None),
    ("9" * 400, None, None),
    ("Wed, 21 Oct 2015 07:28:00 GMT", None, 0.0),
    ("Wed, 21 Oct 2015 07:28:00 +9999", None, None),
    (None, 1500, 1.5),
    (None, 0, 0.0),
    (None, -5, 0.0),
    ("7", 1500, 1.5),
]


def test_the_wait_asked_for_is_read_in_seconds() -> None:
    for status, (header, milliseconds, wait) in product([401, 422, 429, 503], WAITS):
        with case(status, header, milliseconds, wait):
            error = error_from_answer(CALL, status, error_body(retry_after_ms=milliseconds), header)
            assert error.retry_after == wait


def test_the_wait_until_a_date_counts_from_now() -> None:
    until = datetime.now(UTC) + timedelta(minutes=2)
    for date in [
        format_datetime(until, usegmt=True),
        format_datetime(until),
        until.strftime("%a, %d %b %Y %H:%M:%S -0000"),
        until.strftime("%a %b %d %H:%M:%S %Y"),
    ]:
        with case(date):
            error = error_from_answer(CALL, 429, b"{}", date)
            assert isinstance(error, PrefactorRateLimitError)
            assert error.retry_after == pytest.approx(120, abs=5)


def test_a_refusal_that_cannot_be_read_breaks_the_contract() -> None:
    for name, body in UNREADABLE.items():
        with case(name):
            error = error_from_answer(CALL, 404, body, None)
            assert type(error) is PrefactorContractError
            assert (error.status_code, error.code) == (404, "unknown")
            assert "is api_url right?" in str(error)


def test_an_answer_that_passes_keeps_its_class_whatever_the_body() -> None:
    classes = [(429, PrefactorRateLimitError), (502, PrefactorServerError)]
    for (name, body), (status, error_class) in product(UNREADABLE.items(), classes):
        with case(name, status):
            error = error_from_answer(CALL, status, body, "3")
            assert type(error) is error_class
            assert isinstance(error, PrefactorRateLimitError | PrefactorServerError)
            assert (error.status_code, error.code, error.retry_after) == (status, "unknown", 3.0)


def test_a_status_configured_as_passing_is_a_server_error() -> None:
    for body in [error_body(code="too_early", message="later"), b"<html>"]:
        with case(body):
            error = error_from_answer(CALL, 425, body, "3", passing=(408, 425))
            assert type(error) is PrefactorServerError
            assert (error.status_code, error.retry_after) == (425, 3.0)


def test_other_statuses_are_what_they_were_beside_passing_ones() -> None:
    for status, error_class in [
        (404, PrefactorNotFoundError),
        (429, PrefactorRateLimitError),
        (501, PrefactorServerError),
    ]:
        with case(status, error_class):
            error = error_from_answer(CALL, status, error_body(), None, passing=(425, 429))
            assert type(error) is error_class


@given(
    status=st.integers(400, 599),
    body=st.binary()
    | st.dictionaries(
        st.sampled_from(["code", "message", "errors", "retry_after_ms"]),
        st.none() | st.text() | st.floats() | st.dictionaries(st.text(), st.text() | st.none()),
    ).map(msgspec.json.encode),
    header=st.none() | st.text() | st.floats().map(str),
)
@example(status=422, body=b'{"errors": {"payload": {"message": "\xff"}}}', header=None)
def test_every_answer_becomes_an_error_of_ours(
    status: int, body: bytes, header: str | None
) -> None:
    error = error_from_answer(CALL, status, body, header)
    assert isinstance(error, PrefactorApiError)
    assert error.status_code == status
    assert error.retry_after is None or 0 <= error.retry_after < math.inf
