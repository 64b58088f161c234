"""A client of this library, in the process of the benchmark itself."""

from __future__ import annotations

from typing import Any

from prefactor_core import PrefactorCoreClient, SchemaRegistry, open_prefactor


def open_client(url: str, **options: Any) -> PrefactorCoreClient:
    """A client of the API at ``url``, with one span type, ``agent:llm``."""
    registry = SchemaRegistry()
    registry.register_type("agent:llm", {"type": "object"})
    return open_prefactor(api_url=url, api_token="token", schema_registry=registry, **options)
