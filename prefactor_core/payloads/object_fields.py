"""The fields of objects, and which of them are read without foreign code. Pure."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Mapping
from functools import cached_property
from types import (
    BuiltinFunctionType,
    ClassMethodDescriptorType,
    FunctionType,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodDescriptorType,
    WrapperDescriptorType,
)
from typing import Any, Final, Protocol, cast

from prefactor_core.payloads.markers import UNPRINTABLE, attribute_of, full_type_name


def is_of(cls: type, module: str, name: str) -> bool:
    """Whether a class is, or derives from, the class ``name`` of a module that is not imported
    for this."""
    base = getattr(sys.modules.get(module), name, None)
    return isinstance(base, type) and issubclass(cls, base)


def is_proxy(cls: type) -> bool:
    """Whether it is a proxy of wrapt, which passes everything on to the wrapped object."""
    return is_of(cls, "wrapt", "ObjectProxy") or is_of(cls, "wrapt", "BaseObjectProxy")


def field_names(cls: type[Any]) -> list[str] | None:
    """Return the fields of a dataclass or an attrs class; None for any other class."""
    if attribute_of(cls, "__dataclass_fields__") is not None:
        return [field.name for field in dataclasses.fields(cls)]
    if (attributes := attribute_of(cls, "__attrs_attrs__")) is not None:
        names = [
            cast("_Named", attribute).name for attribute in cast("Iterable[object]", attributes)
        ]
        # As in msgspec, private attributes of attrs are no fields.
        return [name for name in names if not name.startswith("_")]
    return None


class _Named(Protocol):
    name: str


def own(value: object, name: str) -> Any:
    """Return an attribute of an object without running the object's own code."""
    try:
        return object.__getattribute__(value, name)
    except AttributeError:
        return UNPRINTABLE


def is_foreign(attribute: object) -> bool:
    """Whether reading this attribute of a class on an instance may run foreign code."""
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


def is_mapped(cls: type) -> bool:
    """Whether objects of this class map rows of a table: reading an attribute may run a query."""
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
