"""SchemaCheck: the problems of payloads, by the schemas that were registered."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, cast

from prefactor_core.exceptions import PrefactorValueError
from prefactor_core.exceptions.log import log
from prefactor_core.schema_registry.sensitive import sensitive_labels
from prefactor_core.schema_registry.undeclared import undeclared_fields

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError

    from prefactor_core.schema_registry.json_schema import JsonSchema, NotCheckedError

logger = logging.getLogger("prefactor_core.schema_registry.schema_check")

_MOST_PROBLEMS: Final = 10
_LONG_VALUE: Final = 60
_LONG_TEXT: Final = 300
_KNOWN_NAMES: Final = 100
_MOST_SLOW: Final = 4
_COMPARED_NAMES: Final = 100
_NEAR: Final = 0.5  # as difflib measures it: 1 for equal names

# The markers of payloads that could not be kept as they were, see capture and truncation.
_MARKERS: Final = frozenset({"$truncated", "$withheld", "$unreadable"})
# Every payload is an object, so these have nothing to check.
_FITS_ALL: Final[tuple[object, ...]] = (None, True, {}, {"type": "object"})


class SchemaCheck:
    """Compares payloads with the schemas of an ``agent_schema_version``.

    Each method returns one short text for each problem, at most ten; none if the value fits or
    there is no schema. A field that the schema does not declare is a problem if it looks like a
    misspelling of one that is missing, or if a result has only fields of another type.
    ``span_type_schemas`` take precedence over the two maps. Sensitive values
    are checked without their tagged form, and never shown. A payload that was withheld, or has a
    part that was too large, is not checked. References to other documents are never fetched.

    A check runs in the recording thread, so it is bounded. Not checked are values of more than
    10,000 parts or 64 levels, and strings of more than 10,000 characters that have a pattern.
    Given up are schemas of that size; schemas whose patterns have back references, look-behinds,
    atomic groups, flags or more than 1,000 characters; and schemas that take 0.5 s of processor
    time or a million steps (about 50,000 comparisons of a part of a schema with a part of a
    value). The fourth schema that takes too long ends all checks. The log warns once for each
    schema.

    Raises :class:`PrefactorValueError` if the extra ``check`` is not installed.
    """

    def __init__(self, agent_schema_version: Mapping[str, object]) -> None:
        try:
            import jsonschema  # noqa: F401  # pyright: ignore[reportUnusedImport]
        except ImportError as error:
            raise PrefactorValueError(
                f"checking payloads needs the extra 'check' of this package ({error}): "
                "pip install '.[check]' in its folder"
            ) from None
        types = agent_schema_version.get("span_type_schemas")
        if types is None:
            self._payloads = _mapping(agent_schema_version.get("span_schemas"))
            self._results = _mapping(agent_schema_version.get("span_result_schemas"))
        else:
            self._payloads = _by_name(types, "params_schema")
            self._results = _by_name(types, "result_schema")
        self._qualities = _by_name(agent_schema_version.get("quality_schemas"), "schema")
        self._compiled: dict[tuple[str, str], JsonSchema | str | None] = {}
        self._left_out: set[tuple[str, str]] = set()
        self._slow = 0
        self._unknown: dict[tuple[str, str], list[str]] = {}

    def has_type(self, schema_name: str) -> bool:
        """Whether the span type is registered, or none is."""
        return schema_name in self._payloads or not self._payloads

    def has_quality(self, name: str) -> bool:
        """Whether the quality schema is registered."""
        return name in self._qualities

    def payload(self, schema_name: str, payload: object) -> list[str]:
        """Return the problems of a span's payload, decoded JSON.

        A type that is not registered is the only problem; no problem if no type is registered.
        """
        if not self.has_type(schema_name):
            return list(self._not_registered("span type", schema_name, self._payloads))
        return self._check("payload", self._payloads, schema_name, payload)

    def result(self, schema_name: str, result: object) -> list[str]:
        """Return the problems of a span's result, decoded JSON."""
        return self._check("result", self._results, schema_name, result)

    def quality(self, name: str, payload: object) -> list[str]:
        """Return the problems of a quality payload, decoded JSON.

        A name that is not registered is the only problem: ``record_quality`` refuses it.
        """
        if not self.has_quality(name):
            return list(self._not_registered("quality schema", name, self._qualities))
        return self._check("quality", self._qualities, name, payload)

    def _not_registered(self, kind: str, name: str, registered: Mapping[str, object]) -> list[str]:
        known = self._unknown.get((kind, name))
        if known is None:
            known = [f"{kind} {_short(repr(name))} is not registered"]
            # If every span has a name of its own, no more are compared.
            if len(self._unknown) < _KNOWN_NAMES:
                known = [known[0] + nearest_name(name, registered)]
                self._unknown[kind, name] = known
        return known

    def _check(
        self, part: str, schemas: Mapping[str, object], name: str, value: object
    ) -> list[str]:
        key = part, name
        if self._slow >= _MOST_SLOW:
            return []
        if key not in self._compiled and schemas.get(name) in _FITS_ALL:
            return []
        from prefactor_core.schema_registry.json_schema import NotCheckedError, check_size

        try:
            if key not in self._compiled:
                self._compiled[key] = _compiled(part, name, schemas.get(name))
            compiled = self._compiled[key]
            if compiled is None or isinstance(compiled, str):
                return [] if compiled is None else [compiled]
            check_size(value)
            problems: list[str] = []
            if not compiled.surely_fits(value):
                errors = compiled.problems(_unwrapped(value))
                problems = [_described(part, error) for error in islice(errors, _MOST_PROBLEMS)]
                if problems and _is_marked(value):
                    return []
            problems += undeclared_fields(part, schemas, name, value)
            return problems[:_MOST_PROBLEMS]
        except NotCheckedError as error:
            self._leave_out(key, error)
            return []
        except Exception as error:  # a reference that leads nowhere, or in a circle
            return [f"{part}: cannot be checked by the schema of {name!r}: {_reason(error)}"]

    def _leave_out(self, key: tuple[str, str], error: NotCheckedError) -> None:
        from prefactor_core.schema_registry.json_schema import SlowSchemaError, UnboundedSchemaError

        if isinstance(error, UnboundedSchemaError) or key not in self._compiled:
            self._compiled[key] = None
        if key not in self._left_out:
            self._left_out.add(key)
            message = "not checked is the %s of %s, by its schema: %s"
            log(logger, logging.WARNING, message, key[0], _short(repr(key[1])), error)
        if isinstance(error, SlowSchemaError):
            self._slow += 1
            if self._slow == _MOST_SLOW:
                message = "nothing more is checked: %s schemas took too long"
                log(logger, logging.WARNING, message, self._slow)


def _is_marked(value: object) -> bool:
    """Whether a marker replaces a payload or a part of it."""
    parts = [value]
    for part in parts:  # the list grows meanwhile
        if isinstance(part, dict):
            fields = cast("dict[str, object]", part)
            if len(fields) == 1 and not _MARKERS.isdisjoint(fields):
                return True
            parts += fields.values()
        elif isinstance(part, list):
            parts += cast("list[object]", part)
    return False


def nearest_name(name: str, registered: Iterable[str]) -> str:
    """Return the end of a message about a ``name`` that is not ``registered``: the nearest one
    that is, if any is near."""
    # Comparing names takes the square of their length.
    known = [each[:_LONG_VALUE] for each in islice(registered, _COMPARED_NAMES)]
    if not known:
        return "; nothing is"
    name = name[:_LONG_VALUE]
    # Two names of one family, such as agent:plan and agent:run, need not be near.
    near = get_close_matches(_short_name(name), map(_short_name, known), cutoff=_NEAR)
    nearest = get_close_matches(name, [k for k in known if _short_name(k) in near], 1, cutoff=0.0)
    return f"; the nearest that is: {nearest[0]!r}" if nearest else ""


def _short_name(name: str) -> str:
    """The name without its family: ``run`` of ``agent:run``."""
    return name.rpartition(":")[2]


def _compiled(part: str, name: str, schema: object) -> JsonSchema | str:
    """Return the schema, or the reason why it is none; raise NotCheckedError out of bounds."""
    from prefactor_core.schema_registry.json_schema import JsonSchema, NotCheckedError

    try:
        return JsonSchema(schema)
    except NotCheckedError:
        raise
    except Exception as error:
        return f"{part}: the schema of {name!r} is no JSON Schema: {_reason(error)}"


def _described(part: str, error: ValidationError) -> str:
    path = "".join(
        f"[{step}]" if isinstance(step, int) else f".{step}" for step in error.absolute_path
    )
    value, message = repr(error.instance), error.message
    if message.startswith(value):
        message = _short(value) + message[len(value) :]
    return _short(f"{part}{path}: {message}", _LONG_TEXT)


def _reason(error: Exception) -> str:
    text = str(getattr(error, "message", error)).split("\n", 1)[0]
    return _short(text or type(error).__name__, _LONG_TEXT)


def _short(text: str, most: int = _LONG_VALUE) -> str:
    return text if len(text) <= most else f"{text[:most]}…"


class _Hidden:
    """A sensitive value, whose ``repr`` in messages shows only its labels."""

    labels = ""

    def __repr__(self) -> str:
        return self.labels


# There are no subclasses of True, False and null, which stay as they are.
_HIDDEN: Final[Mapping[type, Any]] = {
    cls: type("Hidden", (_Hidden, cls), {}) for cls in (str, int, float, dict, list)
}


def _unwrapped(value: object) -> object:
    """Return ``value`` with the inner values in place of the tagged forms."""
    labels = sensitive_labels(value)
    if labels is not None:
        return _hidden(cast("dict[str, object]", value)["value"], labels)
    if isinstance(value, dict):
        fields = cast("dict[str, object]", value)
        return {key: _unwrapped(item) for key, item in fields.items()}
    if isinstance(value, list):
        return [_unwrapped(item) for item in cast("list[object]", value)]
    return value


def _hidden(value: object, labels: str) -> object:
    if isinstance(value, dict):
        fields = cast("dict[str, object]", value)
        value = {key: _hidden(item, labels) for key, item in fields.items()}
    elif isinstance(value, list):
        value = [_hidden(item, labels) for item in cast("list[object]", value)]
    if type(value) not in _HIDDEN:
        return value
    hidden = _HIDDEN[type(value)](value)
    hidden.labels = labels
    return cast("object", hidden)


def _mapping(value: object) -> Mapping[str, object]:
    return cast("Mapping[str, object]", value) if isinstance(value, Mapping) else {}


def _by_name(types: object, field: str) -> Mapping[str, object]:
    """Return one schema of each entry of a list, or None, by the name of the entry."""
    found: dict[str, object] = {}
    for entry in cast("list[object]", types) if isinstance(types, list | tuple) else ():
        details = _mapping(entry)
        name = details.get("name")
        if isinstance(name, str):
            found[name] = details.get(field)
    return found
