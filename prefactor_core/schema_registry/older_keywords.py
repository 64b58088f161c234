"""Keyword arguments that have a new name, accepted under the older one, too. Pure."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., object])


def accepts_keyword(**older: str) -> Callable[[F], F]:
    """Accept an older keyword of a function: ``@accepts_keyword(name="schema_name")``.

    A call with both names raises :class:`TypeError`, as for any argument that is given twice.
    """

    def decorate(function: F) -> F:
        @wraps(function)
        def call(*args: Any, **named: Any) -> object:
            renamed = {new: named.pop(old) for old, new in older.items() if old in named}
            return function(*args, **renamed, **named)

        return cast("F", call)

    return decorate
