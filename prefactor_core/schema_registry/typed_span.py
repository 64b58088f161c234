"""Spans that are opened with an object of a registered class, not with a name. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from prefactor_core.exceptions import PrefactorValueError
from prefactor_core.schema_registry.registry import SchemaRegistry
from prefactor_core.schema_registry.span_type import NamedParams
from prefactor_core.schema_registry.type_schema import Fields, SpanParams

TypedStep: TypeAlias = Fields | SpanParams[Any]
"""Parameters that identify their span type."""


def name_and_params(
    registry: SchemaRegistry,
    step: TypedStep,
    payload: Mapping[str, object] | Fields | None,
) -> tuple[str, object]:
    """Return the name of the span type of ``step``, and the parameters of the span.

    ``step``: parameters made by a :class:`~prefactor_core.SpanType`, or of a class that
    ``registry`` knows.
    Raises :class:`PrefactorValueError` for anything else.
    """
    known = registry.names_by_class.get(type(step))
    params: object = step
    if known is not None:
        name = known
    elif isinstance(step, NamedParams):
        name, params = step.name, step.params
    elif isinstance(step, type | Mapping | None):  # pyright: ignore[reportUnnecessaryComparison]
        # Only the class: the value may be a payload.
        got = (
            f"the class {step.__qualname__}" if isinstance(step, type) else type(step).__qualname__
        )
        if isinstance(step, Mapping):
            got += "; that of a TypedDict goes by what register_type() gave, any other by payload="
        raise PrefactorValueError(
            "schema_name must be the name of a span type, or parameters of a registered class, "
            f"got {got}"
        )
    else:
        name = registry.name_of(step)
    if payload is not None:
        raise PrefactorValueError(
            f"a span of {name!r} that is opened with its parameters takes no payload beside them"
        )
    return name, params


def from_result(step: TypedStep) -> tuple[str, ...]:
    """Return the names of the payload fields that are filled in from the result."""
    params: object = step.params if isinstance(step, NamedParams) else step
    cls = type(params)
    # From the class, which was checked when it was registered.
    return cls.from_result if issubclass(cls, SpanParams) else ()
