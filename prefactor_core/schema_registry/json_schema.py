"""Checks of values by JSON Schemas, within bounds.

jsonschema follows a schema however long that takes: patterns that backtrack, nested alternatives,
circles of references. It runs in the thread of the agent, partly in calls that no other thread can
interrupt. Here a check has a limit of steps and of time, and superlinear keywords have a linear
implementation.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Final, cast

import attrs  # the validators of jsonschema are attrs classes
import msgspec
from jsonschema import Draft202012Validator, FormatChecker, validators
from jsonschema.exceptions import ValidationError
from referencing import Registry

from prefactor_core.schema_registry.patterns import (
    MOST_CHARACTERS,
    Pattern,
    UnknownPatternError,
    compile_pattern,
)
from prefactor_core.schema_registry.quick_check import quick_check

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

_MOST_VALUES: Final = 10_000
_DEEPEST: Final = 64
_SCALARS: Final = frozenset({str, int, float, bool, type(None)})
_LONGEST_TEXT: Final = 10_000
"""Characters that a pattern is searched in, at most."""

MOST_STEPS: Final = 1_000_000
_SECONDS: Final = 0.5
"""Processor time. The steps end a check at the same point on every machine; the time ends work
that is not counted in steps, such as comparisons of large values, and large sets of characters."""

_STEPS_OF_A_PART: Final = 20
"""Steps to compare one part of a schema with one value; a state of a pattern is one step."""


class NotCheckedError(Exception):
    """A check that is out of bounds because of the value."""


class UnboundedSchemaError(NotCheckedError):
    """A check that is out of bounds because of the schema, for any value."""


class SlowSchemaError(UnboundedSchemaError):
    """A check that used up its steps or its time."""


class _Budget(threading.local):
    """The steps and the time left for the check in this thread."""

    steps = 0
    until = 0.0
    is_late = False

    def begin(self) -> None:
        self.steps = MOST_STEPS
        self.until = time.thread_time() + _SECONDS
        self.is_late = False

    def spend(self, steps: int) -> None:
        self.steps -= steps
        if self.steps < 0:
            raise SlowSchemaError(f"it takes more than {MOST_STEPS:,} steps")
        if time.thread_time() > self.until:
            if self.is_late:
                raise SlowSchemaError(f"it takes more than {_SECONDS} s")
            # Once is no proof: a garbage collection may have taken the time.
            self.is_late = True
            self.until = time.thread_time() + _SECONDS


_budget = _Budget()


class JsonSchema:
    """A schema of the dialect that it names, by default 2020-12. It fetches no other document.

    Raises :class:`UnboundedSchemaError` if it is too large, or needs a check without a bound; any
    other exception says why it is no JSON Schema.
    """

    def __init__(self, schema: Any) -> None:
        _check_parts(schema)
        validator = _bounded(validators.validator_for(schema, default=Draft202012Validator))
        _budget.begin()
        # Like its check_schema(), but within bounds.
        rules = validator(validator.META_SCHEMA, format_checker=_FORMATS)
        for error in rules.iter_errors(schema):
            raise error
        # An empty registry: the default one fetches documents that it does not know.
        registry: Registry[Any] = Registry()
        self._validator: Any = validator(schema, registry=registry)
        self._quick_check = quick_check(schema)

    def surely_fits(self, value: object) -> bool:
        """Whether ``value``, decoded JSON, fits, as far as a quick check can tell."""
        return self._quick_check is not None and self._quick_check(value)

    def problems(self, value: object) -> Iterator[ValidationError]:
        """Yield the problems of ``value``, decoded JSON. One such iteration at a time in a thread.

        Raises :class:`NotCheckedError` if the check is out of bounds, and other exceptions for
        references that lead nowhere or in a circle.
        """
        _budget.begin()
        yield from self._validator.iter_errors(value)


def check_size(value: object) -> None:
    """Raise :class:`NotCheckedError` if ``value``, decoded JSON, is too large for a check."""
    _values(value, "the value", NotCheckedError)


def _values(whole: object, name: str, error: type[NotCheckedError]) -> list[Any]:
    """Return ``whole`` and all values inside of it; without recursion, as it may be nested deep."""
    values: list[Any] = []
    level: list[Any] = [whole]
    for _ in range(_DEEPEST):
        values += level
        if len(values) > _MOST_VALUES:
            raise error(f"{name} has more than {_MOST_VALUES:,} parts")
        below: list[Any] = []
        for value in level:
            # Most are these, and to look for an abstract class takes long.
            if type(value) in _SCALARS:
                continue
            if isinstance(value, dict | Mapping):
                below += value.values()
            elif isinstance(value, list | tuple):
                below += value
        if not below:
            return values
        level = below
    raise error(f"{name} is nested more than {_DEEPEST} deep")


def _check_parts(schema: object) -> None:
    names: set[object] = set()
    for part in _values(schema, "the schema", UnboundedSchemaError):
        if isinstance(part, Mapping):
            fields = cast("Mapping[str, object]", part)
            names |= fields.keys()
            patterns = [fields.get("pattern")]
            if isinstance(named := fields.get("patternProperties"), Mapping):
                patterns += cast("Mapping[str, object]", named)
            # Patterns are compiled when the schema is checked, which takes time.
            if any(isinstance(each, str) and len(each) > MOST_CHARACTERS for each in patterns):
                raise UnboundedSchemaError("a pattern is too long")
    if "patternProperties" in names and "unevaluatedProperties" in names:
        # For this pair jsonschema calls re itself.
        reason = "it has unevaluatedProperties together with patternProperties"
        raise UnboundedSchemaError(reason)


@cache
def _bounded(plain: type[Validator]) -> Any:
    """Return a validator of the same dialect that counts its steps."""

    def additional_properties(
        validator: Any, allowed: Any, instance: Any, schema: Any
    ) -> Iterator[ValidationError]:
        patterns = schema.get("patternProperties")
        if patterns and validator.is_type(instance, "object"):
            instance = {
                name: value
                for name, value in instance.items()
                if not any(_is_in(pattern, name) for pattern in patterns)
            }
            schema = {name: part for name, part in schema.items() if name != "patternProperties"}
        yield from plain.VALIDATORS["additionalProperties"](validator, allowed, instance, schema)

    keywords: dict[str, Any] = {
        "pattern": _pattern,
        "patternProperties": _pattern_properties,
        "additionalProperties": additional_properties,
        "uniqueItems": _unique_items,
    }
    bounded = cast("Any", validators).extend(plain, keywords)
    bounded.evolve = _evolve
    return bounded


def _evolve(validator: Any, **changes: Any) -> Any:
    # Called for each part of the schema and each value compared with it. The replaced method would
    # change to another class at a part with a "$schema" of its own.
    _budget.spend(_STEPS_OF_A_PART)
    return attrs.evolve(validator, **changes)


def _pattern_of(source: str) -> Pattern:
    try:
        return compile_pattern(source)
    except UnknownPatternError as error:
        raise UnboundedSchemaError(str(error)) from None


def _is_pattern(text: object) -> bool:
    return not isinstance(text, str) or bool(_pattern_of(text))


# The format of patterns in schemas; re.compile() takes seconds for some patterns.
_FORMATS: Final = FormatChecker(())
_FORMATS.checks("regex", raises=re.error)(_is_pattern)


def _is_in(pattern: str, text: str) -> bool:
    if len(text) > _LONGEST_TEXT:
        raise NotCheckedError(f"a text of {len(text):,} characters is too long for a pattern")
    return _pattern_of(pattern).is_in(text, _budget.spend)


def _pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if validator.is_type(instance, "string") and not _is_in(pattern, instance):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


def _pattern_properties(
    validator: Any, patterns: Mapping[str, Any], instance: Any, schema: Any
) -> Iterator[ValidationError]:
    if not validator.is_type(instance, "object"):
        return
    for pattern, part in patterns.items():
        for name, value in instance.items():
            if _is_in(pattern, name):
                yield from validator.descend(value, part, path=name, schema_path=pattern)


def _unique_items(
    validator: Any, unique: Any, instance: Any, schema: Any
) -> Iterator[ValidationError]:
    if unique and validator.is_type(instance, "array"):
        items = {msgspec.json.encode(_canonical(item), order="sorted") for item in instance}
        if len(items) < len(instance):
            yield ValidationError(f"{instance!r} has non-unique elements")


def _canonical(value: object) -> object:
    """Return ``value`` in plain types, so that values equal in JSON Schema have equal JSON."""
    if isinstance(value, dict):
        fields = cast("dict[str, object]", value)
        return {str(name): _canonical(item) for name, item in fields.items()}
    if isinstance(value, list):
        return [_canonical(item) for item in cast("list[object]", value)]
    if isinstance(value, str):
        return str(value)
    if isinstance(value, float) and not value.is_integer():
        return float(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return int(value)  # 1.0 is 1
    return value
