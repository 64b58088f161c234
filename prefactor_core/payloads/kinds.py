"""What values become in JSON, judged by their type, and once for each type. Pure."""

# Values of any type come here, and nothing is known of them.
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
from __future__ import annotations

from array import array
from base64 import b64encode
from collections import OrderedDict, UserDict, UserList, UserString, deque
from collections.abc import Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import cache
from itertools import islice
from numbers import Integral, Real
from types import (
    SimpleNamespace,
)
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
    type_name,
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
from prefactor_core.payloads.secret_str import SecretStr

_NOT_LOADED: Final = "<not loaded>"
_MOST_RAW: Final = 4  # times as large as a payload may be, it is not decoded to be cut


# By id, and not by the type itself: to hash it may run code of its metaclass.
_kinds: dict[int, tuple[ref[type], Kind]] = {}


def kind_of(cls: type) -> Kind:
    """What values of exactly this type become."""
    known = _kinds.get(id(cls))
    if known is not None and known[0]() is cls:
        return known[1]
    try:
        kind = _judge(cls)
    except (RecursionError, MemoryError):
        raise  # it says nothing of the type
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
    """Whether such a value is a mapping, or an object that knows its fields."""
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
    # By the type and not the value: isinstance() believes what a value says of itself.
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
        return _Integer
    if issubclass(cls, Real):
        return _Real
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
        (int, lambda walk, value, around: _number(int.__int__(value))),
        (float, lambda walk, value, around: float.__float__(value)),
        (bytes | bytearray | memoryview, _bytes),
        (timedelta, _duration),
        (datetime, _moment),
        (date, lambda walk, value, around: date.isoformat(value)),
        (time, _clock_time),
        (UUID, lambda walk, value, around: UUID.__str__(value)),
        (Decimal, lambda walk, value, around: walk.text(Decimal.__str__(value))),
        (PurePath, lambda walk, value, around: walk.text(PurePath.__str__(value))),
        (msgspec.Raw, _raw),
        (dict, _dict),
        *((base, _list_of(base)) for base in (list, set, frozenset, deque, *views)),
        (array, lambda walk, value, around: walk.listed(array.tolist(value), around)),
        ((UserDict, UserList, UserString), _of_collections),
        (SimpleNamespace, _namespace),
    )


# --- scalars


def _number(number: int) -> int:
    if number.bit_length() > 64:
        int.__repr__(number)  # raises for more digits than Python writes (4,300)
    return number


def _bytes(walk: Walk, value: Any, around: Around) -> object:
    view = memoryview(value)
    if view.nbytes > walk.limit:
        walk.lose("truncated")
        return f"<{view.nbytes} bytes>"
    return walk.text(b64encode(view.tobytes()).decode())


def _duration(walk: Walk, value: timedelta, around: Around) -> object:
    # Also of subclasses, such as that of pandas, by what is timedelta's own.
    own: Any = timedelta
    parts = (getattr(own, name).__get__(value) for name in ("days", "seconds", "microseconds"))
    return msgspec.to_builtins(timedelta(*parts))


def _moment(walk: Walk, value: datetime, around: Around) -> object:
    cls = type(value)
    if cls is datetime:
        return msgspec.to_builtins(value)
    if type_name(cls) == "NaTType":
        return None  # pandas' moment that is none
    return datetime.isoformat(value)


def _clock_time(walk: Walk, value: time, around: Around) -> object:
    return msgspec.to_builtins(value) if type(value) is time else time.isoformat(value)


def _null(walk: Walk, value: object, around: Around) -> object:
    return None


def _raw(walk: Walk, value: msgspec.Raw, around: Around) -> object:
    size = memoryview(value).nbytes
    if size > _MOST_RAW * walk.limit:
        walk.lose("truncated")
        return f"<{size} bytes>"
    return walk.plain(msgspec.json.decode(value), (*around, value))


class _Integer(Later):
    __slots__ = ()

    def ask(self) -> object:
        return int(self.value)

    def then(self, given: int) -> object:
        return _number(given)


class _Real(Later):
    __slots__ = ()

    def ask(self) -> object:
        return float(self.value)

    def then(self, given: float) -> object:
        return given


# --- containers


def _dict(walk: Walk, value: Any, around: Around) -> object:
    return walk.enter(value, around, lambda inner: walk.mapped(dict.items(value), inner))


def _list_of(base: Any) -> Kind:
    # Not by list(): what a subclass tells that may be anything.
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
    # From its own dict: a subclass may make it when it is asked for.
    return walk.plain(own(value, "__dict__")["data"], around)


def _namespace(walk: Walk, value: Any, around: Around) -> object:
    fields: dict[str, object] = object.__getattribute__(value, "__dict__")
    return walk.enter(value, around, lambda inner: walk.mapped(fields.items(), inner))


def _mapping(walk: Walk, value: Any, around: Around) -> object:
    return walk.enter(value, around, lambda inner: _Items(walk, value, inner))


class _Items(Later):
    """The items of a mapping, which is the innermost of ``around``."""

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
        message: object = Later(walk, value)  # its text shows all
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
        # By name also what msgspec makes a list of: among the names may be that of a secret.
        return walk.mapped(items, inner)

    return walk.enter(value, around, parts)


def _is_default(item: object, default: object) -> bool:
    """Whether msgspec would leave out a field of this value."""
    if item is default:
        return True
    factory = getattr(default, "factory", None)
    return factory in (list, dict, set) and type(item) is factory and not item


def _record(cls: type[Any], names: list[str]) -> Kind:
    hidden = hidden_fields(cls)
    # Where an attribute is not just there, code of others would run: a lazy relation, say.
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


# --- what is of other packages, of which nothing is imported here


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
        return _null
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
        # To look at it might ask a database.
        return _type_alone(walk, value, around)
    return Later(walk, value)


def _type_alone(walk: Walk, value: object, around: Around) -> object:
    cls: type[Any] = type(value)
    name = full_type_name(cls)
    if name.partition(".")[0] in _WITH_SHAPE:
        # Of the type: in a table, what has such a name may be a column.
        parts = (
            getattr(value, part, None)
            for part in ("dtype", "shape")
            if attribute_of(cls, part) is not None
        )
        return f"<{' '.join([name, *(str(part) for part in parts if part is not None)])}>"
    return f"<{name}>"


_WITH_SHAPE: Final = frozenset({"cupy", "jax", "jaxlib", "pandas", "polars", "tensorflow", "torch"})
