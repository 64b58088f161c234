"""The ``agent_schema_version`` that a run is registered with. Pure."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from prefactor_core.exceptions import PrefactorValueError, in_message
from prefactor_core.exceptions.checks import json_problem
from prefactor_core.schema_registry.entries import Schema
from prefactor_core.schema_registry.registry import SchemaRegistry


def content_hash(schema_version: Schema) -> str:
    """Return twelve hexadecimal digits that depend on the content, and not on the order of keys."""
    import hashlib  # here: it takes milliseconds to import, and is needed once for a run

    content = msgspec.json.encode(schema_version, order="deterministic")
    return hashlib.sha256(content).hexdigest()[:12]


def choose_schema_version(
    agent_id: str | None,
    given: Schema | SchemaRegistry,
    external_id: str | None,
) -> Schema:
    """Return the ``agent_schema_version`` to register a run with.

    It is ``given``, or that of a registry. Without an identifier of its own it gets
    ``external_id``, or else one made from its content: the same span types are the same version
    on every run.

    Raises :class:`PrefactorValueError` if ``given`` is no mapping, or cannot be written as JSON.
    """
    if isinstance(given, SchemaRegistry):
        given = given.to_agent_schema_version("")
    elif not isinstance(given, Mapping):
        raise PrefactorValueError(
            f"agent_schema_version must be a mapping, got {in_message(given)}"
        )
    elif given.get("external_identifier") is not None:
        return given
    if external_id is None:
        try:
            content = content_hash({**given, "external_identifier": ""})
        except Exception as error:
            raise PrefactorValueError(
                f"agent_schema_version cannot be written as JSON: {json_problem(given, error)}"
            ) from None
        parts = ["auto", agent_id, content]
        external_id = "-".join(part for part in parts if part is not None)
    return {**given, "external_identifier": external_id}
