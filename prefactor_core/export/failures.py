"""What a failed attempt means. Pure."""

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
    """What to do about a failed attempt."""

    SETTLED = auto()
    """The API is where the operation wanted it: as good as delivered."""

    REFUSED = auto()
    """The API does not take this, if it takes anything at all."""

    TOO_LARGE = auto()
    """The API would take it if it were smaller."""

    ID_REFUSED = auto()
    """The API would take it without the id that was given."""

    PARENT_REFUSED = auto()
    """The API would take it without the parent that was given."""

    ENVIRONMENT_REFUSED = auto()
    """The API may take it without the runtime environment that was added."""

    DENIED = auto()
    """The API does not take the token, whatever is sent with it."""

    BUSY = auto()
    """The API is there and asks for patience."""

    FAILED = auto()
    """No answer, or none that means anything: by itself it does not say whose fault it is."""


def judge(operation: Operation, error: Exception) -> FailureKind:
    """What ``error`` means for ``operation``, sent by its own endpoint."""
    if isinstance(error, PrefactorConflictError) and isinstance(
        operation, FinishSpan | FinishAgentInstance | StartAgentInstance
    ):
        # Begun or ended already: an earlier attempt got through, or it was somebody else.
        return FailureKind.SETTLED
    if (
        isinstance(operation, RegisterAgentInstance)
        and operation.runtime_environment is not UNSET
        and isinstance(error, PrefactorValidationError | PrefactorConflictError)
    ):
        # The API keeps an agent's version as it was stored first under its external_identifier,
        # and what the agent runs on changes with every update of a package.
        return FailureKind.ENVIRONMENT_REFUSED
    if isinstance(operation, CreateSpan) and isinstance(error, PrefactorValidationError):
        fields = {name.removeprefix("details.") for name in error.errors}
        if "parent_span_id" in fields and operation.parent_span_id is not None:
            return FailureKind.PARENT_REFUSED
        if "id" in fields:
            return FailureKind.ID_REFUSED
    if (
        isinstance(operation, CreateSpan)
        and isinstance(error, PrefactorNotFoundError)
        and operation.parent_span_id is not None
    ):
        # The parent, or else the run: without the parent, the answer tells.
        return FailureKind.PARENT_REFUSED
    return judge_request(error)


def judge_request(error: Exception) -> FailureKind:
    """What ``error`` means for a request of any number of operations."""
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
            # A bug of ours, or something that the transport let through.
            return FailureKind.FAILED


def was_not_sent(error: Exception) -> bool:
    """Whether the request could not even be written: no API has a part in that."""
    return isinstance(error, PrefactorValueError | OperationError)


def is_firm(error: Exception) -> bool:
    """Whether ``error`` is of the statuses by which an API refuses what it has looked at."""
    return isinstance(error, PrefactorApiError) and error.status_code in _FIRM


def is_out_of_service(error: Exception) -> bool:
    """Whether ``error`` speaks of the state that the API is in, or is none of its answers, rather
    than of what was sent."""
    return (
        not isinstance(error, PrefactorApiError)
        or error.status_code is None
        or error.status_code in _OUT_OF_SERVICE
        or (isinstance(error, PrefactorContractError) and error.status_code >= 400)
    )


def may_be_done(error: Exception) -> bool:
    """Whether the API may have done what was asked for all the same: there is no answer of its own,
    or none that can be read."""
    match error:
        case PrefactorUnreachableError():
            return True
        case PrefactorContractError():
            return error.status_code is None or error.status_code < 400
        case PrefactorServerError():
            return error.status_code in _OF_A_GATEWAY
        case _:
            return False


def lacks_call(error: Exception) -> bool:
    """Whether ``error`` says that there is no such call."""
    return isinstance(error, PrefactorApiError) and error.status_code in _NO_SUCH_CALL


def is_of_the_api(error: Exception) -> bool:
    """Whether ``error`` is an answer in the API's own form, and not that of a gateway."""
    if isinstance(error, PrefactorServerError | PrefactorRateLimitError):
        # A gateway's has the same class. Only the API gives these a code.
        return error.code != "unknown"
    return (
        isinstance(error, PrefactorApiError)
        and error.status_code is not None
        and not isinstance(error, PrefactorContractError)
    )
