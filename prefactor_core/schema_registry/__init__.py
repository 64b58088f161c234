"""Span types: their names and JSON Schemas, and checks of payloads against these.

JSON Schemas and Python classes come in; the ``agent_schema_version`` that an agent registers goes
out, and, in development, the problems of recorded payloads. Read ``registry`` first, then
``type_schema`` (schemas of classes) and ``schema_check`` (the checks).
"""

from prefactor_core.schema_registry.entries import Schema
from prefactor_core.schema_registry.registry import SchemaRegistry

__all__ = ["Schema", "SchemaRegistry"]
