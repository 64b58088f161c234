"""quick_check: whether a value surely fits a plain JSON Schema. Pure.

jsonschema can name the problems of any schema, and takes 100 us and more for it. Most payloads
have no problem, and most schemas are plain: a few functions find that out in a tenth of the time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias, cast

QuickCheck: TypeAlias = Callable[[Any], bool]

_MOST_PARTS: Final = 100
"""Parts of a schema; each may be compared with each part of a value."""

_TAG: Final = "$sensitive"
_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_ANNOTATIONS: Final = frozenset({"title", "description", "default", "examples", "$comment"})


class _NotPlainError(Exception):
    """The schema has a keyword, or a form of one, that is not known here."""


def quick_check(schema: object) -> QuickCheck | None:
    """Return a function that is True only for values, decoded JSON, that fit the valid ``schema``.

    False says nothing: the value does not fit, or has a sensitive value. None for a schema of more
    than 100 parts, or with other keywords than the most usual ones.
    """
    if isinstance(schema, dict):
        fields = cast("dict[str, object]", schema)
        if fields.get("$schema", _DIALECT) != _DIALECT:
            return None
        schema = {name: value for name, value in fields.items() if name != "$schema"}
    try:
        return _Compiler().check_of(schema)
    except _NotPlainError:
        return None


class _Compiler:
    def __init__(self) -> None:
        self._parts = 0

    def check_of(self, schema: Any) -> QuickCheck:
        self._parts += 1
        if self._parts > _MOST_PARTS:
            raise _NotPlainError
        if isinstance(schema, bool):
            return lambda _: schema
        checks: list[QuickCheck] = []
        for keyword, value in schema.items():
            match keyword:
                case "type":
                    checks.append(_type_check(value))
                case "enum" if all(isinstance(each, str | None) for each in value):
                    checks.append(_enum_check(value))
                case "anyOf":
                    checks.append(_any_check([self.check_of(each) for each in value]))
                case "items":
                    checks.append(_items_check(self.check_of(value)))
                case "properties" | "required" | "additionalProperties":
                    pass  # together
                case _ if keyword in _ANNOTATIONS:
                    pass
                case _:
                    raise _NotPlainError
        properties = schema.get("properties", {})
        if not schema.keys().isdisjoint(("properties", "required", "additionalProperties")):
            checks.append(
                _object_check(
                    {name: self.check_of(each) for name, each in properties.items()},
                    schema.get("required", []),
                    self.check_of(schema.get("additionalProperties", True)),
                )
            )
        return _all_check(checks)


def _type_check(names: str | list[str]) -> QuickCheck:
    names = [names] if isinstance(names, str) else names
    return _any_check([_TYPES[name] for name in names])


def _all_check(checks: list[QuickCheck]) -> QuickCheck:
    match checks:
        case [check]:
            return check
        case [first, second]:  # as most are: a type, and its properties
            return lambda value: first(value) and second(value)
        case _:
            return lambda value: all(check(value) for check in checks)


def _any_check(checks: list[QuickCheck]) -> QuickCheck:
    # Most are of types alone, "a string or null", and take one look together.
    types = frozenset[type]().union(*(each.types for each in checks if isinstance(each, _OfType)))
    others = [each for each in checks if not isinstance(each, _OfType)]
    match others:
        case []:
            return _OfType(types)
        case [other]:  # "an array of these, or null"
            return lambda value: type(value) in types or other(value)
        case _:
            return lambda value: type(value) in types or any(check(value) for check in others)


class _OfType:
    """Whether a value, decoded JSON, is of one of the types."""

    def __init__(self, types: frozenset[type]) -> None:
        self.types = types

    def __call__(self, value: Any) -> bool:
        return type(value) in self.types


def _enum_check(values: list[str | None]) -> QuickCheck:
    known = frozenset(values)
    return lambda value: isinstance(value, str | None) and value in known


def _items_check(check: QuickCheck) -> QuickCheck:
    def check_items(value: Any) -> bool:
        if not isinstance(value, list):
            return _is_untagged(value)
        return all(map(check, cast("list[object]", value)))

    return check_items


def _object_check(
    properties: dict[str, QuickCheck], required: list[str], other: QuickCheck
) -> QuickCheck:
    needed = frozenset(required)

    def check(value: Any) -> bool:
        if not isinstance(value, dict):
            return True
        fields = cast("dict[str, object]", value)
        if _TAG in fields or not needed <= fields.keys():
            return False
        return all(properties.get(name, other)(field) for name, field in fields.items())

    return check


def _is_untagged(value: Any) -> bool:
    return not isinstance(value, dict) or _TAG not in value


def _is_integer(value: Any) -> bool:
    return type(value) is int or (type(value) is float and value.is_integer())


_TYPES: Final[dict[str, QuickCheck]] = {
    "string": _OfType(frozenset({str})),
    "number": _OfType(frozenset({int, float})),
    "integer": _is_integer,
    "boolean": _OfType(frozenset({bool})),
    "null": _OfType(frozenset({type(None)})),
    "array": _OfType(frozenset({list})),
    "object": lambda value: isinstance(value, dict) and _TAG not in value,
}
