"""Every error that this library raises, under one base.

Nothing of httpx, sqlite3 or msgspec leaves a public function: what the transport
raises is mapped to a :class:`PrefactorApiError` at the edge (``api/``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, cast

from prefactor_core.models.lifecycle import OperationType
from prefactor_core.models.statistics import Statistics


class PrefactorCoreError(Exception):
    """The base of every error of this library."""

    # For inspect.signature(): Python tells none of its own exceptions.
    def __init__(self, *args: object) -> None:
        super().__init__(*args)


class PrefactorValueError(PrefactorCoreError, ValueError):
    """A value that cannot be right; the message names the field, the bound, and the value or,
    where that may be a payload or a secret, its kind."""


class PrefactorTypeError(PrefactorCoreError, TypeError):
    """Something is done with an object that cannot be done with its kind: a copy of a run, say."""


class ClientNotInitializedError(PrefactorCoreError):
    """The client is used before its scope was opened, or after it was closed."""


class ClientAlreadyInitializedError(PrefactorCoreError):
    """The client's scope is opened a second time while it is open."""


class ClientScopeError(PrefactorCoreError):
    """The scope of a client, or of a run, is left in another task than the one that entered it,
    or is not to be entered this way."""


class OperationError(PrefactorCoreError):
    """Something is asked for that the API has no operation for.

    ``operation_type`` is the kind of operation, where one is concerned.
    """

    def __init__(self, message: str, operation_type: OperationType | None = None) -> None:
        super().__init__(message)
        self.operation_type = operation_type


class PrefactorTerminatedError(PrefactorCoreError):
    """The API has stopped the run: it must not go on.

    ``reason``: why, as the API says it. ``instance_id``: which run.
    """

    def __init__(self, reason: str, instance_id: str | None = None) -> None:
        super().__init__(reason, instance_id)
        self.reason = reason
        self.instance_id = instance_id

    def __str__(self) -> str:
        run = "agent instance" if self.instance_id is None else f"agent instance {self.instance_id}"
        return f"Prefactor has terminated {run}: {self.reason}"


class PrefactorTelemetryFailureError(PrefactorCoreError):
    """Something that was recorded could not be delivered, and ``raise_on_loss`` is set.

    ``statistics``: the balance of the scope.
    """

    def __init__(self, message: str, statistics: Statistics) -> None:
        super().__init__(message, statistics)
        self.statistics = statistics

    def __str__(self) -> str:
        return str(self.args[0])

    @property
    def dropped_operations(self) -> int:
        """How many operations were lost."""
        return self.statistics.lost


class InstanceNotFoundError(PrefactorCoreError):
    """An agent instance id that this client does not know, or that is no PFID."""


class SpanNotFoundError(PrefactorCoreError):
    """A span id that belongs to no open span of this client."""


class PrefactorApiError(PrefactorCoreError):
    """The API refused a call, or could not be asked.

    ``code`` is the API's own word (``"unknown"`` where it gave none), ``status_code`` the HTTP
    status (None where no answer came), ``retry_after`` the wait before another attempt that
    the API asked for, in seconds (None where it asked for none).
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
    """The token is wrong, expired, or not for this call (401, 403)."""


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
    """The API failed to do what it was asked (5xx, or a status configured as passing)."""


class PrefactorUnreachableError(PrefactorApiError):
    """No answer came: no connection, a broken one, or a time-out."""


class PrefactorContractError(PrefactorApiError):
    """The answer is not in the form of the API: not JSON, a part missing, or too long.

    Also an error status of what stands before the API, a gateway say, except 429 and 5xx.
    """


# An id, a word or blanks; a UUID has 36 characters, and secrets have more.
_WORD: Final = r"[\w.:@/+-]{0,36}|\s{0,36}"


def in_message(value: object) -> str:
    """What a message says of a wrong value: a number or a word as it is, else only its kind.

    It may be a payload, or a secret in the wrong place.
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
