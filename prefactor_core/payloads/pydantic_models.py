"""Models of pydantic, and objects like them; pydantic is not imported here. Pure."""

# Values of any type come here.
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from datetime import date, datetime
from typing import Any, Final, cast
from uuid import UUID

from prefactor_core.payloads.hidden_fields import hidden_fields
from prefactor_core.payloads.markers import CIRCULAR, HIDDEN, attribute_of
from prefactor_core.payloads.object_fields import field_names, is_foreign, is_proxy, own
from prefactor_core.payloads.payload_walk import ABSENT, Around, Later, Walk, shown_instead
from prefactor_core.payloads.secret_str import SecretStr
from prefactor_core.payloads.timebox import TooSlowError

_MAX_MASKED_DEPTH: Final = 32


def _type(value: object) -> type[Any]:
    return type(value)


def model(walk: Walk, value: object, around: Around) -> object:
    for outer in around:
        if outer is value:
            return CIRCULAR
    return _Model(walk, value, around)


class _Model(Later):
    """A model of pydantic, or an object like one, as ``model_dump()`` returns it."""

    is_leaf = False
    __slots__ = ()

    def ask(self) -> object:
        if _holds_iterator(_parts_of_model(self.value), 0):
            raise TypeError  # the dump would use up the iterator
        return _dumped(type(self.value), self.value)

    def then(self, given: object) -> object:
        masked = _masked(self.walk, given, self.value, self.around)
        return self.walk.plain(masked, (*self.around, self.value))

    def otherwise(self, error: Exception) -> object:
        names = _fields_of_model(self.value)
        if names is None:
            return shown_instead(self, error)
        # Field by field: perhaps only one of them raises or takes too long.
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
            return ABSENT  # the model leaves it out of its dump
        masked = _masked_fields(self.walk, given, self.value, self.around)
        return self.walk.plain(next(iter(masked.values())), self.around)

    def otherwise(self, error: Exception) -> object:
        fields = _parts_of_model(self.value)
        if self.name not in fields or isinstance(error, TooSlowError):
            return self.walk.failed(type(self.value), error)
        # The value itself, without the model's serializers.
        return self.walk.plain(fields[self.name], self.around)


def _holds_iterator(value: object, depth: int) -> bool:
    """Whether ``value`` holds an iterator, which can be read only once."""
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
    elif attribute_of(cls, "__pydantic_fields__") is not None or field_names(cls) is not None:
        parts = _parts_in_json(cls, value).values()
    return any(_holds_iterator(part, depth + 1) for part in parts if type(part) not in _LEAVES)


def _dumped(cls: Any, value: object, **only: object) -> Any:
    dump = cls.model_dump
    try:
        return dump(value, mode="json", warnings=False, **only)
    except Exception:
        pass  # not of pydantic, or a part has no JSON form
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
    """Return the fields of a model of pydantic, and the extra values that it took."""
    fields, more = own(model, "__dict__"), own(model, "__pydantic_extra__")
    return {**fields, **more} if isinstance(more, dict) else dict(fields)


def _masked(walk: Walk, tree: Any, value: object, around: Around) -> Any:
    """Return the dump of a value without the fields that the value hides in its ``repr``.

    The value and its dump are walked side by side.
    """
    cls: type[Any] = type(value)
    if issubclass(cls, SecretStr):
        return SecretStr.MASK
    if attribute_of(cls, "__pydantic_root_model__") is True:
        return _masked(walk, tree, own(value, "root"), around)
    if len(around) > _MAX_MASKED_DEPTH or not isinstance(tree, (dict, list, tuple, deque)):
        return tree
    inner = (*around, value)
    if is_proxy(cls):
        return _masked(walk, tree, own(value, "__wrapped__"), inner)
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
        # A serializer left something out, or two keys became one string.
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
    """Return the fields of a model or a dataclass, by the names that they may have in JSON."""
    infos = cast("Mapping[str, Any] | None", attribute_of(cls, "__pydantic_fields__"))
    names = field_names(cls) if infos is None else infos
    parts: dict[str, object] = {}
    for name in names or ():
        if not is_foreign(attribute_of(cls, name)):
            parts[name] = part = own(value, name)
            if infos is not None and isinstance(alias := infos[name].serialization_alias, str):
                parts[alias] = part
    more = own(value, "__pydantic_extra__")
    return parts | more if isinstance(more, dict) else parts


def _computed_fields(cls: type[Any]) -> dict[str, str]:
    """Return the attributes of the computed fields of a model, by their names in JSON."""
    decorators: object = attribute_of(cls, "__pydantic_decorators__")
    found = cast("Mapping[str, Any]", getattr(decorators, "computed_fields", {}))
    return {name: name for name in found} | {
        each.info.alias: name for name, each in found.items() if each.info.alias
    }


class _Computed(Later):
    """A computed field of a model; ``part``: its dump, in which there may be other models."""

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


def is_model_of_pydantic_1(cls: type) -> bool:
    return isinstance(attribute_of(cls, "__fields__"), dict) and callable(
        attribute_of(cls, "__get_validators__")
    )


def model_of_pydantic_1(walk: Walk, value: Any, around: Around) -> object:
    fields: dict[str, object] = own(value, "__dict__")
    hidden = hidden_fields(_type(value))
    return walk.enter(
        value,
        around,
        lambda inner: walk.mapped(
            ((name, HIDDEN if name in hidden else item) for name, item in fields.items()), inner
        ),
    )
