"""Failure kinds: how a worker reacts to a failed attempt. Pure."""

from __future__ import annotations

from enum import Enum, auto

from msgspec import UNSET

from prefactor_core.exceptions import (
    OperationError,
    PrefactorApiError,
    PrefactorAuthError,
    PrefactorConflictError,
    PrefactorContractError,
    PrefactorNotFoundError,
    PrefactorRateLimitError,
    PrefactorServerError,
    PrefactorUnreachableError,
    PrefactorValidationError,
    PrefactorValueError,
)
from prefactor_core.operations import (
    CreateSpan,
    FinishAgentInstance,
    FinishSpan,
    Operation,
    RegisterAgentInstance,
    StartAgentInstance,
)

_NO_SUCH_CALL = (404, 405, 501)
_TOO_LARGE = 413
_FIRM = (400, 409, 422)
_NOT_NOW = (408, 425)
_OF_A_GATEWAY = (502, 504)
_OUT_OF_SERVICE = (408, 425, 429, 502, 503, 504)


class FailureKind(Enum):
    """The meaning of a failed attempt.

    ``ALREADY_DONE``: the run or span is in the state that the operation asks for, as if delivered.
    ``REFUSED``: the API does not accept the operation, if it accepts anything at all.
    ``TOO_LARGE``: the API would accept it if it were smaller.
    ``ID_REFUSED``: the API would accept it without the given id.
    ``PARENT_REFUSED``: the API would accept it without the given parent.
    ``ENVIRONMENT_REFUSED``: the API may accept it without the added runtime environment.
    ``DENIED``: the API does not accept the token, whatever is sent with it.
    ``BUSY``: the API is up and asks to wait (429).
    ``FAILED``: no answer, or a meaningless one: alone it does not show whose fault it is.
    """

    ALREADY_DONE = auto()
    REFUSED = auto()
    TOO_LARGE = auto()
    ID_REFUSED = auto()
    PARENT_REFUSED = auto()
    ENVIRONMENT_REFUSED = auto()
    DENIED = auto()
    BUSY = auto()
    FAILED = auto()


def classify(operation: Operation, error: Exception) -> FailureKind:
    """The kind of ``error``, for ``operation`` sent by its own endpoint."""
    if isinstance(error, PrefactorConflictError) and isinstance(
        operation, FinishSpan | FinishAgentInstance | StartAgentInstance
    ):
        # Begun or ended already: by an earlier attempt, or by another program.
        return FailureKind.ALREADY_DONE
    if (
        isinstance(operation, RegisterAgentInstance)
        and operation.is_by_id
        and isinstance(error, PrefactorValidationError)
        and "id" in _fields(error)
    ):
        return FailureKind.ID_REFUSED
    if (
        isinstance(operation, RegisterAgentInstance)
        and operation.runtime_environment is not UNSET
        and isinstance(error, PrefactorValidationError | PrefactorConflictError)
    ):
        # The API keeps an agent's version as it was stored first under its external_identifier,
        # and what the agent runs on changes with every update of a package.
        return FailureKind.ENVIRONMENT_REFUSED
    if isinstance(operation, CreateSpan) and isinstance(error, PrefactorValidationError):
        fields = _fields(error)
        if "parent_span_id" in fields and operation.parent_span_id is not None:
            return FailureKind.PARENT_REFUSED
        if "id" in fields:
            return FailureKind.ID_REFUSED
    if (
        isinstance(operation, CreateSpan)
        and isinstance(error, PrefactorNotFoundError)
        and operation.parent_span_id is not None
    ):
        # The parent is missing, or the run: the answer to a create without parent shows which.
        return FailureKind.PARENT_REFUSED
    return classify_request(error)


def _fields(error: PrefactorValidationError) -> set[str]:
    return {name.removeprefix("details.") for name in error.errors}


def classify_request(error: Exception) -> FailureKind:
    """The kind of ``error``, for a request of any number of operations."""
    match error:
        case PrefactorAuthError():
            return FailureKind.DENIED
        case PrefactorRateLimitError():
            return FailureKind.BUSY
        case PrefactorUnreachableError() | PrefactorServerError() | PrefactorContractError():
            return FailureKind.FAILED
        case PrefactorApiError() if error.status_code == _TOO_LARGE:
            return FailureKind.TOO_LARGE
        case PrefactorApiError() if error.status_code in _NOT_NOW:
            return FailureKind.FAILED
        case PrefactorApiError() | PrefactorValueError() | OperationError():
            return FailureKind.REFUSED
        case _:
            # A bug of ours, or an error that the transport did not map.
            return FailureKind.FAILED


def exists_already(operation: Operation, error: Exception) -> bool:
    """Whether ``error`` says that the API has a run or span with the id that it was to use."""
    if isinstance(operation, RegisterAgentInstance) and not operation.asks_for_id:
        return False
    if not isinstance(operation, RegisterAgentInstance | CreateSpan):
        return False
    if isinstance(error, PrefactorConflictError):
        return error.code == "already_exists"
    return isinstance(error, PrefactorValidationError) and any(
        "taken" in problem
        for name, problems in error.errors.items()
        if name.removeprefix("details.") == "id"
        for problem in problems
    )


def was_not_sent(error: Exception) -> bool:
    """Whether the request could not be written: the API has no part in the failure."""
    return isinstance(error, PrefactorValueError | OperationError)


def is_firm(error: Exception) -> bool:
    """Whether ``error`` has a status by which the API refuses an operation that it has read."""
    return isinstance(error, PrefactorApiError) and error.status_code in _FIRM


def is_out_of_service(error: Exception) -> bool:
    """Whether ``error`` comes from the state of the API or of the network, and not from the
    operation."""
    return (
        not isinstance(error, PrefactorApiError)
        or error.status_code is None
        or error.status_code in _OUT_OF_SERVICE
        or (isinstance(error, PrefactorContractError) and error.status_code >= 400)
    )


def outcome_is_unknown(error: Exception) -> bool:
    """Whether the API may have done the operation all the same: there is no answer of its own, or
    an unreadable one."""
    match error:
        case PrefactorUnreachableError():
            return True
        case PrefactorContractError():
            return error.status_code is None or error.status_code < 400
        case PrefactorServerError():
            return error.status_code in _OF_A_GATEWAY
        case _:
            return False


def is_too_large(error: Exception) -> bool:
    """Whether the API, or something before it, says that the request is too large."""
    return isinstance(error, PrefactorApiError) and error.status_code == _TOO_LARGE


def lacks_call(error: Exception) -> bool:
    """Whether ``error`` says that the API has no such endpoint."""
    return isinstance(error, PrefactorApiError) and error.status_code in _NO_SUCH_CALL


def is_of_the_api(error: Exception) -> bool:
    """Whether ``error`` is an answer in the API's own form, and not a gateway's."""
    if isinstance(error, PrefactorServerError | PrefactorRateLimitError):
        # A gateway's answer has the same class. Only the API gives it a code.
        return error.code != "unknown"
    return (
        isinstance(error, PrefactorApiError)
        and error.status_code is not None
        and not isinstance(error, PrefactorContractError)
    )
