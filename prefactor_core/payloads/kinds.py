"""The JSON form of each kind of value, decided once for each type. Pure."""

# Values of any type come here.
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
from __future__ import annotations

from array import array
from collections import OrderedDict, UserDict, UserList, UserString, deque
from collections.abc import Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import cache
from itertools import islice
from numbers import Integral, Real
from types import SimpleNamespace
from typing import Any, Final
from uuid import UUID
from weakref import ref

import msgspec

from prefactor_core.payloads.hidden_fields import hidden_fields
from prefactor_core.payloads.markers import (
    HIDDEN,
    attribute_of,
    full_type_name,
    has_quick_repr,
    has_quick_text,
    shown,
    utf8,
)
from prefactor_core.payloads.numpy_values import array_of_numpy, scalar_of_numpy
from prefactor_core.payloads.object_fields import (
    field_names,
    is_foreign,
    is_mapped,
    is_of,
    is_proxy,
    own,
)
from prefactor_core.payloads.payload_walk import Around, Kind, Later, Walk, shown_instead
from prefactor_core.payloads.pydantic_models import (
    is_model_of_pydantic_1,
    model,
    model_of_pydantic_1,
)
from prefactor_core.payloads.scalars import (
    AsInteger,
    AsReal,
    binary,
    duration,
    moment,
    null,
    number,
    raw_json,
    time_of_day,
)
from prefactor_core.payloads.secret_str import SecretStr

_NOT_LOADED: Final = "<not loaded>"


# By id: hashing the type itself may run code of its metaclass.
_kinds: dict[int, tuple[ref[type], Kind]] = {}


def kind_of(cls: type) -> Kind:
    """Return the kind of values of exactly this type."""
    known = _kinds.get(id(cls))
    if known is not None and known[0]() is cls:
        return known[1]
    try:
        kind = _judge(cls)
    except (RecursionError, MemoryError):
        raise  # says nothing about the type
    except Exception:  # a metaclass that raises
        kind = _opaque
    key = id(cls)

    def forget(_: object) -> None:
        _kinds.pop(key, None)

    _kinds[key] = ref(cls, forget), kind
    return kind


def _type(value: object) -> type[Any]:
    return type(value)


def has_fields(cls: type) -> bool:
    """Whether such a value is a mapping or an object with known fields."""
    try:
        return (
            issubclass(cls, (Mapping, msgspec.Struct))
            or attribute_of(cls, "model_dump") is not None
            or is_model_of_pydantic_1(cls)
            or field_names(cls) is not None
        )
    except (RecursionError, MemoryError):
        raise
    except Exception:  # a metaclass that raises
        return False


def _judge(cls: type[Any]) -> Kind:
    # By the type and not the value: isinstance() believes the __class__ of a value.
    for base, kind in _bases():
        if issubclass(cls, base):
            return kind
    if (foreign := _of_another_package(cls)) is not None:
        return foreign
    if attribute_of(cls, "model_dump") is not None:
        return model
    if is_model_of_pydantic_1(cls):
        return model_of_pydantic_1
    if issubclass(cls, tuple):
        names = attribute_of(cls, "_fields")
        return _named_tuple if isinstance(names, tuple) else _list_of(tuple)
    if issubclass(cls, BaseException):
        return _error
    if issubclass(cls, msgspec.Struct):
        return _struct
    if (fields := field_names(cls)) is not None:
        return _record(cls, fields)
    if issubclass(cls, Integral):
        return AsInteger
    if issubclass(cls, Real):
        return AsReal
    return _mapping if issubclass(cls, Mapping) else _opaque


@cache
def _bases() -> tuple[tuple[Any, Kind], ...]:
    from pathlib import PurePath  # here: it takes milliseconds to import

    views = tuple(
        type(view)
        for empty in (dict[object, object](), OrderedDict[object, object]())
        for view in (empty.keys(), empty.values(), empty.items())
    )
    # An Enum may be a text or a number as well, and a datetime is a date.
    return (
        (Enum, lambda walk, value, around: walk.plain(value._value_, around)),
        (SecretStr, lambda walk, value, around: SecretStr.MASK),
        (str, lambda walk, value, around: walk.text(str.__str__(value))),
        (int, lambda walk, value, around: number(int.__int__(value))),
        (float, lambda walk, value, around: float.__float__(value)),
        (bytes | bytearray | memoryview, binary),
        (timedelta, duration),
        (datetime, moment),
        (date, lambda walk, value, around: date.isoformat(value)),
        (time, time_of_day),
        (UUID, lambda walk, value, around: UUID.__str__(value)),
        (Decimal, lambda walk, value, around: walk.text(Decimal.__str__(value))),
        (PurePath, lambda walk, value, around: walk.text(PurePath.__str__(value))),
        (msgspec.Raw, raw_json),
        (dict, _dict),
        *((base, _list_of(base)) for base in (list, set, frozenset, deque, *views)),
        (array, lambda walk, value, around: walk.listed(array.tolist(value), around)),
        ((UserDict, UserList, UserString), _of_collections),
        (SimpleNamespace, _namespace),
    )


# --- containers


def _dict(walk: Walk, value: Any, around: Around) -> object:
    return walk.enter(value, around, lambda inner: walk.mapped(dict.items(value), inner))


def _list_of(base: Any) -> Kind:
    # Not by list(), which may run code of a subclass.
    def kind(walk: Walk, value: Any, around: Around) -> object:
        return walk.enter(
            value, around, lambda inner: walk.listed(list(base.__iter__(value)), inner)
        )

    return kind


def _named_tuple(walk: Walk, value: Any, around: Around) -> object:
    names: tuple[object, ...] = type(value)._fields
    return walk.enter(
        value,
        around,
        lambda inner: walk.mapped(zip(names, tuple.__iter__(value), strict=False), inner),
    )


def _of_collections(walk: Walk, value: Any, around: Around) -> object:
    # From its own dict: in a subclass "data" may be a property.
    return walk.plain(own(value, "__dict__")["data"], around)


def _namespace(walk: Walk, value: Any, around: Around) -> object:
    fields: dict[str, object] = object.__getattribute__(value, "__dict__")
    return walk.enter(value, around, lambda inner: walk.mapped(fields.items(), inner))


def _mapping(walk: Walk, value: Any, around: Around) -> object:
    return walk.enter(value, around, lambda inner: _Items(walk, value, inner))


class _Items(Later):
    """The items of a mapping; the mapping is the innermost of ``around``."""

    is_leaf = False
    __slots__ = ()

    def ask(self) -> object:
        return list(islice(self.value.items(), self.walk.limit))

    def then(self, given: list[tuple[object, object]]) -> object:
        return self.walk.mapped(given, self.around)

    def otherwise(self, error: Exception) -> object:
        return shown_instead(self, error)


def _error(walk: Walk, value: BaseException, around: Around) -> object:
    name = full_type_name(_type(value))
    if hidden_fields(_type(value)):
        message: object = Later(walk, value)  # str() shows all fields
    else:
        message = utf8(str(value)) if has_quick_text(value) else _Text(walk, value)
    return walk.enter(
        value, around, lambda inner: walk.mapped((("type", name), ("message", message)), inner)
    )


class _Text(Later):
    """The message of an error."""

    __slots__ = ()

    def ask(self) -> object:
        return utf8(str.__str__(str(self.value)))


# --- objects with fields


def _struct(walk: Walk, value: Any, around: Around) -> object:
    cls: type[Any] = type(value)
    names: tuple[str, ...] = cls.__struct_encode_fields__
    attributes: tuple[str, ...] = cls.__struct_fields__
    defaults: tuple[object, ...] = cls.__struct_defaults__
    config = cls.__struct_config__

    def parts(inner: Around) -> object:
        items: list[tuple[str, object]] = []
        if config.tag is not None:
            items.append((str(config.tag_field), config.tag))
        first_default = len(attributes) - len(defaults)
        for place, (name, attribute) in enumerate(zip(names, attributes, strict=True)):
            item = own(value, attribute)
            if item is msgspec.UNSET or (
                config.omit_defaults
                and place >= first_default
                and _is_default(item, defaults[place - first_default])
            ):
                continue
            items.append((name, item))
        # By name, also for a struct that msgspec writes as a list: a name may be that of a secret.
        return walk.mapped(items, inner)

    return walk.enter(value, around, parts)


def _is_default(item: object, default: object) -> bool:
    """Whether msgspec leaves out a field with this value."""
    if item is default:
        return True
    factory = getattr(default, "factory", None)
    return factory in (list, dict, set) and type(item) is factory and not item


def _record(cls: type[Any], names: list[str]) -> Kind:
    hidden = hidden_fields(cls)
    # Reading these would run foreign code, that of a lazy relation for instance.
    lazy = frozenset(name for name in names if is_foreign(attribute_of(cls, name)))

    def record(walk: Walk, value: object, around: Around) -> object:
        def parts(inner: Around) -> object:
            items: list[tuple[str, object]] = []
            for name in names:
                if name in hidden:
                    item: object = HIDDEN
                elif name in lazy:
                    item = own(value, "__dict__").get(name, _NOT_LOADED)
                else:
                    item = own(value, name)
                if item is not msgspec.UNSET:
                    items.append((name, item))
            return walk.mapped(items, inner)

        return walk.enter(value, around, parts)

    return record


# --- types of other packages, which are not imported here


def _of_another_package(cls: type[Any]) -> Kind | None:
    if is_of(cls, "numpy", "ndarray"):
        return array_of_numpy
    if is_of(cls, "numpy", "generic"):
        return scalar_of_numpy
    if is_of(cls, "argparse", "Namespace"):
        return _namespace
    if is_of(cls, "sqlalchemy.engine.url", "URL"):
        return Later  # a named tuple, with a repr that does not show its password
    if is_of(cls, "pandas._libs.missing", "NAType"):
        return null
    if is_proxy(cls):
        is_lazy = is_of(cls, "wrapt", "LazyObjectProxy")
        return _type_alone if is_lazy else _proxy
    return None


def _proxy(walk: Walk, value: Any, around: Around) -> object:
    return walk.enter(
        value,
        around,
        lambda inner: walk.plain(object.__getattribute__(value, "__wrapped__"), inner),
    )


# --- anything else


def _opaque(walk: Walk, value: Any, around: Around) -> object:
    cls: type[Any] = type(value)
    if has_quick_repr(cls):
        return walk.text(shown(value))
    if attribute_of(cls, "__iter__") is not None or is_mapped(cls):
        # Looking at it may query a database.
        return _type_alone(walk, value, around)
    return Later(walk, value)


def _type_alone(walk: Walk, value: object, around: Around) -> object:
    cls: type[Any] = type(value)
    name = full_type_name(cls)
    if name.partition(".")[0] in _WITH_SHAPE:
        # Looked up on the type: in a table, a column may have such a name.
        parts = (
            getattr(value, part, None)
            for part in ("dtype", "shape")
            if attribute_of(cls, part) is not None
        )
        return f"<{' '.join([name, *(str(part) for part in parts if part is not None)])}>"
    return f"<{name}>"


_WITH_SHAPE: Final = frozenset({"cupy", "jax", "jaxlib", "pandas", "polars", "tensorflow", "torch"})
