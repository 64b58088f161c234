"""The walk through a payload, and values that wait for foreign code. Pure."""

# Values of any type come here.
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from enum import Enum
from functools import partial
from numbers import Integral, Real
from types import NoneType
from typing import Any, ClassVar, Final, TypeAlias, cast

import msgspec
from msgspec import Struct

from prefactor_core.payloads.keys import BYTES, Items, as_a_name, distinct, name_of_bytes, str_types
from prefactor_core.payloads.markers import (
    CIRCULAR,
    TOO_DEEP,
    full_type_name,
    has_quick_repr,
    shown,
    slow,
    unprintable,
    utf8,
)
from prefactor_core.payloads.plain_json import MOST_PLACES, plain_encoder
from prefactor_core.payloads.redaction import NAMING, VALUES
from prefactor_core.payloads.secret_str import SecretStr
from prefactor_core.payloads.timebox import Timebox, TooSlowError
from prefactor_core.payloads.truncation import SHORT, TooLargeError, encode_within

_MAX_DEPTH: Final = 32
_MANY: Final = 100

_MEASURED: Final = 8
_EFFORT_OF_CALL: Final = 100

_SIMPLE: Final = frozenset({float, bool, NoneType})
_CONTAINERS: Final = frozenset({dict, list, tuple})

Around: TypeAlias = tuple[object, ...]
"""The containers around a value, outermost first."""

ABSENT: Final = object()
"""Stands for a field that is not recorded."""


class Walk:
    """The walk through one value. Calls of foreign code are collected and made together.

    ``kind_of`` returns the JSON form of a type. ``natively``: msgspec encodes the plain parts. That
    is faster, for a value that fits: none of their strings can be cut, no part left out.
    """

    def __init__(
        self, kind_of: Callable[[type], Kind], limit: int, lost: set[str], *, natively: bool
    ) -> None:
        self.limit = limit
        self._kind_of = kind_of
        self._is_large = not natively
        # The number of containers that may still be tried as plain.
        self._looks = 2 * MOST_PLACES if natively else 0
        # The room left in all, and the amount at which the current container has none left.
        self._room = limit if natively else _MEASURED * limit
        # The bytes that may be walked in all, those of too large parts included: shared parts that
        # are not the same everywhere are walked each time.
        self._effort = 2 * _MEASURED * limit
        self._floor = 0
        self._has_root = False
        self._lost = lost
        self._timebox = Timebox()
        # The values that wait for foreign code, with their places.
        self._waiting: list[tuple[dict[Any, object] | list[object], Any, Later]] = []
        # The containers walked so far, by id and depth, and the room they took: values that share
        # parts can be small in memory and endless as a tree.
        self._walked: dict[tuple[int, int], tuple[object, object, int]] = {}
        # The number of parts found that are not the same at every place.
        self._odd = 0

    def run(self, value: object) -> object:
        root: dict[str, object] = {}
        self._put(root, "", self.plain(value, ()))
        while self._waiting:
            waiting, self._waiting = self._waiting, []
            outcomes = self._asked([later.ask for *_, later in waiting])
            for (place, key, later), (result, error) in zip(waiting, outcomes, strict=True):
                self._put(place, key, self._after(later, result, error, place is root))
        return root[""]

    def _asked(
        self, functions: list[Callable[[], object]]
    ) -> list[tuple[object, Exception | None]]:
        try:
            return self._timebox.call_all(functions)
        except RuntimeError as error:
            if isinstance(error, RecursionError):
                raise
            # No thread can be started, for instance at the end of the interpreter.
            return [(None, error)] * len(functions)

    def _put(self, place: Any, key: Any, tree: object) -> None:
        if isinstance(tree, Later):
            self._waiting.append((place, key, tree))
            self._odd += not tree.is_leaf
            self._effort -= _EFFORT_OF_CALL
            place[key] = None  # keeps the order of the fields
        elif tree is ABSENT:
            del place[key]
        else:
            place[key] = tree

    def _after(
        self, later: Later, result: object, error: Exception | None, is_root: bool
    ) -> object:
        if error is None:
            try:
                return self._bounded(partial(later.then, result), is_root)
            except (TooLargeError, RecursionError):
                raise
            except Exception as raised:
                error = raised
        return later.otherwise(error)

    def plain(self, value: object, around: Around) -> object:
        """Return ``value``, inside of the containers ``around``, as JSON values or a ``Later``."""
        cls = type(value)
        try:
            if cls is str:
                return self.text(cast("str", value))
            if cls in _SIMPLE or issubclass(cls, Later):
                return value
            if (
                self._looks > 0
                and (cls in _CONTAINERS or issubclass(cls, Struct))
                and (encoded := self._encoded(value)) is not None
            ):
                return msgspec.json.decode(encoded)
            return self._kind_of(cls)(self, value, around)
        except (TooLargeError, RecursionError):
            raise
        except Exception as error:
            if cls is int:
                return self.failed(int, error)  # more digits than Python writes
            return Later(self, value)

    def _encoded(self, value: object) -> bytes | None:
        """Return the JSON of a plain value; None for another, a too large or a too deep one."""
        places = [value]
        encoded: bytes | None = None
        try:
            encoded = plain_encoder.encode(places, self._room, self._looks)
        except RecursionError:
            self._looks = 0  # its parts are about as deep
        except Exception:
            pass  # too large, or with a lone surrogate
        self._looks -= len(places)
        if encoded is not None:
            self._room -= len(encoded)
        return encoded

    def text(self, text: str) -> str:
        """Return a string, without lone surrogates unless it is too large to be kept."""
        self._take(min(len(text), SHORT) + 1)
        # Surrogates in a string that is too large to be kept are replaced when it is cut.
        return text if len(text) > self.limit else utf8(text)

    def enter(self, value: object, around: Around, parts: Callable[[Around], object]) -> object:
        """Return the outcome of ``parts``, or a marker for a circle or a too deep container."""
        for outer in around:
            if outer is value:
                self._odd += 1
                return CIRCULAR
        key = id(value), len(around)
        if (known := self._walked.get(key)) is not None:
            self._take(known[2])
            return known[1]
        if len(around) == _MAX_DEPTH:
            self.lose("too_deep")
            return TOO_DEEP
        is_root, self._has_root = not self._has_root, True
        room, odd = self._room, self._odd
        tree = self._bounded(partial(parts, (*around, value)), is_root)
        if self._odd == odd and not isinstance(tree, Later):
            self._walked[key] = value, tree, room - self._room
        return tree

    def _bounded(self, parts: Callable[[], object], is_root: bool) -> object:
        """Return the outcome of ``parts``, or a marker for a container that alone is too large."""
        if not self._is_large or is_root:
            return parts()
        room, floor = self._room, self._floor
        self._floor = max(0, room - self.limit)
        try:
            return parts()
        except TooLargeError:
            # Of nested containers the innermost is left out: one that has no room for its own
            # parts, or one that took more than a payload when the room for all was used up.
            if (self._floor == 0 and room - self._room <= self.limit) or self._effort < 0:
                raise
            self.lose("truncated")
            self._room = room - SHORT
            return {"$truncated": {"more_than_bytes": self.limit}}
        finally:
            # Containers inside do not count: together, fit() decides which of them are left out.
            self._floor = max(0, floor - (room - self._room))

    def listed(self, items: list[Any], around: Around) -> object:
        """Return a list of these items; ``items`` may be changed."""
        self._take(2 * len(items))  # 0,
        if len(items) > _MANY and (numbers := _numbers(items)) is not None:
            return numbers
        if len(items) == 2:
            items[0] = as_a_name(items[0])
        tree: list[object] = []
        for item in items:
            part = self.plain(item, around)
            tree.append(part)
            if isinstance(part, Later):
                self._put(tree, len(tree) - 1, part)
        return tree

    def mapped(self, items: Iterable[tuple[Any, Any]], around: Around) -> object:
        """Return an object of these keys and values."""
        if isinstance(items, Collection):
            self._check(5 * len(items))  # before they are copied
        items = tuple(items)
        self._take(5 * len(items))  # "":0,
        most = self.limit + 1
        names = [utf8(key[:most]) if type(key) is str else self._name_of(key) for key, _ in items]
        if None in names:
            return _Keys(self, items, around, names)
        return self.object_of(cast("list[str]", names), items, around)

    def object_of(self, names: list[str], items: Items, around: Around) -> dict[str, object]:
        if len(set(names)) < len(names):
            names = distinct(names, items)
        tree: dict[str, object] = {}
        is_named = not VALUES.isdisjoint(names)
        for name, (_, item) in zip(names, items, strict=True):
            self._take(len(name))
            if is_named and name in NAMING:
                item = as_a_name(item)
            self._put(tree, name, self.plain(item, around))
        return tree

    def _name_of(self, key: object) -> str | None:
        """Return a key as a string; None if its own code must run for that."""
        cls = type(key)
        if issubclass(cls, Enum):
            return self._name_of(cast("Enum", key)._value_)
        if issubclass(cls, SecretStr):
            return SecretStr.MASK
        if issubclass(cls, str):
            return utf8(str.__str__(cast("str", key)))
        if issubclass(cls, BYTES):
            return name_of_bytes(memoryview(cast("bytes", key)).tobytes())
        if issubclass(cls, str_types()):
            room = self._room
            text = str(self.plain(key, ()))
            self._room = room  # counted with the other names
            return text
        if issubclass(cls, float):
            return repr(float.__float__(cast("float", key)))
        if issubclass(cls, Real) and full_type_name(cls).startswith("numpy."):
            return str(cast("Any", key).item())
        if has_quick_repr(cls) or (
            cls is tuple and all(map(has_quick_repr, map(type, cast("tuple[object, ...]", key))))
        ):
            try:
                return shown(key)
            except Exception as error:  # an int with more digits than Python writes
                return self.failed(cls, error)
        return None

    def fits(self, tree: object) -> bool:
        """Whether there is room for a tree of JSON values; if so, the room is taken."""
        try:
            size = len(encode_within(tree, self.limit))
        except BufferError:
            return False
        self._take(size)
        return True

    def lose(self, reason: str) -> None:
        """Note why a value is not recorded whole."""
        self._lost.add(reason)

    def failed(self, cls: type, error: Exception) -> str:
        """Return the marker for a value whose own code raised or was too slow."""
        if isinstance(error, TooSlowError):
            self.lose("slow")
            return slow(cls)
        self.lose("unreadable")
        return unprintable(cls)

    def _take(self, size: int) -> None:
        self._room -= size
        self._effort -= min(size, self.limit)
        self._check(0)

    def _check(self, size: int) -> None:
        """Raise :class:`TooLargeError` if there is no room for ``size`` bytes."""
        if self._room - size < self._floor or self._effort < 0:
            raise TooLargeError


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


class _Keys(Later):
    """The keys of a mapping, some of which have code of their own; ``value``: the items."""

    is_leaf = False
    __slots__ = ("_names",)

    def __init__(self, walk: Walk, value: Items, around: Around, names: list[str | None]) -> None:
        super().__init__(walk, value, around)
        self._names = names

    def ask(self) -> object:
        return [
            _shown_or_error(key) if name is None else name
            for name, (key, _) in zip(self._names, self.value, strict=True)
        ]

    def then(self, given: list[str | Exception]) -> object:
        names = [
            self.walk.failed(type(cast("object", key)), name)
            if isinstance(name, Exception)
            else name
            for name, (key, _) in zip(given, self.value, strict=True)
        ]
        return self.walk.object_of(names, self.value, self.around)

    def otherwise(self, error: Exception) -> object:
        return self.then([error if name is None else name for name in self._names])


Kind: TypeAlias = Callable[[Walk, Any, Around], object]
"""Turns a value into values of JSON, or a :class:`Later`. May raise any :class:`Exception`."""


def shown_instead(later: Later, error: Exception) -> object:
    """Return the ``repr``, or a marker, for a value that could not list its parts."""
    if isinstance(error, TooSlowError):
        return later.walk.failed(type(later.value), error)
    later.walk.lose("unreadable")
    return Later(later.walk, later.value)


def _shown_or_error(key: object) -> str | Exception:
    try:
        # A whole number of another package is one in JSON, too.
        return str(int(cast("Any", key))) if issubclass(type(key), Integral) else shown(key)
    except Exception as error:
        return error


def _numbers(items: list[Any]) -> list[Any] | None:
    """Return a long list of numbers, a vector for instance, whole; None for any other list."""
    kinds = set(map(type, items))
    if kinds == {int}:
        return items if max(map(int.bit_length, items)) <= 64 else None
    if kinds <= _SIMPLE:
        return items
    (kind, *others) = kinds
    if not others and issubclass(kind, float):
        return list(map(float.__float__, items))
    if not others and issubclass(kind, Real) and full_type_name(kind).startswith("numpy."):
        return [item.item() for item in items]
    return None
