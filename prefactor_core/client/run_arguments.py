"""The arguments of a new run: its options, their checks, and the order of prefactor-core 0.5.3."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any, Final, TypedDict, TypeVar

from prefactor_core.config.lazy_module import LazyModule
from prefactor_core.exceptions import PrefactorValueError, in_message
from prefactor_core.exceptions.checks import check_text, nearest_hint
from prefactor_core.operations import Purpose

if TYPE_CHECKING:
    from prefactor_core.operations import trace_headers
else:
    trace_headers = LazyModule("prefactor_core.operations.trace_headers")

T = TypeVar("T")

_ARGUMENTS: Final = (
    "agent_id",
    "agent_version",
    "agent_schema_version",
    "external_schema_version_id",
)
"""The named arguments of every call that makes a run."""


class RunOptions(TypedDict, total=False):
    """The options of a run; see :meth:`RecordingClient.create_agent_instance`."""

    environment_id: str | None
    purpose: Purpose | None
    external_identifier: str | None
    parent: trace_headers.Headers | None


def checked_version(
    agent_id: str | None,
    agent_version: Mapping[str, object] | None,
    options: Mapping[str, object],
    *others: str,
) -> Mapping[str, object]:
    """Return ``agent_version``. Raise :class:`PrefactorValueError` without one, for an unknown
    option, and for an ``agent_id`` that is none.

    ``others``: the options of the caller beside those of every run.
    """
    known = (*_ARGUMENTS, *others, *RunOptions.__annotations__)
    for name in options.keys() - RunOptions.__annotations__.keys():
        raise PrefactorValueError(
            f"there is no option {in_message(name)} of a run{nearest_hint(name, known)}: use "
            f"{', '.join(known)}"
        )
    if agent_id is not None and not (isinstance(agent_id, str) and agent_id.strip()):
        raise PrefactorValueError(
            f"agent_id must be the id of an agent, got {in_message(agent_id)}; leave it out "
            "only where the API token stands for an agent, and give agent_version= by name then"
        )
    check_text("agent_id", agent_id or "")
    if agent_version is None:
        raise PrefactorValueError(
            "agent_version is required: pass agent_version={'name': 'My agent', "
            "'external_identifier': 'v1.0.0'}, say"
        )
    return agent_version


_VERSION_FIRST: Final = (
    "agent_version",
    "agent_schema_version",
    "agent_id",
    "instance_id",
    "external_schema_version_id",
    "environment_id",
    "purpose",
    "external_identifier",
)


def accepts_version_first(
    method: Callable[..., Coroutine[Any, Any, T]],
) -> Callable[..., Coroutine[Any, Any, T]]:
    """Accept the order of prefactor-core 0.5.3, too. The first argument tells them apart: a version
    is a mapping, the id of an agent is not."""

    @wraps(method)
    async def call(self: object, /, *args: Any, **named: Any) -> T:
        if args and isinstance(args[0], Mapping) and len(args) <= len(_VERSION_FIRST):
            return await method(self, **dict(zip(_VERSION_FIRST, args, strict=False)), **named)
        return await method(self, *args, **named)

    return call
