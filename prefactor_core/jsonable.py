"""Any value as what JSON has, field by field, as far as that is possible. Pure."""

from __future__ import annotations

import dataclasses
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import cache
from itertools import islice
from numbers import Integral, Real
from types import NoneType, WrapperDescriptorType
from typing import Any, Final, Protocol, cast
from uuid import UUID

import msgspec

from prefactor_core.timebox import Timebox, TooSlowError

SHORT: Final = 64
"""No string is cut to less than so many bytes."""

_MAX_DEPTH: Final = 32
_MAX_REPR: Final = 1_000
_MAX_NAME: Final = 200
_MANY: Final = 100
_HAS_PARTS: Final = 1 << 14  # Py_TPFLAGS_HAVE_GC: its values may refer to others

_SIMPLE: Final = frozenset({float, bool, NoneType})
_NATIVE: Final = frozenset({datetime, date, time, timedelta, UUID, Decimal})


@cache
def _text_of() -> dict[type, Callable[[Any], str]]:
    """How the text is made of what is one in JSON."""
    from pathlib import PurePath  # here: it takes milliseconds to import

    # Also of subclasses, such as the moments of pandas and pendulum; a datetime is a date.
    return {
        PurePath: PurePath.__str__,
        datetime: datetime.isoformat,
        date: date.isoformat,
        time: time.isoformat,
        UUID: UUID.__str__,
        Decimal: Decimal.__str__,
    }


class TooLargeError(Exception):
    """A value that cannot be made to fit by cutting strings."""


def plain(value: object, limit: int) -> object:
    """``value`` as dicts with text as keys, lists, text, numbers, booleans and None.

    Nothing of ``value`` is in it that can change, and what is there twice may be one object.
    Containers more than 32 levels deep, and those that hold themselves, become a marker.
    Raises :class:`TooLargeError` when more than ``limit`` bytes of JSON are sure to come, also
    if all strings were cut to 64 characters; and of :class:`Exception` nothing else, but where
    the stack has no room for another call.
    """
    return _Walk(limit).plain(value, ())


def describe(value: object, timebox: Timebox) -> str:
    """The ``repr`` of a value, cut at 1,000 characters; or a short marker with its type."""
    cls = type(value)
    try:
        text = repr(value) if _has_quick_repr(cls) else timebox.call(cls, lambda: repr(value))
        # A repr may be of a subclass of str, with methods of its own.
        text = str.__str__(text)
        return utf8(text if len(text) <= _MAX_REPR else text[:_MAX_REPR] + "… [truncated]")
    except TooSlowError:
        return f"<slow {type_name(cls)}>"
    except Exception:
        return f"<unprintable {type_name(cls)}>"


def _has_quick_repr(cls: type) -> bool:
    found: object = type.__getattribute__(cls, "__repr__")
    if found is object.__repr__:
        return True
    # What is written in C asks nobody, unless it is of parts.
    flags = cast("int", type.__getattribute__(cls, "__flags__"))
    return isinstance(found, WrapperDescriptorType) and not flags & _HAS_PARTS


def type_name(cls: type) -> str:
    """The name of a type, without asking its metaclass."""
    return utf8(cast("str", type.__getattribute__(cls, "__qualname__"))[:_MAX_NAME])


def full_type_name(cls: type) -> str:
    """The name of a type with its module, unless that is ``builtins``."""
    module: object = type.__getattribute__(cls, "__module__")
    if module == "builtins" or not isinstance(module, str):
        return type_name(cls)
    return f"{utf8(module[:_MAX_NAME])}.{type_name(cls)}"


def message_of(error: BaseException, timebox: Timebox) -> str:
    """``str(error)``, or a marker."""
    cls = type(error)
    try:
        text = str(error) if _has_quick_text(error) else timebox.call(cls, lambda: str(error))
        return utf8(str.__str__(text))
    except TooSlowError:
        return f"<slow {type_name(cls)}>"
    except Exception:
        return "<unprintable>"


def _has_quick_text(error: BaseException) -> bool:
    args: tuple[object, ...] = error.args
    return isinstance(_attribute(type(error), "__str__"), WrapperDescriptorType) and all(
        type(part) is str or type(part) is int for part in args
    )


def named_fields(
    value: object, timebox: Timebox, copy: Callable[[object], object]
) -> dict[str, object] | None:
    """The fields of a struct, a dataclass, a model of pydantic or an object of attrs, by their
    names in JSON; None for anything else. Raises what a model raises, or a time-out.

    ``copy``: gives a value as what JSON has, and nothing of it that can change later; where it
    raises, the fields are what they are.
    """
    cls = type(value)
    if dump := _attribute(cls, "model_dump"):
        dumped = timebox.call(cls, lambda: _dumped(value, dump))
        return cast("dict[str, object]", dumped) if isinstance(dumped, dict) else None
    if (names := _field_names(cls)) is None:
        return None
    try:
        built = copy(value)
    except Exception:
        built = None  # too large, or without a JSON form: that is looked at field by field
    return (
        cast("dict[str, object]", built) if isinstance(built, dict) else dict(_fields(value, names))
    )


def items_of(mapping: Mapping[object, object], timebox: Timebox, most: int) -> dict[object, object]:
    """The first ``most`` items of any mapping. Raises what it raises, or a time-out."""
    return timebox.call(type(mapping), lambda: dict(islice(mapping.items(), most)))


def utf8(text: str) -> str:
    """``text`` with a question mark for every lone surrogate."""
    if text.isascii():
        return text
    return text.encode("utf-8", "replace").decode()


class _Walk:
    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._room = limit
        self._timebox = Timebox()
        # Containers that were walked, by id, and the room they took: values that share parts
        # can be small in memory and endless as a tree.
        self._walked: dict[int, tuple[object, object, int]] = {}

    def plain(self, value: object, around: tuple[object, ...]) -> object:
        """``value``, which is inside of the containers ``around``."""
        cls = type(value)
        try:
            if cls is str:
                return self._text(cast("str", value))
            if cls in _SIMPLE:
                return value
            return self._plain(value, cls, around)
        except TooLargeError:
            raise
        except Exception:
            return describe(value, self._timebox)

    def _take(self, size: int) -> None:
        self._room -= size
        if self._room < 0:
            raise TooLargeError

    def _plain(self, value: Any, cls: type[Any], around: tuple[object, ...]) -> object:
        # By the type and not the value: isinstance() believes what a value says of itself.
        if issubclass(cls, Enum):
            return self.plain(value._value_, around)
        if issubclass(cls, str):
            return self._text(str.__str__(value))
        if issubclass(cls, int):
            return _number(int.__int__(value))
        if issubclass(cls, float):
            return float.__float__(value)
        if issubclass(cls, bytes | bytearray | memoryview):
            return self._bytes(memoryview(value))
        if cls in _NATIVE:
            return msgspec.to_builtins(value)
        for base, text_of in _text_of().items():
            if issubclass(cls, base):
                return self._text(text_of(value))
        if issubclass(cls, msgspec.Raw):
            return self.plain(msgspec.json.decode(value), (*around, value))
        if dump := _attribute(cls, "model_dump"):
            if any(value is outer for outer in around):
                return "<circular>"
            dumped = self._timebox.call(cls, lambda: _dumped(value, dump))
            return self.plain(dumped, (*around, value))
        if issubclass(cls, Integral):
            return _number(self._timebox.call(cls, lambda: int(value)))
        if issubclass(cls, Real):
            return self._timebox.call(cls, lambda: float(value))
        if any(value is outer for outer in around):
            return "<circular>"
        return self._container(value, cls, around)

    def _container(self, value: object, cls: type[Any], around: tuple[object, ...]) -> object:
        if id(value) in self._walked:
            _, known, size = self._walked[id(value)]
            self._take(size)
            return known
        if (parts := self._parts(value, cls)) is None:
            return describe(value, self._timebox)
        if len(around) == _MAX_DEPTH:
            return "<too deep>"
        before = self._room
        around = (*around, value)
        if isinstance(parts, list):
            tree: object = self._list(parts, around)
        else:
            tree = self._object(parts, around)
        self._walked[id(value)] = value, tree, before - self._room
        return tree

    def _parts(
        self, value: Any, cls: type[Any]
    ) -> list[object] | tuple[tuple[object, object], ...] | None:
        """What is in ``value``: keys with values, or a list; None if it is no container."""
        if issubclass(cls, dict):
            return tuple(
                cast("Callable[[object], Iterable[tuple[object, object]]]", dict.items)(value)
            )
        base: type[Any]
        for base in (list, tuple, set, frozenset):
            if issubclass(cls, base):
                return list(base.__iter__(value))
        if issubclass(cls, BaseException):
            message = message_of(value, self._timebox)
            return (("type", full_type_name(cls)), ("message", message))
        if (names := _field_names(cls)) is not None:
            return _fields(value, names)
        if issubclass(cls, Mapping):
            return tuple(items_of(value, self._timebox, self._limit).items())
        return None

    def _object(
        self, parts: tuple[tuple[object, object], ...], around: tuple[object, ...]
    ) -> dict[str, object]:
        self._take(5 * len(parts))  # "":0,
        tree: dict[str, object] = {}
        for key, item in parts:
            name = utf8(key) if type(key) is str else self._key(key)
            self._take(len(name))
            tree[name] = self.plain(item, around)
        return tree

    def _list(self, parts: list[object], around: tuple[object, ...]) -> list[object]:
        self._take(2 * len(parts))  # 0,
        if len(parts) > _MANY and _are_plain_numbers(parts):
            return parts
        return [self.plain(item, around) for item in parts]

    def _key(self, key: object) -> str:
        cls = type(key)
        if issubclass(cls, Enum):
            return self._key(cast("Enum", key)._value_)
        if issubclass(cls, str):
            return utf8(str.__str__(cast("str", key)))
        if issubclass(cls, (bytes, *_text_of())):
            room = self._room
            text = str(self.plain(key, ()))
            self._room = room  # the caller takes it
            return text
        return describe(key, self._timebox)

    def _text(self, text: str) -> str:
        self._take(min(len(text), SHORT) + 1)
        # What is larger than all that may be kept is looked at when it is cut.
        return text if len(text) > self._limit else utf8(text)

    def _bytes(self, view: memoryview) -> str:
        if view.nbytes > self._limit:
            return f"<{view.nbytes} bytes>"
        return self._text(b64encode(view.tobytes()).decode())


def _number(number: int) -> int:
    if number.bit_length() > 64:
        int.__repr__(number)  # raises for more digits than Python writes (4,300)
    return number


def _are_plain_numbers(parts: list[object]) -> bool:
    """Whether a long list (a vector, say) needs no look at each of its parts."""
    kinds = set(map(type, parts))
    if kinds == {int}:
        return max(map(int.bit_length, cast("list[int]", parts))) <= 64
    return kinds <= _SIMPLE


def _attribute(cls: type, name: str) -> object:
    """What a type has under ``name``, or None; without asking its metaclass."""
    try:
        return type.__getattribute__(cls, name)
    except AttributeError:
        return None


def _field_names(cls: type[Any]) -> dict[str, str] | None:
    """For a dataclass, a class of attrs or of msgspec: names in JSON and their attributes."""
    if issubclass(cls, msgspec.Struct):
        return dict(zip(cls.__struct_encode_fields__, cls.__struct_fields__, strict=True))
    if dataclasses.is_dataclass(cls):
        return {field.name: field.name for field in dataclasses.fields(cls)}
    if (attributes := _attribute(cls, "__attrs_attrs__")) is not None:
        names = [
            cast("_Named", attribute).name for attribute in cast("Iterable[object]", attributes)
        ]
        # As msgspec does it: what attrs is told is private is no field.
        return {name: name for name in names if not name.startswith("_")}
    return None


class _Named(Protocol):
    name: str


def _fields(value: object, names: dict[str, str]) -> tuple[tuple[str, object], ...]:
    found: list[tuple[str, object]] = []
    if isinstance(value, msgspec.Struct) and (tag := value.__struct_config__.tag) is not None:
        found.append((str(value.__struct_config__.tag_field), tag))
    for name, attribute in names.items():
        try:
            item: object = getattr(value, attribute)
        except Exception:
            item = "<unprintable>"
        if item is not msgspec.UNSET:
            found.append((name, item))
    return tuple(found)


def _dumped(value: object, dump: Any) -> object:
    """A model of pydantic, or what looks like one, as what it makes of itself."""
    try:
        return dump(value, mode="json", warnings=False)
    except Exception:
        pass  # not of pydantic, or something in it has no JSON form
    try:
        return dump(value, warnings=False)
    except TypeError:
        return dump(value)
