"""Checked copies of schemas, as entries of an ``agent_schema_version``. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, TypeAlias, cast

import msgspec

from prefactor_core.exceptions import PrefactorValueError, in_message
from prefactor_core.exceptions.checks import check_text, json_problem
from prefactor_core.schema_registry.data_risk import DataRisk, data_risk_json

Schema: TypeAlias = Mapping[str, Any]
"""A JSON Schema, as the API accepts it."""


def check_name(name: object) -> None:
    if not isinstance(name, str) or not name:
        raise PrefactorValueError(f"the name of a span type must be a text, got {in_message(name)}")
    check_text("the name of a span type", name)


def checked_schema(name: str, field: str, schema: object) -> dict[str, Any]:
    """Return a copy of ``schema``; raise :class:`PrefactorValueError` if it is no JSON Schema."""
    check_name(name)
    if not isinstance(schema, Mapping):
        hint = "; a class is given as params= or result=" if isinstance(schema, type) else ""
        raise PrefactorValueError(
            f"{field} of {name!r} must be a mapping, got {in_message(schema)}{hint}"
        )
    copied = copy_schema(cast("Schema", schema))
    try:
        msgspec.json.encode(copied)
    except Exception as error:
        raise PrefactorValueError(
            f"{field} of {name!r} cannot be written as JSON: {json_problem(copied, error)}"
        ) from None
    return copied


def check_template_of(name: str, template: str | None, *schemas: Schema | None) -> None:
    if template is not None:
        # Here: its patterns take time to compile.
        from prefactor_core.schema_registry.template_fields import check_template

        check_template(name, template, *schemas)


def entry_of(
    name: str,
    title: str | None,
    description: str | None,
    template: str | None,
    data_risk: DataRisk | Mapping[str, object] | None,
    **schemas: dict[str, Any] | None,
) -> dict[str, Any]:
    """Return an entry of ``span_type_schemas`` or ``quality_schemas``, without what is None."""
    texts = {"title": title, "description": description, "template": template}
    for field, text in texts.items():
        if text is not None:
            check_text(f"{field} of {name!r}", text)
    entry = {
        "name": name,
        **schemas,
        **texts,
        "data_risk": None if data_risk is None else data_risk_json(name, data_risk),
    }
    return {key: value for key, value in entry.items() if value is not None}


def copy_schema(schema: Schema) -> dict[str, Any]:
    """Return a deep copy, with dicts and lists for any mappings and sequences."""
    return {key: _copy_value(value) for key, value in schema.items()}


def _copy_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return copy_schema(cast("Schema", value))
    if isinstance(value, list | tuple):
        return [_copy_value(item) for item in cast("Sequence[Any]", value)]
    return deepcopy(value)
