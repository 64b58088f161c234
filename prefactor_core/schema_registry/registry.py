"""SchemaRegistry: the span types of an agent, collected before it runs. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from typing import Any, TypeVar, cast, get_origin, overload

from prefactor_core.exceptions import PrefactorValueError, in_message
from prefactor_core.schema_registry.data_risk import DataRisk
from prefactor_core.schema_registry.entries import (
    Schema,
    check_name,
    check_template_of,
    checked_schema,
    copy_schema,
    entry_of,
)
from prefactor_core.schema_registry.span_type import SpanType
from prefactor_core.schema_registry.type_schema import check_from_result, result_type_of, schema_of

Params = TypeVar("Params")
Result = TypeVar("Result")
Class = TypeVar("Class", bound=type)
Method = TypeVar("Method", bound=Callable[..., object])


def _also_by(**others: str) -> Callable[[Method], Method]:
    """Accept other keywords, too: ``@_also_by(name="schema_name")`` for ``get(name=...)``.

    A call with both raises :class:`TypeError`, as for any argument that is given twice.
    """

    def decorate(method: Method) -> Method:
        @wraps(method)
        def call(*args: Any, **named: Any) -> object:
            renamed = {own: named.pop(other) for other, own in others.items() if other in named}
            return method(*args, **renamed, **named)

        return cast("Method", call)

    return decorate


class SchemaRegistry:
    """Collects span types and builds the ``agent_schema_version`` to register with a run.

    It copies what it takes and what it returns: neither side sees a later change of the other.
    """

    def __init__(self) -> None:
        # Changes with every change of the registry.
        self.revision = 0
        # The names of all span types, in the order of registration.
        self._names: dict[str, None] = {}
        # Each map by name, in the order of registration.
        self._span_schemas: dict[str, dict[str, Any]] = {}
        self._span_result_schemas: dict[str, dict[str, Any]] = {}
        self._span_type_schemas: dict[str, dict[str, Any]] = {}
        self._quality_schemas: dict[str, dict[str, Any]] = {}
        # The names of span types by the class of their parameters.
        self.names_by_class: dict[type, str] = {}

    @_also_by(name="schema_name")
    def register(self, schema_name: str, schema: Schema) -> None:
        """Add the payload schema of a span type.

        Raises :class:`PrefactorValueError` if the name was registered this way before.
        """
        check_name(schema_name)
        if schema_name in self._span_schemas:
            raise PrefactorValueError(f"Schema '{schema_name}' is already registered")
        self.register_unsafe(schema_name, schema)

    @_also_by(name="schema_name")
    def register_unsafe(self, schema_name: str, schema: Schema) -> None:
        """Add the payload schema of a span type, in place of one of the same name."""
        self._span_schemas[schema_name] = checked_schema(schema_name, "schema", schema)
        self._names[schema_name] = None
        self.revision += 1

    @_also_by(name="schema_name", schema="result_schema")
    def register_result(self, schema_name: str, result_schema: Schema) -> None:
        """Add the result schema of a span type.

        Raises :class:`PrefactorValueError` if the name was registered this way before.
        """
        check_name(schema_name)
        if schema_name in self._span_result_schemas:
            raise PrefactorValueError(f"Result schema '{schema_name}' is already registered")
        schema = checked_schema(schema_name, "result_schema", result_schema)
        self._span_result_schemas[schema_name] = schema
        self.revision += 1

    @overload
    def register_type(
        self,
        name: str,
        params_schema: Schema,
        result_schema: Schema | None = None,
        title: str | None = None,
        description: str | None = None,
        template: str | None = None,
        data_risk: DataRisk | Mapping[str, object] | None = None,
    ) -> None: ...

    @overload
    def register_type(
        self,
        name: str,
        *,
        params: type[Params],
        result: type[Result],
        title: str | None = None,
        description: str | None = None,
        template: str | None = None,
        data_risk: DataRisk | Mapping[str, object] | None = None,
    ) -> SpanType[Params, Result]: ...

    @overload
    def register_type(
        self,
        name: str,
        *,
        params: type[Params],
        result_schema: Schema | None = None,
        title: str | None = None,
        description: str | None = None,
        template: str | None = None,
        data_risk: DataRisk | Mapping[str, object] | None = None,
    ) -> SpanType[Params, Mapping[str, object]]: ...

    def register_type(
        self,
        name: str,
        params_schema: Schema | None = None,
        result_schema: Schema | None = None,
        title: str | None = None,
        description: str | None = None,
        template: str | None = None,
        data_risk: DataRisk | Mapping[str, object] | None = None,
        *,
        params: type | None = None,
        result: type | None = None,
    ) -> SpanType[Any, Any] | None:
        """Add a whole span type: its parameters, its result, and how it is shown.

        Both are given as JSON Schemas, or as classes: msgspec structs, dataclasses, TypedDicts or
        models of pydantic, whose JSON Schemas are registered. A span of a class is opened with its
        parameters, ``instance.span(Ask(prompt="Hello"))``, or, for a TypedDict, with the returned
        :class:`~prefactor_core.SpanType`. ``result`` may be left out for a class that derives from
        :class:`~prefactor_core.SpanParams`.

        ``template``: Liquid over the merged payload and result, ``{{field}}``; the API keeps it in
        ``span_type_schemas`` of ``POST /agent_instance/register``.
        ``data_risk``: a :class:`~prefactor_core.DataRisk`, or a mapping of its fields.

        Raises :class:`PrefactorValueError` if the name was registered this way before, or the
        class for another name; for a class without a JSON Schema; and for a field in the template
        that neither schema knows.
        """
        check_name(name)
        if name in self._span_type_schemas:
            raise PrefactorValueError(f"Span type schema '{name}' is already registered")
        if params is not None:
            if params_schema is not None:
                raise PrefactorValueError(f"{name!r} has both params and params_schema: give one")
            said = result_type_of(params)
            if result is None and result_schema is None:
                result = said
            elif result is not None and said not in (None, result):
                raise PrefactorValueError(
                    f"the params of {name!r} say by SpanParams that its result is "
                    f"{in_message(said)}, and "
                    f"result= says {in_message(result)}: leave one of them out"
                )
            params_schema = schema_of(name, "params", params)
            check_from_result(name, params)
        elif params_schema is None:
            raise PrefactorValueError(
                f"{name!r} needs params=, a class, or params_schema=, a JSON Schema"
            )
        if result is not None:
            if result_schema is not None:
                raise PrefactorValueError(f"{name!r} has both result and result_schema: give one")
            result_schema = schema_of(name, "result", result)
        span_type = entry_of(
            name,
            title,
            description,
            template,
            data_risk,
            params_schema=checked_schema(name, "params_schema", params_schema),
            result_schema=(
                None
                if result_schema is None
                else checked_schema(name, "result_schema", result_schema)
            ),
        )
        check_template_of(name, template, params_schema, result_schema)
        if params is not None:
            self._add_class(params, name)
        self._span_type_schemas[name] = span_type
        self._names[name] = None
        self.revision += 1
        return None if params is None else SpanType(name)

    def span_type(
        self,
        name: str,
        *,
        result: type | None = None,
        result_schema: Schema | None = None,
        title: str | None = None,
        description: str | None = None,
        template: str | None = None,
        data_risk: DataRisk | Mapping[str, object] | None = None,
    ) -> Callable[[Class], Class]:
        """Decorate the class of the parameters with :meth:`register_type`:
        ``@registry.span_type("agent:llm", result=Answer)``."""

        def decorate(params: Class) -> Class:
            register = cast("Callable[..., object]", self.register_type)
            register(
                name,
                result_schema=result_schema,
                title=title,
                description=description,
                template=template,
                params=params,
                result=result,
                data_risk=data_risk,
            )
            return params

        return decorate

    def register_quality_schema(
        self,
        name: str,
        schema: Schema | type,
        title: str | None = None,
        description: str | None = None,
        template: str | None = None,
        data_risk: DataRisk | Mapping[str, object] | None = None,
    ) -> None:
        """Add the schema of what :meth:`AgentInstanceHandle.record_quality` records as ``name``.

        ``schema``: a JSON Schema, or a class as for :meth:`register_type`. Raises
        :class:`PrefactorValueError` if the name was registered before.
        """
        check_name(name)
        if name in self._quality_schemas:
            raise PrefactorValueError(f"Quality schema '{name}' is already registered")
        if not isinstance(schema, Mapping):
            schema = schema_of(name, "schema", schema)
        quality = entry_of(
            name,
            title,
            description,
            template,
            data_risk,
            schema=checked_schema(name, "schema", schema),
        )
        check_template_of(name, template, schema)
        self._quality_schemas[name] = quality
        self.revision += 1

    def name_of(self, params: object) -> str:
        """Return the name of the span type that was registered with the class of ``params``.

        Raises :class:`PrefactorValueError` if there is none.
        """
        try:
            return self.names_by_class[type(params)]
        except KeyError:
            # Only the class: the value may be a payload.
            cls = type(params).__qualname__
            known = ", ".join(each.__qualname__ for each in self.names_by_class) or "none"
            raise PrefactorValueError(
                f"there is no span type with parameters of the class {cls!r}: register it, "
                f"register_type(name, params={cls}), with the registry that is the client's "
                f"schema_registry. Registered in that are: {known}"
            ) from None

    def _add_class(self, params: type, name: str) -> None:
        cls: type[object] = get_origin(params) or params
        if issubclass(cls, Mapping):
            return  # a TypedDict, for instance: its objects are plain dicts
        known = self.names_by_class.setdefault(cls, name)
        if known != name:
            raise PrefactorValueError(
                f"the class {cls.__qualname__!r} is registered for {known!r} already: derive "
                f"another one from it for {name!r}"
            )

    @_also_by(name="schema_name")
    def get(self, schema_name: str) -> dict[str, Any] | None:
        """Return a copy of the payload schema of a span type; None if there is no such type."""
        if schema_name in self._span_schemas:
            return copy_schema(self._span_schemas[schema_name])
        if schema_name in self._span_type_schemas:
            return copy_schema(self._span_type_schemas[schema_name]["params_schema"])
        return None

    def list_schemas(self) -> list[str]:
        """Return the names of all span types, in order of registration, each once."""
        return list(self._names)

    @_also_by(name="schema_name")
    def has_schema(self, schema_name: str) -> bool:
        """Whether there is a span type of this name."""
        return schema_name in self._names

    def to_agent_schema_version(self, external_id: str) -> dict[str, Any]:
        """Return a copy of all that was registered, as ``POST /agent_instance/register`` takes it.

        ``external_id`` becomes the ``external_identifier``. Empty parts are left out.
        """
        version: dict[str, Any] = {"external_identifier": external_id}
        if self._span_schemas:
            version["span_schemas"] = self._span_schemas
        if self._span_result_schemas:
            version["span_result_schemas"] = self._span_result_schemas
        if self._span_type_schemas:
            version["span_type_schemas"] = [*self._all_span_types()]
        if self._quality_schemas:
            version["quality_schemas"] = list(self._quality_schemas.values())
        return copy_schema(version)

    def _all_span_types(self) -> Iterator[dict[str, Any]]:
        """Yield all span types, also those of the maps: beside ``span_type_schemas``,
        ``POST /agent_instance/register`` ignores the maps."""
        for name in {**self._names, **self._span_result_schemas}:
            if name in self._span_type_schemas:
                yield self._span_type_schemas[name]
                continue
            span_type = {"name": name, "params_schema": self._span_schemas.get(name, {})}
            if name in self._span_result_schemas:
                span_type["result_schema"] = self._span_result_schemas[name]
            yield span_type

    def merge(self, other: SchemaRegistry) -> None:
        """Add everything of ``other``, or nothing.

        Raises a :class:`PrefactorValueError` that names every conflict, if a name was registered
        the same way in both, or a class for two names.
        """
        if not isinstance(other, SchemaRegistry):
            raise PrefactorValueError(
                f"only a SchemaRegistry can be merged, got {in_message(other)}"
            )
        pairs = [
            ("span_schemas", self._span_schemas, other._span_schemas),
            ("span_result_schemas", self._span_result_schemas, other._span_result_schemas),
            ("span_type_schemas", self._span_type_schemas, other._span_type_schemas),
            ("quality_schemas", self._quality_schemas, other._quality_schemas),
        ]
        conflicts = [
            f"{kind}/{name}" for kind, mine, theirs in pairs for name in theirs if name in mine
        ]
        conflicts += [
            f"params/{cls.__qualname__}"
            for cls, name in other.names_by_class.items()
            if self.names_by_class.get(cls, name) != name
        ]
        if conflicts:
            raise PrefactorValueError(f"Cannot merge registries - conflicting schemas: {conflicts}")
        for _, mine, theirs in pairs:
            mine.update(copy_schema(theirs))
        self._names.update(other._names)
        self.names_by_class.update(other.names_by_class)
        self.revision += 1
