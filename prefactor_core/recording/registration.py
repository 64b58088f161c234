"""The registration of a run, and the caller that waits for the outcome."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from typing import Protocol

import anyio

from prefactor_core.exceptions import (
    PrefactorAuthError,
    PrefactorConflictError,
    PrefactorNotFoundError,
    PrefactorValidationError,
)
from prefactor_core.exceptions.log import log

logger = logging.getLogger("prefactor_core.recording.registration")


class Registrations(Protocol):
    """The exporter, for the manager that queues registrations."""

    @property
    def is_away(self) -> bool:
        """Whether the API is known to be unreachable: callers need not wait for it."""
        ...

    @property
    def answers(self) -> int:
        """The number of requests that the API has answered without an error."""
        ...

    @property
    def takes_environment(self) -> bool:
        """Whether the API accepts the added runtime environment, as far as it has shown."""
        ...

    def skip_batch_window(self) -> AbstractContextManager[None]:
        """While the block runs, workers skip the batch window."""
        ...

    def gave_up_waiting(self, seconds: float) -> None:
        """Note that a caller has waited ``seconds``, in which the API answered no request."""
        ...


class RegistrationWaiter:
    """A caller that waits for the outcome of a registration, at most ``max_retries`` + 1 attempts.

    ``raises_refusal``: whether the caller raises the error of a refusal. ``over``: set when the
    wait ends. ``error``: of a refusal.
    """

    def __init__(self, max_retries: int, *, raises_refusal: bool) -> None:
        self.over = anyio.Event()
        self.error: Exception | None = None
        self._attempts_left = max_retries + 1
        self._raises_refusal = raises_refusal

    def registered(self) -> None:
        self.over.set()

    def refused(self, error: Exception) -> bool:
        self.error = error
        self.over.set()
        return self._raises_refusal

    def failed(self) -> None:
        self._attempts_left -= 1
        if self._attempts_left <= 0:
            self.over.set()

    def ended(self) -> None:
        self.over.set()


class RefusalLog:
    """Logs the refusals of runs that go on unrecorded: the first, the second, the fourth..."""

    def __init__(self) -> None:
        self._refusals = 0

    def log(self, agent_id: str | None, error: Exception) -> None:
        self._refusals += 1
        if self._refusals & (self._refusals - 1):
            return
        message = (
            "a run of agent %s goes on unrecorded (number %d): the Prefactor API does not register "
            "it: %s. %s"
        )
        log(logger, logging.ERROR, message, agent_id, self._refusals, error, advice_for(error))


def advice_for(error: Exception) -> str:
    """The advice for a refused registration, for a log line."""
    if isinstance(error, PrefactorAuthError):
        return "Check the API token (api_token, or PREFACTOR_API_TOKEN in the environment)"
    if isinstance(error, PrefactorNotFoundError):
        return "Check agent_id: it must be the id of an agent of this account"
    fields = error.errors if isinstance(error, PrefactorValidationError) else {}
    names = {name.removeprefix("details.") for name in fields}
    if isinstance(error, PrefactorConflictError) or "external_identifier" in names:
        return (
            "An external_identifier is unique for each agent: leave it out, or use another for "
            "each run"
        )
    if isinstance(error, PrefactorValidationError):
        return "Correct the arguments of agent_instance()"
    return "Use on_refused='raise' to raise this error from agent_instance()"
