"""What goes through a payload, and what it is told of a value; the contract of both. Pure."""

# Values of any type come here, and nothing is known of them.
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Final, Protocol, TypeAlias

from prefactor_core.payloads.markers import shown
from prefactor_core.payloads.timebox import TooSlowError

Around: TypeAlias = tuple[object, ...]
"""The containers that a value is inside of, outermost first."""

ABSENT: Final = object()
"""Stands for a field that is not recorded."""


class Later:
    """A value inside of ``around`` whose own code has to run first; here its ``repr``."""

    __slots__ = ("around", "value", "walk")

    is_leaf: ClassVar = True
    """Whether what it becomes is the same wherever it stands."""

    def __init__(self, walk: Walk, value: Any, around: Around = ()) -> None:
        self.walk = walk
        self.value = value
        self.around = around

    def ask(self) -> object:
        """Run that code; in another thread."""
        return shown(self.value)

    def then(self, given: Any) -> object:
        """What JSON has of what it gave, or another :class:`Later`; in the caller's thread."""
        return self.walk.text(given)

    def otherwise(self, error: Exception) -> object:
        """The same, where it raised or took too long."""
        return self.walk.failed(type(self.value), error)


class Walk(Protocol):
    """What goes through a payload, and is asked about the parts of a value."""

    limit: int

    def plain(self, value: object, around: Around) -> object:
        """What JSON has of a part, or a :class:`Later`."""

    def text(self, text: str) -> str:
        """A text."""
        ...

    def listed(self, items: list[Any], around: Around) -> object:
        """A list of items, which is nobody else's."""

    def mapped(self, items: Iterable[tuple[Any, Any]], around: Around) -> object:
        """An object of keys and values."""

    def enter(self, value: object, around: Around, parts: Callable[[Around], object]) -> object:
        """What ``parts`` makes of a container, unless that holds itself or is too deep."""

    def fits(self, tree: object) -> bool:
        """Whether there is room for a tree of nothing but what JSON has; if so, it is taken."""
        ...

    def lose(self, reason: str) -> None:
        """Not all of a value is recorded."""

    def failed(self, cls: type, error: Exception) -> str:
        """What stands for a value whose own code raised or was too slow."""
        ...


Kind: TypeAlias = Callable[[Walk, Any, Around], object]
"""Makes of a value what JSON has, or a :class:`Later`. May raise any :class:`Exception`."""


def shown_instead(later: Later, error: Exception) -> object:
    """What is left of a value that could not say what is in it."""
    if isinstance(error, TooSlowError):
        return later.walk.failed(type(later.value), error)
    later.walk.lose("unreadable")
    return Later(later.walk, later.value)
