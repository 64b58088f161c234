"""SpanType: a span type that was registered with classes. Pure."""

from __future__ import annotations

from typing import Generic, TypeVar

from prefactor_core.schema_registry.type_schema import SpanParams

Params = TypeVar("Params")
Result = TypeVar("Result")


class SpanType(Generic[Params, Result]):
    """A span type that was registered with classes: ``instance.span(ask({"prompt": "Hello"}))``.

    ``name``: its registered name. It is needed for the parameters of a TypedDict, which are plain
    dicts; objects of all other classes identify their span type.
    """

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, params: Params) -> NamedParams[Result]:
        """Return the parameters of a span of this type, for ``instance.span()``."""
        return NamedParams(self.name, params)

    def __repr__(self) -> str:
        return f"<SpanType {self.name!r}>"


class NamedParams(SpanParams[Result]):
    """Parameters of the span type ``name``."""

    __slots__ = ("name", "params")

    def __init__(self, name: str, params: object) -> None:
        self.name = name
        self.params = params
