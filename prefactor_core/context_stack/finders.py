"""Finders: functions that find the current span of another library, where that is recorded too.

OpenTelemetry has a current span of its own. What records such spans adds a finder while its client
is open, so that spans of this library find their run and their parent inside of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, Protocol, TypeAlias

from prefactor_core.context_stack.entries import OpenSpan


class FoundSpan(OpenSpan, Protocol):
    """A recorded span that is the current one of another library. It may have ended."""

    @property
    def instance(self) -> object:
        """The handle of its run, if there is one."""
        ...


Finder: TypeAlias = Callable[[], FoundSpan | None]
"""Returns the current span of the calling context; None without one, or if its run is over. It is
called in any thread, returns at once and raises nothing."""

finders: Final[dict[Finder, object]] = {}
"""The finders, each with the recorder of its client. Empty in most programs, so that a span costs
no call more."""


def found_spans() -> Iterator[FoundSpan]:
    """The current spans of other libraries."""
    for find in list(finders):
        found = find()
        if found is not None:
            yield found


def found_in(instance_id: str) -> FoundSpan | None:
    """The current span of another library, if it is one of this run."""
    for found in found_spans():
        if found.instance_id == instance_id:
            return found
    return None


def remove_finders(recorder: object) -> None:
    """Remove the finders of a client that closes."""
    for find in [find for find, owner in list(finders.items()) if owner is recorder]:
        finders.pop(find, None)
