"""Span types: their names, their JSON Schemas, and whether a payload fits.

Schemas and Python types come in; the version that an agent registers goes out. Read ``registry``
first.
"""

from prefactor_core.schema_registry.registry import Schema, SchemaRegistry

__all__ = ["Schema", "SchemaRegistry"]
