"""Any value as what JSON has, field by field, as far as that is possible. Pure."""

from __future__ import annotations

from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import cache, partial
from numbers import Integral, Real
from types import NoneType
from typing import Any, Final, TypeAlias, cast
from uuid import UUID

import msgspec
from msgspec import Struct

from prefactor_core.payloads.kinds import kind_of
from prefactor_core.payloads.markers import (
    CIRCULAR,
    TOO_DEEP,
    full_type_name,
    has_quick_repr,
    shown,
    slow,
    type_name,
    unprintable,
    utf8,
)
from prefactor_core.payloads.payload_walk import ABSENT, Around, Later
from prefactor_core.payloads.plain_json import MOST_PLACES, plain_encoder
from prefactor_core.payloads.redaction import NAMING, VALUES
from prefactor_core.payloads.secret_str import SecretStr
from prefactor_core.payloads.timebox import Timebox, TooSlowError
from prefactor_core.payloads.truncation import SHORT, TooLargeError, encode_within

_MAX_DEPTH: Final = 32
_MANY: Final = 100
_LONGEST_NAME: Final = 100

_MEASURED: Final = 8
_EFFORT_OF_CALL: Final = 100

Items: TypeAlias = tuple[tuple[Any, Any], ...]
"""Keys and values."""

_SIMPLE: Final = frozenset({float, bool, NoneType})
_CONTAINERS: Final = frozenset({dict, list, tuple})
_BYTES: Final = (bytes, bytearray, memoryview)
_SEPARATORS: Final = b"-_.: /"


def plain(value: object, limit: int, lost: set[str] | None = None) -> object:
    """``value`` as dicts with text as keys, lists, text, numbers, booleans and None.

    Nothing of ``value`` is in it that can change, and what is there twice may be one object.
    Containers more than 32 levels deep, and those that hold themselves, become a marker; so does
    what cannot be read, and a part that has more than ``limit`` bytes of JSON by itself, also if
    all strings were cut to 64 characters. ``lost`` gets the reasons why something of ``value`` is
    not in it.

    Raises :class:`TooLargeError` when several times ``limit`` bytes of JSON are sure to come, or
    parts without number; and of :class:`Exception` nothing else, but where the stack has no room
    for another call.
    """
    found: set[str] = set()
    try:
        tree = _Walk(limit, found, natively=True).run(value)
    except TooLargeError:
        # It may be that it fits if strings are cut, or a part of it is left out.
        found.clear()
        tree = _Walk(limit, found, natively=False).run(value)
    if lost is not None:
        lost |= found
    return tree


@cache
def _texts() -> tuple[type, ...]:
    """What is a text in JSON, and so can be a name."""
    from pathlib import PurePath  # here: it takes milliseconds to import

    return (date, time, timedelta, UUID, Decimal, PurePath)


class _Walk:
    """Goes through one value. What needs code of others waits, and is asked for together.

    ``natively``: parts that are plain are left to msgspec, which is faster. No string of them can
    be cut then, nor a part be left out: it is for what fits.
    """

    def __init__(self, limit: int, lost: set[str], *, natively: bool) -> None:
        self.limit = limit
        self._is_large = not natively
        # At how many containers it may still be looked whether they are plain.
        self._looks = 2 * MOST_PLACES if natively else 0
        # How much may still come, and where the container that is walked has no more.
        self._room = limit if natively else _MEASURED * limit
        # How much may be walked in all, also of what turns out to be too large: parts that are
        # shared and not the same everywhere are walked anew each time.
        self._effort = 2 * _MEASURED * limit
        self._floor = 0
        self._has_root = False
        self._lost = lost
        self._timebox = Timebox()
        # What waits, with its place.
        self._waiting: list[tuple[dict[Any, object] | list[object], Any, Later]] = []
        # Containers that were walked, by id and depth, and the room they took: values that share
        # parts can be small in memory and endless as a tree.
        self._walked: dict[tuple[int, int], tuple[object, object, int]] = {}
        # How often something was found that is not the same wherever its container stands.
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
            # No thread can be started: the interpreter ends, say.
            return [(None, error)] * len(functions)

    def _put(self, place: Any, key: Any, tree: object) -> None:
        if isinstance(tree, Later):
            self._waiting.append((place, key, tree))
            self._odd += not tree.is_leaf
            self._effort -= _EFFORT_OF_CALL
            place[key] = None  # it keeps its place
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
        """``value``, which is inside of the containers ``around``; or what is to be asked first."""
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
            return kind_of(cls)(self, value, around)
        except (TooLargeError, RecursionError):
            raise
        except Exception as error:
            if cls is int:
                return self.failed(int, error)  # it has more digits than Python writes
            return Later(self, value)

    def _encoded(self, value: object) -> bytes | None:
        """A plain value in JSON; None for any other, and for one that is too large or too deep."""
        places = [value]
        encoded: bytes | None = None
        try:
            encoded = plain_encoder.encode(places, self._room, self._looks)
        except RecursionError:
            self._looks = 0  # what is inside of it is about as deep
        except Exception:
            pass  # also a surrogate
        self._looks -= len(places)
        if encoded is not None:
            self._room -= len(encoded)
        return encoded

    def text(self, text: str) -> str:
        self._take(min(len(text), SHORT) + 1)
        # What is larger than all that may be kept is looked at when it is cut.
        return text if len(text) > self.limit else utf8(text)

    def enter(self, value: object, around: Around, parts: Callable[[Around], object]) -> object:
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
        """What ``parts`` makes of a container, or a marker if it is too large by itself."""
        if not self._is_large or is_root:
            return parts()
        room, floor = self._room, self._floor
        self._floor = max(0, room - self.limit)
        try:
            return parts()
        except TooLargeError:
            # Of those inside of each other the innermost goes.
            if self._floor == 0 or self._effort < 0:
                raise
            self.lose("truncated")
            self._room = room - SHORT
            return {"$truncated": {"more_than_bytes": self.limit}}
        finally:
            self._floor = floor

    def listed(self, items: list[Any], around: Around) -> object:
        self._take(2 * len(items))  # 0,
        if len(items) > _MANY and (numbers := _numbers(items)) is not None:
            return numbers
        if len(items) == 2:
            items[0] = _as_a_name(items[0])
        tree: list[object] = []
        for item in items:
            part = self.plain(item, around)
            tree.append(part)
            if isinstance(part, Later):
                self._put(tree, len(tree) - 1, part)
        return tree

    def mapped(self, items: Iterable[tuple[Any, Any]], around: Around) -> object:
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
            names = _distinct(names, items)
        tree: dict[str, object] = {}
        is_named = not VALUES.isdisjoint(names)
        for name, (_, item) in zip(names, items, strict=True):
            self._take(len(name))
            if is_named and name in NAMING:
                item = _as_a_name(item)
            self._put(tree, name, self.plain(item, around))
        return tree

    def _name_of(self, key: object) -> str | None:
        """A key as text; None if code of it must be asked."""
        cls = type(key)
        if issubclass(cls, Enum):
            return self._name_of(cast("Enum", key)._value_)
        if issubclass(cls, SecretStr):
            return SecretStr.MASK
        if issubclass(cls, str):
            return utf8(str.__str__(cast("str", key)))
        if issubclass(cls, _BYTES):
            return _name_of_bytes(memoryview(cast("bytes", key)).tobytes())
        if issubclass(cls, _texts()):
            room = self._room
            text = str(self.plain(key, ()))
            self._room = room  # it is taken with the others
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
            except Exception as error:  # more digits than Python writes
                return self.failed(cls, error)
        return None

    def fits(self, tree: object) -> bool:
        try:
            size = len(encode_within(tree, self.limit))
        except BufferError:
            return False
        self._take(size)
        return True

    def lose(self, reason: str) -> None:
        self._lost.add(reason)

    def failed(self, cls: type, error: Exception) -> str:
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
        """Whether there is room for as much as that."""
        if self._room - size < self._floor or self._effort < 0:
            raise TooLargeError


class _Keys(Later):
    """The keys of a mapping, some of which have code of their own; ``value`` are its items."""

    is_leaf = False
    __slots__ = ("_names", "_walk")

    def __init__(self, walk: _Walk, value: Items, around: Around, names: list[str | None]) -> None:
        super().__init__(walk, value, around)
        self._walk = walk
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
        return self._walk.object_of(names, self.value, self.around)

    def otherwise(self, error: Exception) -> object:
        return self.then([error if name is None else name for name in self._names])


def _shown_or_error(key: object) -> str | Exception:
    try:
        # A number of another package is one in JSON, too.
        return str(int(cast("Any", key))) if issubclass(type(key), Integral) else shown(key)
    except Exception as error:
        return error


def _distinct(names: list[str], items: Items) -> list[str]:
    """Names of which no two are the same: a key that is a text keeps its name, the others say
    what they are."""
    times = Counter(names)
    numbers: Counter[str] = Counter()
    texts = [type(key) is str and key == name for name, (key, _) in zip(names, items, strict=True)]
    taken = {name for name, is_text in zip(names, texts, strict=True) if is_text}
    taken |= {name for name in names if times[name] == 1}
    distinct: list[str] = []
    for name, is_text, (key, _) in zip(names, texts, items, strict=True):
        found = name
        if times[name] > 1 and not is_text:
            typed = found = f"{name} ({type_name(type(cast('object', key)))})"
            while found in taken:
                numbers[typed] += 1
                found = f"{typed} {numbers[typed] + 1}"
            taken.add(found)
        distinct.append(found)
    return distinct


def _name_of_bytes(key: bytes) -> str:
    try:
        return key.decode()
    except UnicodeDecodeError:
        return b64encode(key).decode()


def _as_a_name(part: object) -> object:
    """What stands where the name of a header does (as ASGI has them), as a text."""
    if not issubclass(type(part), _BYTES):
        return part
    view = memoryview(cast("bytes", part))
    if view.nbytes > _LONGEST_NAME:
        return part
    name = view.tobytes()
    is_name = name.isascii() and name.translate(None, _SEPARATORS).isalnum()
    return name.decode() if is_name else part


def _numbers(items: list[Any]) -> list[Any] | None:
    """A long list of numbers (a vector, say), which needs no look at each of its parts."""
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
