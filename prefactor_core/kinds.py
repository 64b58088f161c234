"""What values become in JSON, judged by their type, and once for each type. Pure."""

# Values of any type come here, and nothing is known of them.
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
from __future__ import annotations

import dataclasses
import sys
from array import array
from base64 import b64encode
from collections import OrderedDict, UserDict, UserList, UserString, deque
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import cache, cached_property
from itertools import islice
from numbers import Integral, Real
from types import (
    BuiltinFunctionType,
    ClassMethodDescriptorType,
    FunctionType,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodDescriptorType,
    SimpleNamespace,
    WrapperDescriptorType,
)
from typing import Any, ClassVar, Final, Protocol, TypeAlias, cast
from uuid import UUID
from weakref import ref

import msgspec

from prefactor_core.hidden_fields import hidden_fields
from prefactor_core.markers import (
    CIRCULAR,
    HIDDEN,
    UNPRINTABLE,
    attribute_of,
    full_type_name,
    has_quick_repr,
    has_quick_text,
    shown,
    type_name,
    utf8,
)
from prefactor_core.secret_str import SecretStr
from prefactor_core.timebox import TooSlowError

Around: TypeAlias = tuple[object, ...]
"""The containers that a value is inside of, outermost first."""

ABSENT: Final = object()
"""Stands for a field that is not recorded."""

_NOT_LOADED: Final = "<not loaded>"
_MAX_MASKED_DEPTH: Final = 32
_MOST_RAW: Final = 4  # times as large as a payload may be, it is not decoded to be cut


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
            or _is_model_of_pydantic_1(cls)
            or _field_names(cls) is not None
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
        return _model
    if _is_model_of_pydantic_1(cls):
        return _model_of_pydantic_1
    if issubclass(cls, tuple):
        names = attribute_of(cls, "_fields")
        return _named_tuple if isinstance(names, tuple) else _list_of(tuple)
    if issubclass(cls, BaseException):
        return _error
    if issubclass(cls, msgspec.Struct):
        return _struct
    if (fields := _field_names(cls)) is not None:
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
    return walk.plain(_own(value, "__dict__")["data"], around)


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
        return _shown_instead(self, error)


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
            item = _own(value, attribute)
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


def _field_names(cls: type[Any]) -> list[str] | None:
    """The fields of a dataclass or a class of attrs; None if it is neither."""
    if attribute_of(cls, "__dataclass_fields__") is not None:
        return [field.name for field in dataclasses.fields(cls)]
    if (attributes := attribute_of(cls, "__attrs_attrs__")) is not None:
        names = [
            cast("_Named", attribute).name for attribute in cast("Iterable[object]", attributes)
        ]
        # As msgspec does it: what attrs is told is private is no field.
        return [name for name in names if not name.startswith("_")]
    return None


class _Named(Protocol):
    name: str


def _record(cls: type[Any], names: list[str]) -> Kind:
    hidden = hidden_fields(cls)
    # Where an attribute is not just there, code of others would run: a lazy relation, say.
    lazy = frozenset(name for name in names if _is_foreign(attribute_of(cls, name)))

    def record(walk: Walk, value: object, around: Around) -> object:
        def parts(inner: Around) -> object:
            items: list[tuple[str, object]] = []
            for name in names:
                if name in hidden:
                    item: object = HIDDEN
                elif name in lazy:
                    item = _own(value, "__dict__").get(name, _NOT_LOADED)
                else:
                    item = _own(value, name)
                if item is not msgspec.UNSET:
                    items.append((name, item))
            return walk.mapped(items, inner)

        return walk.enter(value, around, parts)

    return record


def _own(value: object, name: str) -> Any:
    """What an object has under a name, without code of its own."""
    try:
        return object.__getattribute__(value, name)
    except AttributeError:
        return UNPRINTABLE


def _is_foreign(attribute: object) -> bool:
    """Whether to read what is under this in a class may run any code."""
    cls = type(attribute)
    return attribute_of(cls, "__get__") is not None and cls not in _HARMLESS


_HARMLESS: Final[frozenset[type]] = frozenset(
    {
        BuiltinFunctionType,
        ClassMethodDescriptorType,
        FunctionType,
        GetSetDescriptorType,
        MemberDescriptorType,
        MethodDescriptorType,
        WrapperDescriptorType,
        classmethod,
        staticmethod,
    }
)


# --- models


def _model(walk: Walk, value: object, around: Around) -> object:
    for outer in around:
        if outer is value:
            return CIRCULAR
    return _Model(walk, value, around)


class _Model(Later):
    """A model of pydantic, or what looks like one, as what it makes of itself."""

    is_leaf = False
    __slots__ = ()

    def ask(self) -> object:
        if _holds_iterator(_parts_of_model(self.value), 0):
            raise TypeError  # the model would use it up
        return _dumped(type(self.value), self.value)

    def then(self, given: object) -> object:
        masked = _masked(self.walk, given, self.value, self.around)
        return self.walk.plain(masked, (*self.around, self.value))

    def otherwise(self, error: Exception) -> object:
        names = _fields_of_model(self.value)
        if names is None:
            return _shown_instead(self, error)
        # Field by field: what raises or takes too long may be one of them alone.
        inner = (*self.around, self.value)
        hidden = hidden_fields(type(self.value))
        fields: list[tuple[str, object]] = [
            (name, HIDDEN if name in hidden else _ModelField(self.walk, self.value, inner, name))
            for name in names
        ]
        return self.walk.mapped(fields, inner)


class _ModelField(Later):
    """One field of a model."""

    is_leaf = False
    __slots__ = ("name",)

    def __init__(self, walk: Walk, value: object, around: Around, name: str) -> None:
        super().__init__(walk, value, around)
        self.name = name

    def ask(self) -> object:
        if _holds_iterator(_parts_of_model(self.value).get(self.name), 0):
            raise TypeError
        return _dumped(type(self.value), self.value, include={self.name})

    def then(self, given: Any) -> object:
        if not isinstance(given, dict) or not given:
            return ABSENT  # it is left out of what the model makes of itself
        masked = _masked_fields(self.walk, given, self.value, self.around)
        return self.walk.plain(next(iter(masked.values())), self.around)

    def otherwise(self, error: Exception) -> object:
        fields = _parts_of_model(self.value)
        if self.name not in fields or isinstance(error, TooSlowError):
            return self.walk.failed(type(self.value), error)
        # As what it is, and not as the model would say it.
        return self.walk.plain(fields[self.name], self.around)


def _holds_iterator(value: object, depth: int) -> bool:
    """Whether there is something in it that can be gone through only once."""
    cls: type[Any] = type(value)
    if cls in _LEAVES or depth > _MAX_MASKED_DEPTH:
        return False
    parts: Any = ()
    if issubclass(cls, dict):
        parts = dict.values(cast("dict[object, object]", value))
    elif issubclass(cls, _PLAIN_LISTS):
        base = next(base for base in _PLAIN_LISTS if issubclass(cls, base))
        parts = base.__iter__(value)
    elif attribute_of(cls, "__next__") is not None:
        return True
    elif attribute_of(cls, "__pydantic_fields__") is not None or _field_names(cls) is not None:
        parts = _parts_in_json(cls, value).values()
    return any(_holds_iterator(part, depth + 1) for part in parts if type(part) not in _LEAVES)


def _dumped(cls: Any, value: object, **only: object) -> Any:
    dump = cls.model_dump
    try:
        return dump(value, mode="json", warnings=False, **only)
    except Exception:
        pass  # not of pydantic, or something in it has no JSON form
    try:
        return dump(value, warnings=False, **only)
    except TypeError:
        return dump(value, **only)


def _fields_of_model(model: object) -> list[str] | None:
    cls: type[Any] = type(model)
    if attribute_of(cls, "__pydantic_fields__") is None:
        return None
    return [*_parts_of_model(model), *set(_computed_fields(cls).values())]


def _parts_of_model(model: object) -> dict[str, object]:
    """The fields of a model of pydantic, and what it took beside them."""
    fields, more = _own(model, "__dict__"), _own(model, "__pydantic_extra__")
    return {**fields, **more} if isinstance(more, dict) else dict(fields)


def _masked(walk: Walk, tree: Any, value: object, around: Around) -> Any:
    """What pydantic made of a value, without what the value hides in its ``repr``.

    The parts are found side by side with what became of them.
    """
    cls: type[Any] = type(value)
    if issubclass(cls, SecretStr):
        return SecretStr.MASK
    if attribute_of(cls, "__pydantic_root_model__") is True:
        return _masked(walk, tree, _own(value, "root"), around)
    if len(around) > _MAX_MASKED_DEPTH or not isinstance(tree, (dict, list, tuple, deque)):
        return tree
    inner = (*around, value)
    if kind_of(cls) is _proxy:
        return _masked(walk, tree, _own(value, "__wrapped__"), inner)
    if isinstance(tree, dict):
        if issubclass(cls, dict):
            return _masked_items(walk, tree, value, inner)
        return _masked_fields(walk, tree, value, inner)
    base = next((base for base in _PLAIN_LISTS if issubclass(cls, base)), None)
    if base is None:
        return tree
    items: list[Any] = list(base.__iter__(value))
    names = attribute_of(cls, "_fields") if base is tuple else None
    if len(items) != len(tree) or (not names and _LEAVES.issuperset(map(type, items))):
        return tree
    parts = [_masked(walk, part, item, inner) for part, item in zip(tree, items, strict=True)]
    return dict(zip(names, parts, strict=True)) if isinstance(names, tuple) else parts


def _masked_items(walk: Walk, tree: dict[Any, Any], value: Any, inner: Around) -> dict[Any, Any]:
    if len(tree) != dict.__len__(value):
        # A serializer left something out, or two keys are one as text.
        items = {key: (key, dict.get(value, key)) for key in tree}
    else:
        items = dict(zip(tree, dict.items(value), strict=True))
    return {
        SecretStr.MASK if issubclass(_type(items[key][0]), SecretStr) else key: _masked(
            walk, part, items[key][1], inner
        )
        for key, part in tree.items()
    }


def _masked_fields(walk: Walk, tree: dict[Any, Any], value: object, inner: Around) -> Any:
    cls: type[Any] = type(value)
    parts = _parts_in_json(cls, value)
    computed = _computed_fields(cls)
    hidden = hidden_fields(cls)
    masked = dict(tree)
    for name, part in tree.items():
        if name in hidden:
            masked[name] = HIDDEN
        elif name in parts:
            masked[name] = _masked(walk, part, parts[name], inner)
        elif name in computed and isinstance(part, (dict, list, tuple)):
            masked[name] = _Computed(walk, value, inner, computed[name], part)
    return masked


_PLAIN_LISTS: Final[tuple[Any, ...]] = (list, tuple, set, frozenset, deque)
_LEAVES: Final = frozenset({str, int, float, bool, type(None), bytes, datetime, date, UUID})


def _parts_in_json(cls: type[Any], value: object) -> dict[str, object]:
    """The fields of a model or a dataclass, by the names that they may have in JSON."""
    infos = cast("Mapping[str, Any] | None", attribute_of(cls, "__pydantic_fields__"))
    names = _field_names(cls) if infos is None else infos
    parts: dict[str, object] = {}
    for name in names or ():
        if not _is_foreign(attribute_of(cls, name)):
            parts[name] = part = _own(value, name)
            if infos is not None and isinstance(alias := infos[name].serialization_alias, str):
                parts[alias] = part
    more = _own(value, "__pydantic_extra__")
    return parts | more if isinstance(more, dict) else parts


def _computed_fields(cls: type[Any]) -> dict[str, str]:
    """The attributes that are the computed fields of a model, by their names in JSON."""
    decorators: object = attribute_of(cls, "__pydantic_decorators__")
    found = cast("Mapping[str, Any]", getattr(decorators, "computed_fields", {}))
    return {name: name for name in found} | {
        each.info.alias: name for name, each in found.items() if each.info.alias
    }


class _Computed(Later):
    """A computed field of a model, of which ``part`` was made: it may hold other models."""

    is_leaf = False
    __slots__ = ("name", "part")

    def __init__(self, walk: Walk, value: object, around: Around, name: str, part: object) -> None:
        super().__init__(walk, value, around)
        self.name = name
        self.part = part

    def ask(self) -> object:
        return getattr(self.value, self.name)

    def then(self, given: object) -> object:
        return self.walk.plain(_masked(self.walk, self.part, given, self.around), self.around)


def _is_model_of_pydantic_1(cls: type) -> bool:
    return isinstance(attribute_of(cls, "__fields__"), dict) and callable(
        attribute_of(cls, "__get_validators__")
    )


def _model_of_pydantic_1(walk: Walk, value: Any, around: Around) -> object:
    fields: dict[str, object] = _own(value, "__dict__")
    hidden = hidden_fields(_type(value))
    return walk.enter(
        value,
        around,
        lambda inner: walk.mapped(
            ((name, HIDDEN if name in hidden else item) for name, item in fields.items()), inner
        ),
    )


# --- what is of other packages, of which nothing is imported here


def _of_another_package(cls: type[Any]) -> Kind | None:
    def is_one(module: str, name: str) -> bool:
        base = getattr(sys.modules.get(module), name, None)
        return isinstance(base, type) and issubclass(cls, base)

    if is_one("numpy", "ndarray"):
        return _array
    if is_one("numpy", "generic"):
        return _scalar
    if is_one("argparse", "Namespace"):
        return _namespace
    if is_one("sqlalchemy.engine.url", "URL"):
        return Later  # a named tuple, with a repr that does not show its password
    if is_one("pandas._libs.missing", "NAType"):
        return _null
    if is_one("wrapt", "ObjectProxy") or is_one("wrapt", "BaseObjectProxy"):
        is_lazy = is_one("wrapt", "LazyObjectProxy")
        return _type_alone if is_lazy else _proxy
    return None


def _array(walk: Walk, value: Any, around: Around) -> object:
    if 2 * value.size <= walk.limit:
        if value.dtype.kind in "mM" and value.ndim:
            return walk.listed(list(value), around)
        items = value.tolist()
        if value.dtype.kind not in "biuf":
            named = _by_name(value.dtype, items)
            return walk.enter(value, around, lambda inner: walk.plain(named, inner))
        if walk.fits(items):
            return items
    walk.lose("truncated")
    return f"<{full_type_name(_type(value))} {value.dtype} {value.shape}>"


def _by_name(dtype: Any, item: Any) -> object:
    """What numpy has of records, which are tuples, by the names of their fields."""
    if dtype.subdtype is not None:
        dtype = dtype.subdtype[0]
    if dtype.names is None:
        return item
    if type(item) is not tuple and isinstance(item, Iterable):  # a list, or an array inside
        return [_by_name(dtype, part) for part in item]
    # One record, as itself or as a tuple.
    return {name: _by_name(dtype[name], part) for name, part in zip(dtype.names, item, strict=True)}


def _scalar(walk: Walk, value: Any, around: Around) -> object:
    if value.dtype.kind in "mM":
        return _time(value)
    item: Any = _by_name(value.dtype, value.item())
    # The widest numbers have no counterpart in Python.
    return float(item) if type(item) is type(value) else walk.plain(item, around)


def _time(value: Any) -> str | None:
    text = str(value)
    if text == "NaT":
        return None
    if value.dtype.kind == "M":
        return text
    return cast("str", msgspec.to_builtins(value.astype("timedelta64[us]").item()))


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
    if attribute_of(cls, "__iter__") is not None or _is_mapped(cls):
        # To look at it might ask a database.
        return _type_alone(walk, value, around)
    return Later(walk, value)


def _is_mapped(cls: type) -> bool:
    """Whether objects of this class stand for rows of a table: their attributes are looked up."""
    mro: tuple[type, ...] = type.__getattribute__(cls, "__mro__")
    for base in mro:
        for attribute in cast(
            "Mapping[str, object]", type.__getattribute__(base, "__dict__")
        ).values():
            kind = type(attribute)
            if kind in _HARMLESS or kind in (property, cached_property):
                continue
            if attribute_of(kind, "__get__") is not None and (
                attribute_of(kind, "__set__") is not None
                or full_type_name(kind).startswith("django.")
            ):
                return True
    return False


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


def _shown_instead(later: Later, error: Exception) -> object:
    """What is left of a value that could not say what is in it."""
    if isinstance(error, TooSlowError):
        return later.walk.failed(type(later.value), error)
    later.walk.lose("unreadable")
    return Later(later.walk, later.value)
