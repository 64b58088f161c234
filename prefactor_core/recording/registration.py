"""The registration of a run: what becomes of it, and the caller that waits for that."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

import anyio

from prefactor_core.exceptions import (
    PrefactorAuthError,
    PrefactorConflictError,
    PrefactorNotFoundError,
    PrefactorValidationError,
)


class Registrations(Protocol):
    """What becomes of the registrations that were queued: the delivery, seen from here."""

    @property
    def is_away(self) -> bool:
        """Whether the API is known to be away: nobody has to wait for it."""
        ...

    @property
    def is_closing(self) -> bool:
        """Whether nothing more can be queued."""
        ...

    @property
    def answers(self) -> int:
        """How many requests it has answered as it should."""
        ...

    @property
    def takes_environment(self) -> bool:
        """Whether it takes a runtime environment that is added, as far as it has shown."""
        ...

    def skip_batch_window(self) -> AbstractContextManager[None]:
        """While somebody waits, nothing waits for company."""
        ...

    def gave_up_waiting(self, seconds: float) -> None:
        """Somebody has waited so long, and no request was answered."""
        ...


class RegistrationWaiter:
    """A caller that waits for the answer to a registration, and not for endless attempts.

    ``hands_error_on``: whether the caller gets the error of a refusal, and so knows of it.
    """

    def __init__(self, max_retries: int, *, hands_error_on: bool) -> None:
        self.over = anyio.Event()
        self.error: Exception | None = None
        self._attempts_left = max_retries + 1
        self._hands_error_on = hands_error_on

    def registered(self) -> None:
        self.over.set()

    def refused(self, error: Exception) -> bool:
        self.error = error
        self.over.set()
        return self._hands_error_on

    def failed(self) -> None:
        self._attempts_left -= 1
        if self._attempts_left <= 0:
            self.over.set()

    def ended(self) -> None:
        self.over.set()


def way_out(error: Exception) -> str:
    """What to do about a refused registration."""
    if isinstance(error, PrefactorAuthError):
        return "Check the API token (api_token, or PREFACTOR_API_TOKEN in the environment)"
    if isinstance(error, PrefactorNotFoundError):
        return "Check agent_id: it must be the id of an agent of this account"
    fields = error.errors if isinstance(error, PrefactorValidationError) else {}
    names = {name.removeprefix("details.") for name in fields}
    if isinstance(error, PrefactorConflictError) or "external_identifier" in names:
        return (
            "An external_identifier is unique for each agent: leave it out, or make another for "
            "each run"
        )
    if isinstance(error, PrefactorValidationError):
        return "Correct what agent_instance() is given"
    return "With on_refused='raise' it is an error of agent_instance()"
