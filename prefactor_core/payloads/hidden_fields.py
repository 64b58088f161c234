"""Fields that a class keeps out of its ``repr``, as it does with secrets. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from functools import lru_cache
from typing import Any, Final, cast

from prefactor_core.payloads.markers import attribute_of

_CLASSES: Final = 1_024


def hidden_fields(cls: type) -> frozenset[str]:
    """Return the names, also those in JSON, of the fields that ``cls`` leaves out of its ``repr``.

    Those are ``field(repr=False)`` of a dataclass, ``field(repr=False)`` or a field with a
    ``repr`` of its own in attrs, ``Field(repr=False)`` and ``computed_field(repr=False)`` of
    pydantic. Any other class hides none. Values inside of shown fields are not looked at.
    """
    return _judged(cast("Hashable", cls))


@lru_cache(maxsize=_CLASSES)
def _judged(cls: Any) -> frozenset[str]:
    try:
        return frozenset(_of_attrs(cls)) | _of_pydantic(cls) | _of_dataclass(cls)
    except (RecursionError, MemoryError):
        raise  # says nothing about the class
    except Exception:
        return frozenset()  # the class only looks like one of these


def _of_dataclass(cls: type) -> set[str]:
    found = cast("Mapping[str, Any]", attribute_of(cls, "__dataclass_fields__") or {})
    return {name for name, field in found.items() if not field.repr}


def _of_attrs(cls: type) -> set[str]:
    found = cast("Iterable[Any]", attribute_of(cls, "__attrs_attrs__") or ())
    return {field.name for field in found if field.repr is not True}


def _of_pydantic(cls: type) -> set[str]:
    infos: dict[str, Any]
    found = cast("Mapping[str, Any] | None", attribute_of(cls, "__pydantic_fields__"))
    if found is not None:
        decorators = cast("Any", attribute_of(cls, "__pydantic_decorators__"))
        computed: Mapping[str, Any] = decorators.computed_fields if decorators is not None else {}
        infos = {**found, **{name: each.info for name, each in computed.items()}}
    else:
        # Version 1. (In version 2 this name is deprecated and warns when it is read.)
        before = cast("Mapping[str, Any]", attribute_of(cls, "__fields__") or {})
        infos = {name: each.field_info for name, each in before.items()}
    names: set[str] = set()
    for name, info in infos.items():
        if not info.repr:
            aliases: tuple[Any, Any] = info.alias, getattr(info, "serialization_alias", None)
            names.update((name, *filter(None, aliases)))
    return names
