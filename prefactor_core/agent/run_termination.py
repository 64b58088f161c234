"""RunTermination: whether the API has terminated a run."""

from __future__ import annotations

from prefactor_core.export.identity import RunIdentity


class RunTermination:
    """Whether the API has terminated one run: a view that changes with it, for any thread."""

    def __init__(self, run: RunIdentity | None) -> None:
        self._run = run

    @property
    def instance_id(self) -> str | None:
        """The id of the run; None if there was none to choose."""
        return None if self._run is None else self._run.id

    @property
    def reason(self) -> str | None:
        """The reason why the API has terminated the run; None if it has not."""
        return None if self._run is None else self._run.termination.reason
