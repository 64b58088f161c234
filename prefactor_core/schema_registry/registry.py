"""SchemaRegistry: the span types of an agent, put together before it runs. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any, TypeVar, cast, get_origin, overload

import msgspec

from prefactor_core.exceptions import PrefactorValueError, in_message
from prefactor_core.schema_registry.data_risk import DataRisk, data_risk_json
from prefactor_core.schema_registry.span_type import SpanType
from prefactor_core.schema_registry.type_schema import check_from_result, result_type_of, schema_of

Schema = Mapping[str, Any]
"""A JSON Schema, as the API takes it."""

Params = TypeVar("Params")
Result = TypeVar("Result")
Class = TypeVar("Class", bound=type)


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not name:
        raise PrefactorValueError(f"the name of a span type must be a text, got {in_message(name)}")


def _checked(name: str, field: str, schema: object) -> dict[str, Any]:
    """A copy of ``schema``; raises :class:`PrefactorValueError` if it can be no JSON Schema."""
    _check_name(name)
    if not isinstance(schema, Mapping):
        hint = "; a class is given as params= or result=" if isinstance(schema, type) else ""
        raise PrefactorValueError(
            f"{field} of {name!r} must be a mapping, got {in_message(schema)}{hint}"
        )
    copied = _copy(cast("Schema", schema))
    try:
        msgspec.json.encode(copied)
    except Exception as error:
        raise PrefactorValueError(
            f"{field} of {name!r} cannot be written as JSON: {error}"
        ) from None
    return copied


def _check_template(name: str, template: str | None, *schemas: Schema | None) -> None:
    if template is not None:
        # Here: its patterns take their time.
        from prefactor_core.schema_registry.template_fields import check_template

        check_template(name, template, *schemas)


def _described(
    name: str,
    title: str | None,
    description: str | None,
    template: str | None,
    data_risk: DataRisk | Mapping[str, object] | None,
    **schemas: dict[str, Any] | None,
) -> dict[str, Any]:
    """An entry of ``span_type_schemas`` or ``quality_schemas``; what is None is left out."""
    entry = {
        "name": name,
        **schemas,
        "title": title,
        "description": description,
        "template": template,
        "data_risk": None if data_risk is None else data_risk_json(name, data_risk),
    }
    return {key: value for key, value in entry.items() if value is not None}


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
        # Another one after each change.
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

    def register(self, name: str, schema: Schema) -> None:
        """Add the schema of a span type's payload.

        Raises :class:`PrefactorValueError` if the name was registered this way before.
        """
        _check_name(name)
        if name in self._span_schemas:
            raise PrefactorValueError(f"Schema '{name}' is already registered")
        self.register_unsafe(name, schema)

    def register_unsafe(self, name: str, schema: Schema) -> None:
        """Add the schema of a span type's payload, in place of one of the same name."""
        self._span_schemas[name] = _checked(name, "schema", schema)
        self._names[name] = None
        self.revision += 1

    def register_result(self, name: str, schema: Schema) -> None:
        """Add the schema of a span type's result.

        Raises :class:`PrefactorValueError` if the name was registered this way before.
        """
        _check_name(name)
        if name in self._span_result_schemas:
            raise PrefactorValueError(f"Result schema '{name}' is already registered")
        self._span_result_schemas[name] = _checked(name, "schema", schema)
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
        *,
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
        *,
        params: type | None = None,
        result: type | None = None,
        data_risk: DataRisk | Mapping[str, object] | None = None,
    ) -> SpanType[Any, Any] | None:
        """Add a whole span type: what goes in, what comes out, and how it is shown.

        Both are schemas, or classes: msgspec structs, dataclasses, TypedDicts or models of
        pydantic, whose JSON Schemas are then registered. A span of such a type is opened by its
        parameters, ``instance.span(Ask(prompt="Hello"))``, or, for a TypedDict, by what this
        gives. ``result`` may be left out of a class that derives from
        :class:`~prefactor_core.SpanParams`, which says it.

        ``template`` is Liquid over payload and result, ``{{field}}`` (API.md section 9).
        ``data_risk``: a :class:`~prefactor_core.DataRisk`, or a mapping of its fields.

        Raises :class:`PrefactorValueError` if the name was registered this way before, or the
        class for another name; for what has no JSON Schema; and for a field in the template that
        neither schema knows.
        """
        _check_name(name)
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
        span_type = _described(
            name,
            title,
            description,
            template,
            data_risk,
            params_schema=_checked(name, "params_schema", params_schema),
            result_schema=(
                None if result_schema is None else _checked(name, "result_schema", result_schema)
            ),
        )
        _check_template(name, template, params_schema, result_schema)
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
        """:meth:`register_type` as a decorator of the class of the parameters:
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
        """Add what :meth:`AgentInstanceHandle.record_quality` may record under ``name``.

        ``schema``: a JSON Schema, or a class as for :meth:`register_type`. Raises
        :class:`PrefactorValueError` if the name was registered before.
        """
        _check_name(name)
        if name in self._quality_schemas:
            raise PrefactorValueError(f"Quality schema '{name}' is already registered")
        if not isinstance(schema, Mapping):
            schema = schema_of(name, "schema", schema)
        quality = _described(
            name,
            title,
            description,
            template,
            data_risk,
            schema=_checked(name, "schema", schema),
        )
        _check_template(name, template, schema)
        self._quality_schemas[name] = quality
        self.revision += 1

    def name_of(self, params: object) -> str:
        """The name of the span type that was registered with the class of ``params``.

        Raises :class:`PrefactorValueError` if there is none.
        """
        try:
            return self.names_by_class[type(params)]
        except KeyError:
            # Of the value, which may be a payload, only what it is.
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
            return  # a TypedDict, say: its objects do not know it
        known = self.names_by_class.setdefault(cls, name)
        if known != name:
            raise PrefactorValueError(
                f"the class {cls.__qualname__!r} is registered for {known!r} already: derive "
                f"another one from it for {name!r}"
            )

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
            version["span_type_schemas"] = [*self._all_span_types()]
        if self._quality_schemas:
            version["quality_schemas"] = list(self._quality_schemas.values())
        return _copy(version)

    def _all_span_types(self) -> Iterator[dict[str, Any]]:
        """Also those that were registered as schemas: beside a list, the API passes over the
        maps (API.md section 9)."""
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

        Raises :class:`PrefactorValueError` that names every conflict, if a name was registered the
        same way in both, or a class for two names.
        """
        if not isinstance(other, SchemaRegistry):
            raise PrefactorValueError(
                f"only a SchemaRegistry can be merged, got a {type(other).__qualname__}"
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
            mine.update(_copy(theirs))
        self._names.update(other._names)
        self.names_by_class.update(other.names_by_class)
        self.revision += 1
