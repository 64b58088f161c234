"""error_from_answer: the exception for an error of the API. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import islice
from typing import Final

import msgspec

from prefactor_core.api.answers import ErrorAnswer, FieldError, decode
from prefactor_core.api.quoting import quoted
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

_FIELDS: Final = 20
"""The most wrong fields that an error names."""

_REFUSALS: Final[dict[int, type[PrefactorApiError]]] = {
    400: PrefactorValidationError,
    401: PrefactorAuthError,
    403: PrefactorAuthError,
    404: PrefactorNotFoundError,
    409: PrefactorConflictError,
    422: PrefactorValidationError,
}


def error_from_answer(
    call: str,
    status: int,
    body: bytes,
    retry_after: str | None,
    passing: Collection[int] = (),
    token: str = "",
) -> PrefactorApiError:
    """The exception for an answer of status 400 or more.

    A status of 400 to 499 is a refusal only with a body in the API's error form. With another body
    it is a :class:`PrefactorContractError`, because a gateway may have answered.

    ``call`` is the method and path, ``retry_after`` the header of that name, ``passing`` the
    statuses below 500 that are configured as "try again". The texts of the answer are
    :func:`quoted`: a server may repeat the ``token`` that it received, the exception must not.
    """
    try:
        answer = decode(body, ErrorAnswer)
    except msgspec.DecodeError:
        answer = None
    if answer and answer.code is None and answer.status != "error" and not answer.errors:
        answer = None  # JSON of a gateway, not of the API
    code = quoted(answer.code or "unknown", token) if answer else "unknown"
    fields = {
        quoted(name, token): quoted(text, token) for name, text in _field_messages(answer).items()
    }
    message = f"{call} was answered {status}"
    if answer and (answer.code or answer.message):
        message += f" {code}: {quoted(answer.message or '', token)}".rstrip(": ")
    if fields:
        message += " (" + ", ".join(f"{name}: {text}" for name, text in fields.items()) + ")"

    kind = _kind(status, passing, answer)
    if kind is PrefactorAuthError:
        message += (
            "; is the API token right, and meant for this?"
            if token
            else "; no API token was given: pass api_token=, or set PREFACTOR_API_TOKEN"
        )
    elif kind is PrefactorContractError:
        message += ", not in the form of the Prefactor API; is api_url right?"
    wait = _wait(answer, retry_after)
    if kind is PrefactorValidationError:
        return PrefactorValidationError(
            message, code=code, status_code=status, retry_after=wait, errors=fields
        )
    return kind(message, code=code, status_code=status, retry_after=wait)


def _kind(
    status: int, passing: Collection[int], answer: ErrorAnswer | None
) -> type[PrefactorApiError]:
    if status == 429:
        return PrefactorRateLimitError
    if status >= 500 or status in passing:
        return PrefactorServerError
    if answer is None:
        # From a gateway, or from a server that is not the API: the API has refused nothing.
        return PrefactorContractError
    return _REFUSALS.get(status, PrefactorApiError)


def _field_messages(answer: ErrorAnswer | None) -> dict[str, str]:
    messages: dict[str, str] = {}
    errors = answer.errors if answer else None
    of_fields = errors if isinstance(errors, dict) else {}
    for name, raw in islice(of_fields.items(), _FIELDS):
        try:
            error = decode(raw, FieldError)
            messages[name] = error.message or error.code
        except msgspec.DecodeError:
            messages[name] = _text(raw)
    return messages


def _text(raw: msgspec.Raw) -> str:
    try:
        return msgspec.json.encode(decode(raw, object)).decode()
    except msgspec.DecodeError:
        return bytes(raw).decode("utf-8", "replace")


def _wait(answer: ErrorAnswer | None, retry_after: str | None) -> float | None:
    """The requested wait in seconds: ``retry_after_ms`` of the body, or else the header."""
    if answer and answer.retry_after_ms is not None:
        return max(0.0, answer.retry_after_ms / 1000)
    if retry_after is None:
        return None
    try:
        seconds = float(retry_after)
        return max(0.0, seconds) if math.isfinite(seconds) else None
    except ValueError:
        pass
    try:
        until = parsedate_to_datetime(retry_after)
        if until.tzinfo is None:
            until = until.replace(tzinfo=UTC)
        return max(0.0, (until - datetime.now(UTC)).total_seconds())
    except (ValueError, OverflowError):
        return None
