"""The OpenAPI document of this server, made from its endpoints. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from prefactor_core.config._version import __version__
from prefactor_core.local.answers import Error
from prefactor_core.local.endpoint import Endpoint

_TEXT: Final = {"type": "string"}
_PARAMETERS: Final[dict[str, Any]] = {
    "pagination[offset]": {"type": "integer", "minimum": 0, "maximum": 2**31},
    "pagination[page_size]": {"type": "integer", "minimum": 1, "maximum": 100},
    "sorting": {"enum": ["id", "-id"]},
    "sorting[field]": {"const": "id"},
    "sorting[direction]": {"enum": ["asc", "desc"]},
    "start_time": {"type": "string", "format": "date-time"},
    "end_time": {"type": "string", "format": "date-time"},
    "include_summaries": {"enum": ["true", "false"]},
}

_ERRORS: Final = {
    "400": "The body is not JSON, or no object.",
    "401": "The token is wrong, has expired, or is of the wrong scope.",
    "404": "There is no object with this id.",
    "409": "The state of the object does not allow this, or the idempotency key was used.",
    "413": "The body is too large.",
    "422": "A field is missing or invalid.",
    "503": "The database is locked, or cannot be written. Try again.",
}
_READ_ERRORS: Final = ("401", "404", "422", "503")


def openapi_document(endpoints: Iterable[Endpoint]) -> bytes:
    """The document as JSON: OpenAPI 3.1, whose schemas are JSON Schema 2020-12."""
    endpoints = list(endpoints)
    forms: list[Any] = [Error]
    for each in endpoints:
        forms += [each.answer] if each.body is None else [each.answer, each.body]
    schemas, components = msgspec.json.schema_components(
        forms, ref_template="#/components/schemas/{name}"
    )
    schema_of = {repr(form): schema for form, schema in zip(forms, schemas, strict=True)}
    paths: dict[str, dict[str, object]] = {}
    for each in endpoints:
        operations = paths.setdefault(f"/api/v1/{each.path}", {})
        operations[each.method.lower()] = _operation(each, schema_of, _links(each, endpoints))
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "Local Prefactor",
                "version": __version__,
                "description": "The API of Prefactor on this machine.",
            },
            "security": [{"token": []}, {}],
            "paths": paths,
            "components": {
                "schemas": components,
                "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            },
        }
    )


def _operation(
    endpoint: Endpoint, schema_of: dict[str, dict[str, Any]], links: dict[str, object]
) -> dict[str, object]:
    parameters = [_parameter(name, "query", name in endpoint.required) for name in endpoint.query]
    if "{id}" in endpoint.path:
        parameters.append(_parameter("id", "path", required=True))
    codes = _READ_ERRORS if endpoint.method == "GET" else _ERRORS
    error = schema_of[repr(Error)]
    operation: dict[str, object] = {
        "operationId": _name(endpoint),
        "summary": endpoint.summary,
        "parameters": parameters,
        "responses": {
            "200": _content("Success.", schema_of[repr(endpoint.answer)]) | {"links": links},
            **{code: _content(_ERRORS[code], error) for code in codes},
        },
    }
    if endpoint.body is not None:
        schema = schema_of[repr(endpoint.body)]
        operation["requestBody"] = {
            "required": any(field.required for field in msgspec.structs.fields(endpoint.body)),
            "content": {"application/json": {"schema": schema}},
        }
    return operation


def _links(maker: Endpoint, endpoints: Iterable[Endpoint]) -> dict[str, object]:
    """The calls about an object that ``maker`` creates, with its id."""
    if maker.method != "POST" or "{id}" in maker.path:
        return {}
    kind = maker.path.removesuffix("/register")
    return {
        _name(each): {
            "operationId": _name(each),
            "parameters": {"id": "$response.body#/details/id"},
        }
        for each in endpoints
        if each.path == f"{kind}/{{id}}" or each.path.startswith(f"{kind}/{{id}}/")
    }


def _content(description: str, schema: dict[str, Any]) -> dict[str, object]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _parameter(name: str, place: str, required: bool) -> dict[str, object]:
    schema = _PARAMETERS.get(name, _TEXT)
    return {"name": name, "in": place, "required": required, "schema": schema}


def _name(endpoint: Endpoint) -> str:
    path = endpoint.path.replace("{id}", "one").replace("/", "_")
    return f"{endpoint.method.lower()}_{path}"
