"""Traced functions that are steps of a standard type: their arguments and results as its fields.

What is recorded fits the schema of the type, whatever the function takes and returns.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from inspect import Parameter
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

import msgspec
from msgspec import UNSET, Raw, Struct

from prefactor_core.agent.fitting import (
    fitted_fields,
    hints_of,
    kind_of,
    required,
    surely_fits,
)
from prefactor_core.agent.traced_call import SpanSource, TracedFunction
from prefactor_core.exceptions import PrefactorValueError, in_message
from prefactor_core.payloads.jsonable import plain
from prefactor_core.payloads.truncation import TooLargeError
from prefactor_core.schema_registry.span_type import NamedParams
from prefactor_core.schema_registry.type_schema import result_type_of
from prefactor_core.span_types import AgentRun, LLMCall, Retrieval, ToolCall

if TYPE_CHECKING:
    from prefactor_core.agent.span import SpanContext
    from prefactor_core.payloads.capture import Capture

Params: TypeAlias = type[AgentRun] | type[LLMCall] | type[Retrieval] | type[ToolCall]

_NAMES: Final[dict[type, str]] = {
    AgentRun: "agent:run",
    LLMCall: "agent:llm_call",
    Retrieval: "agent:retrieval",
    ToolCall: "agent:tool_call",
}
_REST: Final[dict[type, str]] = {AgentRun: "input", ToolCall: "arguments"}
"""The field that takes the arguments which no other field has."""

_FILLED_IN: Final = {"inputs", "token_usage"}  # by the type itself, and from the result


def standard_type(params: type | None) -> Params:
    """The standard type that a function is decorated with; None stands for :class:`ToolCall`.

    Raises :class:`PrefactorValueError` for any other class.
    """
    if params is None:
        return ToolCall
    if params not in _NAMES:
        raise PrefactorValueError(
            "@traced is for functions, and takes the name of a span type, AgentRun, LLMCall, "
            f"Retrieval or ToolCall, got the class {params.__qualname__}: decorate its methods, "
            "or name the span type that it is registered for"
        )
    return cast("Params", params)


class TypedFunction(TracedFunction):
    """A decorated function whose calls are steps of a standard type.

    ``params``: the class of the type; None for a :class:`ToolCall` whose ``arguments`` are all
    arguments. ``given``: values of fields, for calls without an argument of the same name.
    """

    def __init__(self, params: type | None, given: Mapping[str, object], *rest: Any) -> None:
        self._type: Final = standard_type(params)
        super().__init__(_NAMES[self._type], *rest)
        self._hints = hints_of(self._type)
        self._place = _REST.get(self._type)
        # The fields that are looked up among the arguments.
        taken = {*_FILLED_IN, self._place}
        self._names = [name for name in self._hints if name not in taken]
        for name in given:
            if name not in self._names and name != self._place:
                raise PrefactorValueError(
                    f"{self._type.__name__} has no field {in_message(name)} to be given: use "
                    f"{', '.join(self._names)}"
                )
        if params is None:
            self._names.clear()
        self._given = {name: value for name, value in given.items() if value is not None}
        if self._type is ToolCall:
            self._given.setdefault("tool", _short_name(self.function))
        parameters = self.signature.parameters.values()
        seen = {each.name: each.kind for each in parameters if each.name not in self.excluded}
        options = [name for name, kind in seen.items() if kind is Parameter.VAR_KEYWORD]
        self._options = options[0] if options else None
        for name in required(self._type):
            if not (options or name in seen or name in self._given or name == self._place):
                raise PrefactorValueError(
                    f"{self._type.__name__} needs a {name}, and {self.name} has no parameter of "
                    f"this name: write @traced({self._type.__name__}, {name}=...)"
                )
        # The first field of a result is the one for any value.
        self._result = cast("type[Struct]", result_type_of(self._type))
        self._result_hints = hints_of(self._result)
        self._main = self._result.__struct_fields__[0]

    def span_of(self, run: SpanSource, arguments: dict[str, object]) -> SpanContext[Any]:
        recorder = run.recorder
        fields: dict[str, Any] = {}
        if recorder.capture.enabled:
            try:  # noqa: SIM105 - suppress() would need more of the stack
                fields = self._fit(self._fields(arguments), self._hints, recorder.capture)
            except (RecursionError, MemoryError):
                pass  # the call itself may succeed
        for name in required(self._type):
            fields.setdefault(
                name, given if isinstance(given := self._given.get(name), str) else ""
            )
        # By name: a registry of the agent's own may not have the type, or under another name.
        name = recorder.registry.names_by_class.get(self._type, _NAMES[self._type])
        return run.span(NamedParams(name, self._type(**fields)))

    def _fields(self, arguments: dict[str, object]) -> dict[str, object]:
        named = dict(arguments)
        if self._options in named:
            options = cast("dict[str, object]", named.pop(self._options))
            named = {**options, **named}
        fields = dict(self._given)
        fields |= {name: named[name] for name in self._names if named.get(name) is not None}
        if self._place is not None and self._place not in fields:
            rest = {name: item for name, item in arguments.items() if name not in self._names}
            whole = rest.get(self._place) if self._names and len(rest) == 1 else None
            fields[self._place] = rest if whole is None else whole
        return fields

    def result(self, value: object, capture: Capture) -> dict[str, object] | None:
        if value is None or not self.captures_result or not capture.enabled:
            return None
        if issubclass(type(value), self._result):
            found = {name: getattr(value, name) for name in self._result_hints}
            fields = {name: item for name, item in found.items() if item is not None}
            fitted = self._fit(fields, self._result_hints, capture)
            return capture.fields_of(value if fitted is fields else self._result(**fitted))
        if type(value) is dict:
            items = cast("dict[object, object]", value)
            if items and all(type(name) is str and name in self._result_hints for name in items):
                fields = {str(name): item for name, item in items.items() if item is not None}
                if self._fit(fields, self._result_hints, capture, partly=False) is fields:
                    return capture.fields_of(self._result(**fields))
        return self._fit({self._main: value}, self._result_hints, capture)

    def items(self, items: list[object], capture: Capture) -> dict[str, object]:
        values = [_decoded(item) if type(item) is Raw else item for item in items]
        if kind_of(self._result_hints[self._main]) is str and all(type(v) is str for v in values):
            return {self._main: "".join(cast("list[str]", values))}
        return self.result(values, capture) or {}

    def _fit(
        self,
        fields: dict[str, Any],
        hints: Mapping[str, Any],
        capture: Capture,
        *,
        partly: bool = True,
    ) -> dict[str, Any]:
        """Return ``fields`` themselves if they fit. If not, the nearest that does: as a text what
        is none, for example. A value that fits in no form is left out, with a warning.

        ``partly``: whether to look for it; False gives an empty dict.
        """
        unsure = {
            name: value for name, value in fields.items() if not surely_fits(value, hints[name])
        }
        if not unsure:
            return fields
        try:
            tree = cast("dict[str, Any]", plain(unsure, capture.max_payload_bytes))
        except TooLargeError:
            return fields  # a marker will take the place of the whole payload
        if fitted_fields(tree, hints) == tree:
            return fields
        if not partly:
            return {}
        # Redacted first: a text hides the keys that say what is secret.
        redacted: object = _decoded(capture(unsure))
        tree = cast("dict[str, Any]", redacted) if isinstance(redacted, dict) else {}
        fitted = fitted_fields({name: tree[name] for name in unsure if name in tree}, hints)
        left_out = [name for name in unsure if fitted.get(name, UNSET) is UNSET]
        if left_out:
            message = "%s: what does not fit in any form is not recorded: %s"
            self.log_once(logging.WARNING, message, self.name, ", ".join(left_out))
        return {name: value for name, value in {**fields, **fitted}.items() if name not in left_out}


def _short_name(function: Any) -> str:
    while isinstance(function, partial):
        function = function.func
    name: object = getattr(function, "__name__", None)
    return name if isinstance(name, str) else type(function).__name__


def _decoded(raw: Raw) -> Any:
    try:
        return msgspec.json.decode(raw)
    except msgspec.DecodeError:
        return raw  # there is a Raw of the user's in it that is no JSON
