"""Fields that fit a schema only because it does not declare them: misspelled ones, and those of
another type. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any, Final, cast

# The library adds these itself.
_ADDED: Final = frozenset(
    {
        *("error", "inputs", "ai", "token_usage", "prefactor_caused_by", "otel", "attributes"),
        *("value", "result", "items", "items_left_out"),
    }
)
# A schema with one of these may declare fields in other places.
_OTHER_PLACES: Final = frozenset(
    {
        *("$ref", "$dynamicRef", "allOf", "anyOf", "oneOf", "if", "patternProperties"),
        *("dependentSchemas", "propertyNames", "unevaluatedProperties"),
    }
)
_SHORTEST: Final = 4
_LONGEST: Final = 60
_LONG_ENOUGH: Final = 6
_SHORT_PART: Final = 2
_MOST_FIELDS: Final = 40


def undeclared_fields(
    part: str, schemas: Mapping[str, object], name: str, value: object
) -> list[str]:
    """Return one text for each field of ``value`` that is named like one which the schema ``name``
    declares and ``value`` does not have; and one for a result that has only fields of another type.
    """
    declared = _declared(schemas.get(name))
    if not declared or not isinstance(value, dict):
        return []
    fields = cast("dict[str, object]", value)
    others = [each for each in islice(fields, _MOST_FIELDS) if each not in declared]
    own = [field for field in others if field not in _ADDED]
    absent = [each for each in islice(declared, _MOST_FIELDS) if each not in fields]
    problems = [
        f"{part}.{field}: is no declared field; the nearest is {each!r}"
        for field in own
        for each in absent
        if _is_near(field, each)
    ]
    if own and len(others) == len(fields) and part == "result" and not problems:
        for other, schema in schemas.items():
            if _declared(schema).keys() >= set(others):
                return [f"{part}: has no declared field, but those of {other!r}"]
    return problems


def _declared(schema: Any) -> Mapping[str, object]:
    """The fields that a schema declares; none if it says more of other fields."""
    keywords = cast("dict[str, object]", schema) if isinstance(schema, dict) else {}
    properties = keywords.get("properties")
    says_more = (
        not _OTHER_PLACES.isdisjoint(keywords)
        or keywords.get("additionalProperties", True) is not True
    )
    if says_more or not isinstance(properties, dict):
        return {}
    given = cast("dict[object, object]", properties)
    return {field: rule for field, rule in given.items() if isinstance(field, str)}


def _is_near(field: str, name: str) -> bool:
    """Whether ``field`` is a misspelling of ``name``: in another case, with a letter more, less or
    wrong, or with letters exchanged. Not with a wrong letter in a short name: ``top_k`` is no
    misspelling of ``top_p``; nor if one schema could well declare both."""
    if not _SHORTEST <= len(name) <= _LONGEST:
        return False
    texts = (text.replace("_", "").lower() for text in (field, name))
    short, long = sorted(texts, key=len)
    if len(long) == len(short) + 1:
        is_near = any(long[:at] + long[at + 1 :] == short for at in range(len(long)))
    else:
        wrong = sum(map(str.__ne__, short, long))
        is_one = wrong <= 1 and len(long) >= _LONG_ENOUGH
        is_near = len(long) == len(short) and (is_one or sorted(short) == sorted(long))
    return is_near and not _is_pair(field.lower(), name.lower())


def _is_pair(field: str, name: str) -> bool:
    """Whether two names that are near differ in a digit, in a letter of a short part, or are
    singular and plural: ``page_1`` and ``page_2``, ``latency_ms`` and ``latency_us``, ``source``
    and ``sources``."""
    if [*filter(str.isdigit, field)] != [*filter(str.isdigit, name)]:
        return True
    parts, others = field.split("_"), name.split("_")
    if len(parts) != len(others):
        return False
    differing = [pair for pair in zip(parts, others, strict=True) if pair[0] != pair[1]]
    if len(differing) != 1:
        return False
    short, long = sorted(differing[0], key=len)
    # Of two "s" at the end, one is too much.
    is_plural = long == f"{short}s" and not short.endswith("s")
    return is_plural or (len(long) <= _SHORT_PART and sorted(short) != sorted(long))
