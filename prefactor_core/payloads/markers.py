"""Texts that stand for values: their ``repr``, the names of their types, markers. Pure."""

from __future__ import annotations

from types import NoneType, WrapperDescriptorType
from typing import Any, Final, cast

MAX_REPR: Final = 1_000
"""Characters that are shown of a ``repr``, at most."""

HIDDEN: Final = "[redacted]"
"""Stands for a value that must not be seen."""

UNPRINTABLE: Final = "<unprintable>"
CIRCULAR: Final = "<circular>"
TOO_DEEP: Final = "<too deep>"

_MAX_NAME: Final = 200
_QUICK_PARTS: Final = frozenset({str, int, bytes, NoneType})
_HAS_PARTS: Final = 1 << 14  # Py_TPFLAGS_HAVE_GC: a value may refer to others


def utf8(text: str) -> str:
    """Return ``text`` with a question mark for every lone surrogate."""
    if text.isascii():
        return text
    return text.encode("utf-8", "replace").decode()


def attribute_of(cls: type, name: str) -> object:
    """Return the attribute ``name`` of a type, or None, without asking its metaclass."""
    try:
        return type.__getattribute__(cls, name)
    except AttributeError:
        return None


def type_name(cls: type) -> str:
    """Return the name of a type, without asking its metaclass."""
    return utf8(cast("str", type.__getattribute__(cls, "__qualname__"))[:_MAX_NAME])


def full_type_name(cls: type) -> str:
    """Return the name of a type with its module, unless that is ``builtins``."""
    module: object = type.__getattribute__(cls, "__module__")
    if module == "builtins" or not isinstance(module, str):
        return type_name(cls)
    return f"{utf8(module[:_MAX_NAME])}.{type_name(cls)}"


def slow(cls: type) -> str:
    """Return the marker for a value whose own code takes too long."""
    return f"<slow {type_name(cls)}>"


def unprintable(cls: type) -> str:
    """Return the marker for a value whose own code raises."""
    return f"<unprintable {type_name(cls)}>"


def shown(value: object) -> str:
    """Return the ``repr`` of a value, cut at 1,000 characters. It runs the value's own code, which
    may raise."""
    # A repr may be an instance of a subclass of str, with methods of its own.
    text = str.__str__(repr(value))
    return utf8(text if len(text) <= MAX_REPR else text[:MAX_REPR] + "… [truncated]")


def has_quick_repr(cls: type) -> bool:
    """Whether the ``repr`` of such a value runs no foreign code."""
    found: object = type.__getattribute__(cls, "__repr__")
    if found is object.__repr__:
        return True
    # A repr in C runs foreign code only for the parts of a value.
    flags = cast("int", type.__getattribute__(cls, "__flags__"))
    return isinstance(found, WrapperDescriptorType) and not flags & _HAS_PARTS


def has_quick_text(error: BaseException) -> bool:
    """Whether ``str(error)`` runs no foreign code."""
    # By the base class: in a subclass the attributes may be properties.
    own: list[Any] = [BaseException.args]
    if issubclass(type(error), OSError):
        own += [OSError.filename, OSError.filename2]
    args, *others = (each.__get__(error) for each in own)
    parts: tuple[object, ...] = (*args, *others)
    return isinstance(attribute_of(type(error), "__str__"), WrapperDescriptorType) and all(
        type(part) in _QUICK_PARTS for part in parts
    )
