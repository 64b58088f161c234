"""What is shown of a value whose parts cannot be: its ``repr`` or the name of its type. Pure."""

from __future__ import annotations

from types import NoneType, WrapperDescriptorType
from typing import Any, Final, cast

MAX_REPR: Final = 1_000
"""So many characters are shown of a ``repr``."""

HIDDEN: Final = "[redacted]"
"""Stands for a value that is not to be seen."""

UNPRINTABLE: Final = "<unprintable>"
CIRCULAR: Final = "<circular>"
TOO_DEEP: Final = "<too deep>"

_MAX_NAME: Final = 200
_QUICK_PARTS: Final = frozenset({str, int, bytes, NoneType})
_HAS_PARTS: Final = 1 << 14  # Py_TPFLAGS_HAVE_GC: its values may refer to others


def utf8(text: str) -> str:
    """``text`` with a question mark for every lone surrogate."""
    if text.isascii():
        return text
    return text.encode("utf-8", "replace").decode()


def attribute_of(cls: type, name: str) -> object:
    """What a type has under ``name``, or None; without asking its metaclass."""
    try:
        return type.__getattribute__(cls, name)
    except AttributeError:
        return None


def type_name(cls: type) -> str:
    """The name of a type, without asking its metaclass."""
    return utf8(cast("str", type.__getattribute__(cls, "__qualname__"))[:_MAX_NAME])


def full_type_name(cls: type) -> str:
    """The name of a type with its module, unless that is ``builtins``."""
    module: object = type.__getattribute__(cls, "__module__")
    if module == "builtins" or not isinstance(module, str):
        return type_name(cls)
    return f"{utf8(module[:_MAX_NAME])}.{type_name(cls)}"


def slow(cls: type) -> str:
    """What stands for a value whose own code takes too long."""
    return f"<slow {type_name(cls)}>"


def unprintable(cls: type) -> str:
    """What stands for a value whose own code raises."""
    return f"<unprintable {type_name(cls)}>"


def shown(value: object) -> str:
    """The ``repr`` of a value, cut at 1,000 characters. Runs code of it, and raises what that
    raises."""
    # A repr may be of a subclass of str, with methods of its own.
    text = str.__str__(repr(value))
    return utf8(text if len(text) <= MAX_REPR else text[:MAX_REPR] + "… [truncated]")


def has_quick_repr(cls: type) -> bool:
    """Whether the ``repr`` of such a value runs no code of others."""
    found: object = type.__getattribute__(cls, "__repr__")
    if found is object.__repr__:
        return True
    # What is written in C asks nobody, unless it is of parts.
    flags = cast("int", type.__getattribute__(cls, "__flags__"))
    return isinstance(found, WrapperDescriptorType) and not flags & _HAS_PARTS


def has_quick_text(error: BaseException) -> bool:
    """Whether ``str(error)`` runs no code of others."""
    # By what is their own: a subclass may make it when it is asked for.
    own: list[Any] = [BaseException.args]
    if issubclass(type(error), OSError):
        own += [OSError.filename, OSError.filename2]
    args, *others = (each.__get__(error) for each in own)
    parts: tuple[object, ...] = (*args, *others)
    return isinstance(attribute_of(type(error), "__str__"), WrapperDescriptorType) and all(
        type(part) in _QUICK_PARTS for part in parts
    )
