"""The contract between the walk through a payload and the kinds of values in it. Pure."""

# Values of any type come here.
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Final, Protocol, TypeAlias

from prefactor_core.payloads.markers import shown
from prefactor_core.payloads.timebox import TooSlowError

Around: TypeAlias = tuple[object, ...]
"""The containers around a value, outermost first."""

ABSENT: Final = object()
"""Stands for a field that is not recorded."""


class Later:
    """A value inside of ``around`` whose own code must run first; in this class, its ``repr``."""

    __slots__ = ("around", "value", "walk")

    is_leaf: ClassVar = True
    """Whether it becomes the same at every place of a payload."""

    def __init__(self, walk: Walk, value: Any, around: Around = ()) -> None:
        self.walk = walk
        self.value = value
        self.around = around

    def ask(self) -> object:
        """Run that code, in another thread."""
        return shown(self.value)

    def then(self, given: Any) -> object:
        """Return the outcome as JSON values, or another :class:`Later`; in the caller's thread."""
        return self.walk.text(given)

    def otherwise(self, error: Exception) -> object:
        """Do the same after the code raised or took too long."""
        return self.walk.failed(type(self.value), error)


class Walk(Protocol):
    """The walk through a payload, as the kinds of values use it."""

    limit: int

    def plain(self, value: object, around: Around) -> object:
        """Return a part as values of JSON, or a :class:`Later`."""

    def text(self, text: str) -> str:
        """Return a string, without lone surrogates."""
        ...

    def listed(self, items: list[Any], around: Around) -> object:
        """Return a list of these items; the list may be changed."""

    def mapped(self, items: Iterable[tuple[Any, Any]], around: Around) -> object:
        """Return an object of these keys and values."""

    def object_of(
        self, names: list[str], items: tuple[tuple[Any, Any], ...], around: Around
    ) -> dict[str, object]:
        """Return an object of these items under these names."""
        ...

    def enter(self, value: object, around: Around, parts: Callable[[Around], object]) -> object:
        """Return the outcome of ``parts``, or a marker for a circle or for too deep a container."""

    def fits(self, tree: object) -> bool:
        """Whether there is room for a tree of JSON values; if so, the room is taken."""
        ...

    def lose(self, reason: str) -> None:
        """Note why a value is not recorded whole."""

    def failed(self, cls: type, error: Exception) -> str:
        """Return the marker for a value whose own code raised or was too slow."""
        ...


Kind: TypeAlias = Callable[[Walk, Any, Around], object]
"""Turns a value into values of JSON, or a :class:`Later`. May raise any :class:`Exception`."""


def shown_instead(later: Later, error: Exception) -> object:
    """Return the ``repr``, or a marker, for a value that could not list its parts."""
    if isinstance(error, TooSlowError):
        return later.walk.failed(type(later.value), error)
    later.walk.lose("unreadable")
    return Later(later.walk, later.value)
