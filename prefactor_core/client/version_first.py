"""The arguments of a new run in the order of prefactor-core 0.5.3: the version comes first."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from functools import wraps
from typing import Any, Final, TypeVar

T = TypeVar("T")

_ORDER: Final = (
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
    """Accept the other order, too. The first argument tells them apart: a version is a mapping, the
    id of an agent is not."""

    @wraps(method)
    async def call(self: object, /, *args: Any, **named: Any) -> T:
        if args and isinstance(args[0], Mapping) and len(args) <= len(_ORDER):
            return await method(self, **dict(zip(_ORDER, args, strict=False)), **named)
        return await method(self, *args, **named)

    return call
