"""JSON Schemas of Python classes, and the fields of their instances. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from inspect import cleandoc
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    ForwardRef,
    Generic,
    Protocol,
    TypeAlias,
    TypeVar,
    cast,
    get_origin,
)

import msgspec

from prefactor_core.exceptions import PrefactorValueError, in_message, type_in_message

if TYPE_CHECKING:
    from msgspec.inspect import NamedTupleType, StructType

Result = TypeVar("Result")

_REF = "#/$defs/"
_ANYTHING: list[object] = [object, Any]
# Defaults are values of a program, which may be secrets, or differ on each run. A discriminator
# belongs to OpenAPI, not to JSON Schema.
_LEFT_OUT = ("default", "discriminator")
_PROPERTIES = ("properties", "patternProperties")
_VALUES = ("enum", "const", "examples")


class SpanParams(Generic[Result]):
    """A base class for parameters; it tells type checkers the type of the result.

    ``class Ask(Struct, SpanParams[Answer])``: a span of ``Ask(...)`` takes an ``Answer`` as its
    result. The base adds nothing to the class, and works with structs, dataclasses and models of
    pydantic.

    ``from_result``: names in JSON of the payload fields that are filled in from the result when
    the span ends. They stay out of the payload if the span was reported before its end, by
    ``start()`` or because of a child, or if they would make it larger than ``max_payload_bytes``.
    """

    __slots__ = ()

    from_result: ClassVar[tuple[str, ...]] = ()


class DataclassInstance(Protocol):
    """An instance of any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]


class PydanticModel(Protocol):
    """An instance of any model of pydantic."""

    model_config: ClassVar[Any]

    def model_dump_json(self) -> str: ...


Fields: TypeAlias = msgspec.Struct | DataclassInstance | PydanticModel
"""An object with fields that can be the parameters or the result of a span."""


def has_fields(value: object) -> bool:
    """Whether ``value`` is a mapping, or an object of a class of fields."""
    if isinstance(value, Mapping | msgspec.Struct):
        return True
    marks = "__dataclass_fields__", "model_dump_json"
    return not isinstance(value, type) and any(hasattr(value, mark) for mark in marks)


def result_type_of(params: type) -> type | None:
    """Return ``R`` of a class that derives from ``SpanParams[R]``; None for any other class, and
    if ``R`` is no class."""
    for base in getattr(get_origin(params) or params, "__mro__", ()):
        for generic in base.__dict__.get("__orig_bases__", ()):
            if get_origin(generic) is SpanParams:
                result: object = generic.__args__[0]
                no_class = result in _ANYTHING or isinstance(result, TypeVar | ForwardRef)
                return None if no_class else cast("type", result)
    return None


def check_from_result(name: str, params: type) -> None:
    """Raise :class:`PrefactorValueError`, with the ``name`` of the span type, for a
    ``from_result`` of ``params`` that is no tuple of names."""
    cls: object = get_origin(params) or params
    if not (isinstance(cls, type) and issubclass(cls, SpanParams)):
        return
    given: object = cls.from_result
    names = cast("tuple[object, ...]", given) if isinstance(given, tuple) else (None,)
    if not all(isinstance(each, str) for each in names):
        raise PrefactorValueError(
            f"from_result of {cls.__qualname__}, the params of {name!r}, must be a tuple of the "
            f"names of fields, such as ('tokens',), and no field itself, got {in_message(given)}"
        )


def schema_of(name: str, field: str, cls: object) -> dict[str, Any]:
    """Return the JSON Schema of the recorded form of ``cls``.

    References are resolved: only a type that refers to itself keeps its definition in ``$defs``.
    Defaults are left out.
    Raises :class:`PrefactorValueError`, with ``field`` and the ``name`` of the span type, for a
    class that has no schema, or is no object in JSON.
    """
    schema: dict[str, Any] | None = None
    why = ""
    try:
        schema = _resolved(_given_schema(cls))
    except Exception as error:
        # Not for an object, which may be a payload: the error shows its content.
        is_type = isinstance(cls, type) or get_origin(cls) is not None
        why = (str(error).rpartition("\n")[2] if is_type else "") or type(error).__name__
    if schema is None:
        raise PrefactorValueError(
            f"{field} of {name!r}, {_shown(cls)}, has no JSON Schema: {why}. It must be a "
            "msgspec struct, a dataclass, a TypedDict or a pydantic model of types that JSON "
            "has; or give a JSON Schema of your own"
        )
    if schema.get("type") != "object":
        raise PrefactorValueError(
            f"{field} of {name!r} must be a class that is an object in JSON, got {_shown(cls)}; "
            "or give a JSON Schema of your own"
        )
    return schema


def _given_schema(cls: object) -> dict[str, Any]:
    # By its method, since pydantic is not ours to import.
    of_pydantic: Callable[..., dict[str, Any]] | None = getattr(cls, "model_json_schema", None)
    if of_pydantic is None:
        return _by_name(msgspec.json.schema(cls, schema_hook=_schema_of_object), cls)
    config: Mapping[str, object] = getattr(cls, "model_config", {})
    # The recorded form is the dump of the model.
    return of_pydantic(mode="serialization", by_alias=bool(config.get("serialize_by_alias", False)))


def _by_name(schema: dict[str, Any], cls: object) -> dict[str, Any]:
    """Return a schema of msgspec in which arrays with names inside of ``cls`` are objects, as they
    are recorded."""
    definitions: dict[str, Any] = schema.get("$defs", {})
    for info in _arrays_with_names(cls):
        name = info.cls.__name__
        items: list[Any] | None = definitions.get(name, {}).get("prefixItems")
        if items is None or cast("object", info.cls) is cls:
            continue
        names = [field.encode_name for field in info.fields]
        required = [field.encode_name for field in info.fields if field.required]
        tag = getattr(info, "tag_field", None)
        if tag is not None:
            names, required = [tag, *names], [tag, *required]
        definitions[name] = {
            "title": definitions[name]["title"],
            "type": "object",
            "properties": dict(zip(names, items, strict=True)),
            "required": required,
        }
    return schema


def _arrays_with_names(cls: object) -> list[NamedTupleType | StructType]:
    from msgspec import inspect  # here: few programs need it

    found: list[NamedTupleType | StructType] = []
    parts: list[object] = [inspect.type_info(cls)]
    seen = set[int]()
    for part in parts:  # the list grows meanwhile
        if isinstance(part, tuple | list):
            parts += cast("Sequence[object]", part)
        elif isinstance(part, inspect.Type | inspect.Field) and id(part) not in seen:
            seen.add(id(part))
            if isinstance(part, inspect.NamedTupleType) or (
                isinstance(part, inspect.StructType) and part.array_like
            ):
                found.append(part)
            parts += [getattr(part, name) for name in part.__struct_fields__]
    return found


def _schema_of_object(cls: type) -> dict[str, Any]:
    if cls is object:
        # Any type. Not {}: msgspec takes that for no schema.
        return {"type": ["string", "number", "boolean", "object", "array", "null"]}
    raise NotImplementedError


def _resolved(schema: dict[str, Any]) -> dict[str, Any]:
    definitions: dict[str, Any] = schema.pop("$defs", {})
    below = {name: _references(definition) for name, definition in definitions.items()}
    kept: dict[str, Any] = {}

    def refers_to_itself(name: str) -> bool:
        seen = set[str]()
        waiting = [*below[name]]
        while waiting:
            reached = waiting.pop()
            if reached not in seen:
                seen.add(reached)
                waiting += below[reached]
        return name in seen

    def resolve(node: Any) -> Any:
        if isinstance(node, list):
            return [resolve(item) for item in cast("Sequence[Any]", node)]
        if not isinstance(node, dict):
            return deepcopy(node)
        parts = cast("dict[str, Any]", node)
        reference = parts.get("$ref")
        if isinstance(reference, str) and reference.startswith(_REF):
            name = reference.removeprefix(_REF)
            # Keywords beside a reference override those of its definition.
            rest = keywords({key: item for key, item in parts.items() if key != "$ref"})
            if refers_to_itself(name):
                if name not in kept:
                    kept[name] = None  # before resolving: it refers to itself
                    kept[name] = resolve(definitions[name])
                return {"$ref": reference, **rest}
            return {**resolve(definitions[name]), **rest}
        return keywords(parts)

    def keywords(parts: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, item in parts.items():
            if key in _LEFT_OUT:
                continue
            if key in _PROPERTIES:
                found[key] = {name: resolve(below) for name, below in item.items()}
            elif key in _VALUES:
                found[key] = deepcopy(item)
            elif key == "description":
                # Some versions of Python keep the indentation of docstrings.
                found[key] = cleandoc(item)
            else:
                found[key] = resolve(item)
        return found

    root: dict[str, Any] = schema
    if "$ref" in root:
        # Also a root that refers to itself must show its type.
        root = {**definitions[root["$ref"].removeprefix(_REF)], **root}
        del root["$ref"]
    resolved: dict[str, Any] = resolve(root)
    return {**resolved, "$defs": kept} if kept else resolved


def _references(node: Any) -> list[str]:
    """Return the names of the definitions that a part of a schema refers to."""
    if isinstance(node, list):
        return [name for item in cast("Sequence[Any]", node) for name in _references(item)]
    if not isinstance(node, dict):
        return []
    parts = cast("dict[str, Any]", node)
    reference = parts.get("$ref")
    found = [name for item in parts.values() for name in _references(item)]
    if isinstance(reference, str) and reference.startswith(_REF):
        found.append(reference.removeprefix(_REF))
    return found


def _shown(cls: object) -> str:
    if isinstance(cls, type):
        return cls.__qualname__
    # Only the class of an object: it may be a payload.
    return repr(cls) if get_origin(cls) is not None else type_in_message(cls)
