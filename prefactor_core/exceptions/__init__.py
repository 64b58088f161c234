"""The errors of this library, under one base; and checks of values that raise them.

Values from callers come in, checked values or an error of this tree go out. No error of httpx,
sqlite3 or msgspec leaves a public function: ``api/`` maps errors of the transport to
:class:`PrefactorApiError`. Read this file first, then ``checks``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, cast

from prefactor_core.models.lifecycle import OperationType
from prefactor_core.models.statistics import Statistics


class PrefactorCoreError(Exception):
    """The base of every error of this library."""

    # For inspect.signature(): built-in exceptions have none.
    def __init__(self, *args: object) -> None:
        super().__init__(*args)


class PrefactorValueError(PrefactorCoreError, ValueError):
    """An invalid value; the message names the field, the bound, and the value, or only its kind if
    it may be a payload or a secret."""


class PrefactorTypeError(PrefactorCoreError, TypeError):
    """An operation that an object does not support, such as a copy of a run."""


class ClientNotInitializedError(PrefactorCoreError):
    """The client was used before its scope was opened, or after it was closed."""


class ClientAlreadyInitializedError(PrefactorCoreError):
    """The client's scope was opened a second time while it was open."""


class ClientScopeError(PrefactorCoreError):
    """The scope of a client or a run was left in another task than the one that entered it, or
    was entered in a wrong way."""


class OperationError(PrefactorCoreError):
    """A request that the API has no operation for.

    ``operation_type``: the kind of operation; None if no operation is concerned.
    """

    def __init__(self, message: str, operation_type: OperationType | None = None) -> None:
        super().__init__(message)
        self.operation_type = operation_type


class PrefactorTerminatedError(PrefactorCoreError):
    """The API has terminated the run: it must not go on.

    ``reason``: the API's reason; None if an adapter knows of none. ``instance_id``: the run, unless
    an adapter raised the error.
    """

    def __init__(self, reason: str | None = None, instance_id: str | None = None) -> None:
        super().__init__(reason, instance_id)
        self.reason = reason
        self.instance_id = instance_id

    def __str__(self) -> str:
        run = "agent instance" if self.instance_id is None else f"agent instance {self.instance_id}"
        reason = "" if self.reason is None else f": {self.reason}"
        return f"Prefactor has terminated {run}{reason}"


class PrefactorTelemetryFailureError(PrefactorCoreError):
    """Recorded operations could not be delivered, and ``raise_on_loss`` is set.

    ``statistics``: the balance of the scope. ``dropped_operations``: the number of lost operations.

    An adapter may raise it with other details, for a failure of its own: ``cause``, the error
    behind it, and ``operation_type``. Both are None in errors of this library, and ``statistics``
    is None in those of an adapter.
    """

    def __init__(
        self,
        message: str,
        statistics: Statistics | None = None,
        *,
        cause: Exception | None = None,
        operation_type: str | None = None,
        dropped_operations: int = 0,
    ) -> None:
        super().__init__(message, statistics)
        self.statistics = statistics
        self.cause = cause
        self.operation_type = operation_type
        self.dropped_operations = dropped_operations if statistics is None else statistics.lost

    def __str__(self) -> str:
        return str(self.args[0])


class InstanceNotFoundError(PrefactorCoreError):
    """An agent instance id that this client does not know, or that is no PFID."""


class SpanNotFoundError(PrefactorCoreError):
    """A span id that belongs to no open span of this client."""


class PrefactorApiError(PrefactorCoreError):
    """The API refused a call, or could not be reached.

    ``code``: the API's error code, ``"unknown"`` without one. ``status_code``: the HTTP status,
    None without an answer. ``retry_after``: the seconds that the API asked to wait before another
    attempt, None if it did not ask.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str = "unknown",
        status_code: int | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.status_code = status_code
        self.retry_after = retry_after


class PrefactorAuthError(PrefactorApiError):
    """The token is wrong, expired, or not valid for this call (401, 403)."""


class PrefactorNotFoundError(PrefactorApiError):
    """The API does not know an id of the call (404)."""


class PrefactorValidationError(PrefactorApiError):
    """Fields are missing or wrong (400, 422); ``errors`` maps a field to its message."""

    def __init__(
        self,
        message: str,
        *,
        code: str = "unknown",
        status_code: int | None = None,
        retry_after: float | None = None,
        errors: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, code=code, status_code=status_code, retry_after=retry_after)
        self.errors: dict[str, str] = dict(errors or {})


class PrefactorConflictError(PrefactorApiError):
    """The state of the instance or span does not allow the call (409)."""


class PrefactorRateLimitError(PrefactorApiError):
    """Too many requests (429)."""


class PrefactorServerError(PrefactorApiError):
    """The API failed (5xx, or a status of ``retry_on_status_codes``)."""


class PrefactorUnreachableError(PrefactorApiError):
    """No answer came: no connection, a broken one, or a time-out."""


class PrefactorContractError(PrefactorApiError):
    """The answer does not have the form of the API: not JSON, incomplete, or too long.

    Also an error status of a gateway in front of the API, except 429 and 5xx.
    """


def with_article(noun: str) -> str:
    """Return a noun, which may be in quotes, with its indefinite article."""
    return f"{'an' if noun.lstrip(_QUOTES)[:1] in tuple('aeioAEIO') else 'a'} {noun}"


def type_in_message(value: object) -> str:
    """Return the name of the type of a value, with its article."""
    return with_article(type(value).__qualname__)


_QUOTES: Final = "'\""

# An id, a word or blanks: a UUID has 36 characters, secrets have more.
_WORD: Final = r"[\w.:@/+-]{0,36}|\s{0,36}"


def in_message(value: object) -> str:
    """Return the text of an invalid value for a message: a number, a word, or else its kind.

    The value may be a payload, or a secret in the wrong place.
    """
    cls = type(value)
    if value is None or cls is bool or cls is float:
        return repr(value)
    if isinstance(value, str):
        text = str.__str__(value)
        is_word = cls is str and re.fullmatch(_WORD, text)
        return repr(text) if is_word else f"a text of length {len(text)}"
    if cls is int and -(1 << 64) < cast("int", value) < 1 << 64:
        return repr(value)
    if isinstance(value, type):
        return f"the class {value.__qualname__}"
    return cls.__qualname__
