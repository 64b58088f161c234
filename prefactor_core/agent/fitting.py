"""Values as the fields of a standard type want them: a text where they want a text, for example.

Pure.
"""

# Decoded JSON of any form comes here.
# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import msgspec
from msgspec import UNSET, Struct
from msgspec.structs import fields

from prefactor_core.schema_registry.sensitive import Sensitive, hidden, sensitive_labels
from prefactor_core.span_types import Document


@cache
def required(cls: type[Struct]) -> tuple[str, ...]:
    """The names of the fields without a default."""
    return tuple(field.name for field in fields(cls) if field.required)


@cache
def hints_of(cls: type[Struct]) -> dict[str, Any]:
    """The types of the fields by name, as they are annotated."""
    hints = get_type_hints(cls)
    return {name: hints[name] for name in cls.__struct_fields__}


def kind_of(hint: Any) -> Any:
    """The type of a field, without the alternatives None and Sensitive."""
    alternatives = get_args(hint)
    return alternatives[0] if NoneType in alternatives or Sensitive in alternatives else hint


def surely_fits(value: object, hint: Any) -> bool:
    """Whether a value surely fits, at a glance."""
    kind = kind_of(hint)
    if kind is object:
        return True
    if kind is str:
        return type(value) is str
    return get_origin(kind) is Mapping and type(value) is dict and "$sensitive" not in value


def fitted_value(tree: Any, hint: Any) -> Any:
    """Return decoded JSON in the nearest form that fits; UNSET if there is none."""
    kind = kind_of(hint)
    if kind is object:
        return tree
    # A sensitive value is checked without its tagged form.
    is_tagged = sensitive_labels(tree) is not None
    value = tree["value"] if is_tagged else tree
    if kind is str:
        return tree if isinstance(value, str) else _text(tree)
    if kind in (int, float):
        is_number = isinstance(value, int | kind) and not isinstance(value, bool)
        return tree if is_number else UNSET
    origin, is_object = get_origin(kind), isinstance(tree, dict) and not is_tagged
    if origin is Sequence:
        items: list[Any] = tree if isinstance(tree, list) else [tree]
        return [fitted_value(item, get_args(kind)[0]) for item in items]
    if origin is Mapping:
        return tree if is_object else {"value": tree}
    if origin is dict:
        return tree if is_object and all(isinstance(v, str) for v in tree.values()) else UNSET
    if not is_object:
        return {"text": _text(tree)} if kind is Document else UNSET
    fields = fitted_fields(tree, hints_of(kind))
    found = {name: value for name, value in fields.items() if value is not UNSET}
    return found if all(name in found for name in required(kind)) else UNSET


def fitted_fields(tree: dict[str, Any], hints: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields, each as it fits; those that no hint has as they are."""
    fitted = dict(tree)
    for name, value in tree.items():
        if name in hints and not (value is None and NoneType in get_args(hints[name])):
            fitted[name] = fitted_value(value, hints[name])
    return fitted


def _text(tree: object) -> str:
    """Return decoded JSON as a text, with labels in place of sensitive values."""
    shown = hidden(tree)
    return shown if isinstance(shown, str) else msgspec.json.encode(shown).decode()
