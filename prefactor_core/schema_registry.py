"""SchemaRegistry: the span types of an agent, put together before it runs. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, cast

import msgspec

from prefactor_core.exceptions import PrefactorValueError

Schema = Mapping[str, Any]
"""A JSON Schema, as the API takes it."""


def content_hash(schema_version: Schema) -> str:
    """Twelve hexadecimal digits that follow from the content, whatever the order of keys."""
    import hashlib  # here: it takes milliseconds to import, and is needed once for a run

    content = msgspec.json.encode(schema_version, order="deterministic")
    return hashlib.sha256(content).hexdigest()[:12]


def _checked(name: str, field: str, schema: Schema) -> dict[str, Any]:
    """A copy of ``schema``; raises :class:`PrefactorValueError` if it can be no JSON Schema."""
    if not isinstance(name, str) or not name:
        raise PrefactorValueError(f"the name of a span type must be a text, got {name!r}")
    if not isinstance(schema, Mapping):
        raise PrefactorValueError(f"{field} of {name!r} must be a mapping, got {schema!r}")
    copied = _copy(schema)
    try:
        msgspec.json.encode(copied)
    except Exception as error:
        raise PrefactorValueError(
            f"{field} of {name!r} cannot be written as JSON: {error}"
        ) from None
    return copied


def _copy(schema: Schema) -> dict[str, Any]:
    """A deep copy made of dicts and lists, whatever mappings and sequences came in."""
    return {key: _copy_value(value) for key, value in schema.items()}


def _copy_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _copy(cast("Schema", value))
    if isinstance(value, list | tuple):
        return [_copy_value(item) for item in cast("Sequence[Any]", value)]
    return deepcopy(value)


class SchemaRegistry:
    """Collects span schemas and gives the ``agent_schema_version`` to register with a run.

    What is put in and what is given out are copies: no later change of a caller's dict
    reaches the registry, and none of the registry's a caller.
    """

    def __init__(self) -> None:
        # The names of all span types, in the order of registration.
        self._names: dict[str, None] = {}
        # Each map by name, in the order of registration.
        self._span_schemas: dict[str, dict[str, Any]] = {}
        self._span_result_schemas: dict[str, dict[str, Any]] = {}
        self._span_type_schemas: dict[str, dict[str, Any]] = {}

    def register(self, name: str, schema: Schema) -> None:
        """Add the schema of a span type's payload.

        Raises :class:`PrefactorValueError` if the name was registered this way before.
        """
        if name in self._span_schemas:
            raise PrefactorValueError(f"Schema '{name}' is already registered")
        self.register_unsafe(name, schema)

    def register_unsafe(self, name: str, schema: Schema) -> None:
        """Add the schema of a span type's payload, in place of one of the same name."""
        self._span_schemas[name] = _checked(name, "schema", schema)
        self._names[name] = None

    def register_result(self, name: str, schema: Schema) -> None:
        """Add the schema of a span type's result.

        Raises :class:`PrefactorValueError` if the name was registered this way before.
        """
        if name in self._span_result_schemas:
            raise PrefactorValueError(f"Result schema '{name}' is already registered")
        self._span_result_schemas[name] = _checked(name, "schema", schema)

    def register_type(
        self,
        name: str,
        params_schema: Schema,
        result_schema: Schema | None = None,
        title: str | None = None,
        description: str | None = None,
        template: str | None = None,
    ) -> None:
        """Add a whole span type: both schemas, and how it is shown.

        ``template`` is Liquid over payload and result, ``{{field}}`` (API.md section 9).
        Raises :class:`PrefactorValueError` if the name was registered this way before.
        """
        if name in self._span_type_schemas:
            raise PrefactorValueError(f"Span type schema '{name}' is already registered")
        span_type: dict[str, Any] = {
            "name": name,
            "params_schema": _checked(name, "params_schema", params_schema),
        }
        if result_schema is not None:
            span_type["result_schema"] = _checked(name, "result_schema", result_schema)
        texts = {"title": title, "description": description, "template": template}
        span_type.update({key: text for key, text in texts.items() if text is not None})
        self._span_type_schemas[name] = span_type
        self._names[name] = None

    def get(self, name: str) -> dict[str, Any] | None:
        """A copy of the payload's schema of a span type; None if there is no such type."""
        if name in self._span_schemas:
            return _copy(self._span_schemas[name])
        if name in self._span_type_schemas:
            return _copy(self._span_type_schemas[name]["params_schema"])
        return None

    def list_schemas(self) -> list[str]:
        """The names of all span types, in order of registration, each once."""
        return list(self._names)

    def has_schema(self, name: str) -> bool:
        """Whether there is a span type of this name."""
        return name in self._names

    def to_agent_schema_version(self, external_id: str) -> dict[str, Any]:
        """All that was registered, as the API takes it (API.md section 9), as a copy.

        ``external_id`` becomes the ``external_identifier``. Empty parts are left out.
        """
        version: dict[str, Any] = {"external_identifier": external_id}
        if self._span_schemas:
            version["span_schemas"] = self._span_schemas
        if self._span_result_schemas:
            version["span_result_schemas"] = self._span_result_schemas
        if self._span_type_schemas:
            version["span_type_schemas"] = list(self._span_type_schemas.values())
        return _copy(version)

    def merge(self, other: SchemaRegistry) -> None:
        """Add everything of ``other``, or nothing.

        Raises :class:`PrefactorValueError` that names every conflict, if a name is in both.
        """
        pairs = [
            ("span_schemas", self._span_schemas, other._span_schemas),
            ("span_result_schemas", self._span_result_schemas, other._span_result_schemas),
            ("span_type_schemas", self._span_type_schemas, other._span_type_schemas),
        ]
        conflicts = [
            f"{kind}/{name}" for kind, mine, theirs in pairs for name in theirs if name in mine
        ]
        if conflicts:
            raise PrefactorValueError(f"Cannot merge registries - conflicting schemas: {conflicts}")
        for _, mine, theirs in pairs:
            mine.update(_copy(theirs))
        self._names.update(other._names)


def choose_schema_version(
    agent_id: str | None,
    given: Schema | None,
    external_id: str | None,
    registry: SchemaRegistry | None,
) -> Schema:
    """The ``agent_schema_version`` to register a run with.

    The one that was given, or else that of the registry. Where it has no identifier, it gets
    ``external_id``; one of the registry without that gets an identifier that follows from its
    content: the same span types are the same version on every run, others are another.

    Raises :class:`PrefactorValueError` if there is neither.
    """
    if given is not None:
        if external_id is None or "external_identifier" in given:
            return given
        return {**given, "external_identifier": external_id}
    if registry is None:
        raise PrefactorValueError(
            "agent_schema_version required when no schema_registry configured. Either "
            "provide agent_schema_version or configure a SchemaRegistry."
        )
    if external_id is None:
        parts = ["auto", agent_id, content_hash(registry.to_agent_schema_version(""))]
        external_id = "-".join(part for part in parts if part is not None)
    return registry.to_agent_schema_version(external_id)
