"""What a failed attempt means for its operation. Pure."""

from __future__ import annotations

from enum import Enum, auto

from prefactor_core.exceptions import (
    OperationError,
    PrefactorApiError,
    PrefactorConflictError,
    PrefactorContractError,
    PrefactorRateLimitError,
    PrefactorServerError,
    PrefactorUnreachableError,
    PrefactorValueError,
)
from prefactor_core.operations import FinishAgentInstance, FinishSpan, Operation


class Verdict(Enum):
    """What to do about a failed attempt."""

    SETTLED = auto()
    """The API is where the operation wanted it: as good as delivered."""

    REFUSED = auto()
    """The API does not take this operation; another attempt would not change that."""

    AWAY = auto()
    """The API is not there, or is busy: keep the operation for as long as it takes."""

    FAULT = auto()
    """The API failed; whether at this operation or altogether, this answer does not say."""


def judge(operation: Operation, error: Exception) -> Verdict:
    """What ``error`` means for ``operation``."""
    match error:
        case PrefactorConflictError() if isinstance(operation, FinishSpan | FinishAgentInstance):
            # Already ended: an earlier attempt got through, or somebody else ended it.
            return Verdict.SETTLED
        case PrefactorUnreachableError() | PrefactorRateLimitError():
            return Verdict.AWAY
        case PrefactorServerError() | PrefactorContractError():
            return Verdict.FAULT
        case PrefactorApiError() | PrefactorValueError() | OperationError():
            return Verdict.REFUSED
        case _:
            # A bug of ours, or something that the transport let through.
            return Verdict.FAULT
