"""SchemaCheck returns the problems of a payload as few short texts, and never raises."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jsonschema import (
    Draft6Validator,
    Draft7Validator,
    Draft201909Validator,
    Draft202012Validator,
)
from support.cases import case, for_each
from support.examples import examples

from prefactor_core.schema_registry.schema_check import SchemaCheck

TEXT = {"type": "string"}


def checking(schema: object, **more: object) -> SchemaCheck:
    return SchemaCheck({"span_type_schemas": [{"name": "llm", "params_schema": schema, **more}]})


def secret(value: object) -> dict[str, object]:
    return {"$sensitive": "string", "labels": ["authentication_and_secrets"], "value": value}


@for_each(
    ("schema", "payload", "messages"),
    [
        ({"properties": {"a": TEXT}}, {"a": "x"}, []),
        ({"properties": {"a": TEXT}}, {"a": 3}, ["payload.a: 3 is not of type 'string'"]),
        ({"required": ["a"]}, {}, ["payload: 'a' is a required property"]),
        (
            {"properties": {"a": {"items": {"properties": {"b": TEXT}}}}},
            {"a": [{}, {"b": None}]},
            ["payload.a[1].b: None is not of type 'string'"],
        ),
        (
            {"additionalProperties": False},
            {"b": 1},
            ["payload: Additional properties are not allowed ('b' was unexpected)"],
        ),
        (False, {}, ["payload: False schema does not allow {}"]),
        (None, {"a": 1}, []),
        ({"$schema": "urn:unknown", "properties": {"a": TEXT}}, {"a": "x"}, []),
    ],
)
def test_each_problem_names_its_place_the_value_and_what_was_expected(
    schema: object, payload: object, messages: list[str]
) -> None:
    assert checking(schema).payload("llm", payload) == messages


def test_a_long_value_is_shortened_and_many_problems_are_few() -> None:
    check = checking({"properties": {"a": TEXT, "b": {"items": TEXT}}})
    (message,) = check.payload("llm", {"a": ["x" * 10_000]})
    assert len(message) < 120
    assert message.endswith("… is not of type 'string'")
    assert len(check.payload("llm", {"b": [1] * 1_000})) == 10


def test_a_sensitive_value_is_checked_as_what_it_is_and_not_shown() -> None:
    check = checking({"properties": {"key": {"type": "string", "maxLength": 3}}})
    assert check.payload("llm", {"key": secret("abc")}) == []
    (message,) = check.payload("llm", {"key": secret("hunter2")})
    assert message == "payload.key: [authentication_and_secrets] is too long"
    for value in (5, 2.5):
        (message,) = check.payload("llm", {"key": secret(value)})
        assert message == "payload.key: [authentication_and_secrets] is not of type 'string'"
    (message,) = checking({"maxProperties": 0}).payload("llm", {"key": secret("hunter2")})
    assert "hunter2" not in message


@for_each("value", [{"password": "hunter2"}, ["hunter2"], [{"a": ["hunter2"]}]])
def test_nothing_inside_of_a_sensitive_value_is_shown(value: object) -> None:
    name, text = "authentication_and_secrets", {"type": "string", "maxLength": 3}
    check = checking({"properties": {"key": text}})
    messages = [f"payload.key: [{name}] is not of type 'string'"]
    assert check.payload("llm", {"key": secret(value)}) == messages
    inside = {"items": text, "additionalProperties": text}
    (shown,) = checking({"properties": {"key": inside}}).payload("llm", {"key": secret(value)})
    assert "hunter2" not in shown


def test_an_unregistered_type_is_reported_with_the_nearest_name() -> None:
    check = checking({"required": ["a"]})
    messages = ["span type 'lm' is not registered; the nearest that is: 'llm'"]
    assert check.payload("lm", {}) == check.payload("lm", {}) == messages
    assert check.result("lm", {}) == []
    assert SchemaCheck({"external_identifier": "s1"}).payload("lm", {}) == []


NEAREST = [
    ("a:x", None),
    ("agent:x", None),
    ("agent:plan", None),
    ("", None),
    ("agent:llm", "agent:llm_call"),
    ("llm_call", "agent:llm_call"),
    ("my:llm-call", "agent:llm_call"),
    ("agent:runs", "agent:run"),
    ("other:serch", "other:search"),
    ("agent:serch", "agent:search"),
]


def test_a_registered_type_is_named_only_if_it_is_near() -> None:
    names = ["agent:run", "agent:llm_call", "agent:tool_call", "agent:search", "other:search"]
    check = SchemaCheck({"span_type_schemas": [{"name": name} for name in names]})
    for name, nearest in NEAREST:
        with case(name):
            end = f"; the nearest that is: {nearest!r}" if nearest else ""
            assert check.payload(name, {}) == [f"span type {name!r} is not registered{end}"]


def test_results_and_quality_payloads_have_schemas_of_their_own() -> None:
    types = [{"name": "llm", "params_schema": {}, "result_schema": {"required": ["r"]}}]
    quality = [{"name": "score", "schema": {"required": ["q"]}}]
    check = SchemaCheck({"span_type_schemas": types, "quality_schemas": quality})
    assert check.payload("llm", {}) == []
    assert check.result("llm", {}) == ["result: 'r' is a required property"]
    assert check.quality("score", {}) == ["quality: 'q' is a required property"]
    unknown = "quality schema 'scores' is not registered; the nearest that is: 'score'"
    assert check.quality("scores", {}) == [unknown]
    assert SchemaCheck({}).quality("score", {}) == [
        "quality schema 'score' is not registered; nothing is"
    ]


def test_the_maps_are_read_unless_there_are_span_types() -> None:
    maps = {"span_schemas": {"a": {"required": ["p"]}}, "span_result_schemas": {"a": {"not": {}}}}
    check = SchemaCheck(maps)
    assert check.payload("a", {}) == ["payload: 'p' is a required property"]
    assert len(check.result("a", {})) == 1
    check = SchemaCheck({**maps, "span_type_schemas": [{"name": "a", "params_schema": {}}]})
    assert check.payload("a", {}) == check.result("a", {}) == []


@for_each("marker", ["$truncated", "$withheld", "$unreadable"])
def test_what_stands_for_a_payload_is_not_checked(marker: str) -> None:
    assert checking({"required": ["a"]}).payload("llm", {marker: {}}) == []
    check = checking({"properties": {"docs": {"type": "array"}}})
    assert check.payload("llm", {"docs": {marker: {}}, "n": [1]}) == []
    assert check.payload("llm", {"docs": {marker: {}, "more": 1}}) != []


@for_each(
    "schema",
    [
        {"type": "objekt"},
        {"properties": {"a": {"pattern": "("}}},
        {"$ref": "#/nowhere"},
        {"$ref": "http://127.0.0.1:9/schema.json"},
        {"$ref": "#"},
        ["no schema"],
        7,
    ],
    ids=str,
)
def test_a_schema_that_is_none_is_the_one_problem(schema: object) -> None:
    check = checking(schema)
    for _ in range(2):
        (message,) = check.payload("llm", {"a": "x"})
        assert message.startswith("payload: ")
        assert "'llm'" in message
        assert "\n" not in message


# --- bounds

DEEP = 10_000


def nested(depth: int, inner: object, around: Callable[[object], object]) -> Any:
    for _ in range(depth):
        inner = around(inner)
    return inner


def doubling(
    keyword: str,
    leaf: str = "object",
    dialect: str = "https://json-schema.org/draft/2020-12/schema",
) -> dict[str, Any]:
    """A small schema that says the same 2 ** 40 times."""
    twice = {f"d{n}": {keyword: [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(40)}
    definitions = {**twice, "d40": {"type": leaf}}
    return {"$schema": dialect, "$ref": "#/$defs/d0", "$defs": definitions}


# Steps or seconds, whichever comes first on this machine.
SLOW = "it takes more than "
EVIL = "^(a+)+$"
LONG = "a" * 50 + "!"
SPREAD = "".join(f"{chr(n)}-{chr(n + 1)}" for n in range(0x4E00, 0x5200, 4))
# Schema and payload; then the messages, or the reason why it is not checked.
HOSTILE: dict[str, tuple[Any, Any, list[str] | str]] = {
    "pattern": (
        {"properties": {"a": {"pattern": EVIL}}},
        {"a": LONG},
        [f"payload.a: {LONG!r} does not match '^(a+)+$'"],
    ),
    "pattern of a name": (
        {"patternProperties": {EVIL: {}}, "additionalProperties": False},
        {LONG: 1},
        [f"payload: Additional properties are not allowed ({LONG!r} was unexpected)"],
    ),
    "pattern of all names": (
        {"propertyNames": {"pattern": EVIL}},
        {LONG: 1},
        [f"payload: {LONG!r} does not match '^(a+)+$'"],
    ),
    "pattern with a back reference": (
        {"properties": {"a": {"pattern": r"(a*)*\1"}}},
        {"a": LONG},
        "a pattern has GROUPREF 1",
    ),
    "pattern of thousands": (
        {"properties": {"a": {"pattern": "(a|b)" * 1_000}}},
        {"a": LONG},
        "a pattern is too long",
    ),
    "pattern for a long text": (
        {"properties": {"a": {"pattern": EVIL}}},
        {"a": "a" * 20_000},
        "a text of 20,000 characters is too long for a pattern",
    ),
    "pattern with large sets": (
        {"properties": {"a": {"pattern": f"([{SPREAD}z]{{0,900}})*$"}}},
        {"a": "z" * 9_000 + "!"},
        SLOW,
    ),
    "pattern with large sets ahead": (
        {"properties": {"a": {"pattern": f"((?=([{SPREAD}z]*)b)z)*$"}}},
        {"a": "z" * 9_000 + "!"},
        SLOW,
    ),
    "pattern that re compiles for seconds": (
        {"properties": {"a": {"pattern": "(?i)" + "[\0-\U0010ffff]" * 190}}},
        {},
        "a pattern has flags",
    ),
    "names with patterns and unevaluated ones": (
        {"patternProperties": {EVIL: {}}, "unevaluatedProperties": False},
        {LONG: 1},
        "it has unevaluatedProperties together with patternProperties",
    ),
    "unique objects": (
        {"properties": {"a": {"uniqueItems": True}}},
        {"a": [{"n": n} for n in range(4_000)]},
        [],
    ),
    "unique objects, and one again": (
        {"properties": {"a": {"uniqueItems": True}}},
        {"a": [{"n": n} for n in range(4_000)] + [{"n": 7.0}]},
        [f"payload.a: {str([{'n': n} for n in range(9)])[:60]}… has non-unique elements"],
    ),
    "all of": (doubling("allOf"), {}, SLOW),
    "any of": (doubling("anyOf", "string"), {}, SLOW),
    "one of": (doubling("oneOf", "string"), {}, SLOW),
    "all of, draft 7": (
        doubling("allOf", dialect="http://json-schema.org/draft-07/schema#"),
        {},
        SLOW,
    ),
    "any of, draft 4": (
        doubling("anyOf", "string", "http://json-schema.org/draft-04/schema#"),
        {},
        SLOW,
    ),
    "a part with a dialect of its own": (
        {"properties": {"a": {**doubling("allOf"), "$id": "urn:a"}}},
        {"a": {}},
        SLOW,
    ),
    "unevaluated names": (
        {"unevaluatedProperties": False, **doubling("anyOf", "string")},
        {"k": 1},
        SLOW,
    ),
    "unevaluated names behind references": (
        {
            "unevaluatedProperties": False,
            "$ref": "#/$defs/d0",
            "$defs": {
                f"d{n}": {"dependentSchemas": {key: {"$ref": f"#/$defs/d{n + 1}"} for key in "ab"}}
                for n in range(40)
            }
            | {"d40": {}},
        },
        {"a": 1, "b": 1},
        SLOW,
    ),
    "enumeration": (
        {"properties": {"a": {"items": {"enum": [0, *(f"{n:9}" for n in range(9_000))]}}}},
        {"a": [f"{8_999:9}"] * 9_000},
        SLOW,
    ),
    "plain alternatives": (
        {"properties": {"a": {"items": {"anyOf": [{"type": "null"}] * 89 + [{"type": "number"}]}}}},
        {"a": [0] * 9_000},
        [],
    ),
    "long name of a schema": ({"$id": "a" * 20_000}, {}, "a text of 20,000 characters"),
    "deep schema": (nested(DEEP, {}, lambda inner: {"not": inner}), {}, "the schema is nested"),
    "wide schema": (
        {"properties": {f"p{n}": {} for n in range(20_000)}},
        {},
        "the schema has more than 10,000 parts",
    ),
    "deep payload": (
        {"additionalProperties": {}},
        {"a": nested(DEEP, 1, lambda inner: [inner])},
        "the value is nested more than 64 deep",
    ),
    "wide payload": ({"required": ["a"]}, {"b": [1] * 20_000}, "the value has more than 10,000"),
}


class Calls:
    """Counts the calls, of Python's functions and of C's, inside of its block."""

    def __enter__(self) -> Calls:
        self.number = 0
        sys.setprofile(self._count)
        return self

    def __exit__(self, *error: object) -> None:
        sys.setprofile(None)

    def _count(self, frame: object, event: str, argument: object) -> None:
        self.number += event in ("call", "c_call")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_check_takes_a_bounded_number_of_calls(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    schema, payload, expected = HOSTILE[name]
    check = checking(schema)
    for _ in range(2):
        with Calls() as calls:
            messages = check.payload("llm", payload)
        assert calls.number < 4_000_000
        if isinstance(expected, list):
            assert messages == expected
        else:
            assert messages == []
    if isinstance(expected, list):
        assert caplog.messages == []
    else:
        (message,) = caplog.messages
        assert message.startswith("not checked is the payload of 'llm', by its schema: ")
        assert expected in message


def test_what_a_value_is_too_large_for_is_checked_with_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    check = checking({"additionalProperties": {"pattern": "^a"}})
    for large in ("a" * 20_000, [0] * 20_000):
        assert check.payload("llm", {"a": large}) == []
        assert check.payload("llm", {"a": "b"}) == ["payload.a: 'b' does not match '^a'"]
    assert len(caplog.messages) == 1


def test_a_schema_that_takes_too_long_is_given_up_and_with_the_fourth_all_are(
    caplog: pytest.LogCaptureFixture,
) -> None:
    slow = {f"slow{n}": doubling("allOf") for n in range(5)}
    check = SchemaCheck({"span_schemas": {**slow, "llm": {"required": ["a"]}}})
    for n in range(4):
        assert len(check.payload("llm", {})) == 1
        for _ in range(2):
            assert check.payload(f"slow{n}", {}) == []
    with Calls() as calls:
        assert check.payload("llm", {}) == check.payload("slow4", {}) == []
    assert calls.number < 100
    assert len(caplog.messages) == 5
    assert all(SLOW in message for message in caplog.messages[:4])
    assert caplog.messages[4] == "nothing more is checked: 4 schemas took too long"


def test_checks_in_threads_have_bounds_of_their_own() -> None:
    check = SchemaCheck({"span_schemas": {"llm": {"items": {"type": "string"}, "required": ["a"]}}})
    with ThreadPoolExecutor(4) as threads:
        messages = list(threads.map(lambda n: check.payload("llm", {"b": n}), range(200)))
    assert messages == [["payload: 'a' is a required property"]] * 200


def test_names_are_compared_in_a_bounded_number_of_calls() -> None:
    check = SchemaCheck({"span_schemas": {f"{n}{'a' * 5_000}": {} for n in range(1_000)}})
    with Calls() as calls:
        (message,) = check.payload("a" * 100_000, {})
    assert calls.number < 1_000_000
    assert len(message) < 300
    for n in range(100):
        check.payload(f"own name {n}", {})
    with Calls() as calls:
        assert check.payload("own", {}) == ["span type 'own' is not registered"]
    assert calls.number < 100


# --- ordinary schemas

TEXTS = ["", "a", "ab", "a1", "2026-01-01", "x@y"]
values = st.recursive(
    st.none() | st.booleans() | st.sampled_from([0, 1, 1.0, 2, 2.5, -1]) | st.sampled_from(TEXTS),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(TEXTS), inner, max_size=4)
    ),
    max_leaves=8,
)
PATTERNS = ["^a", "[0-9]+$", "^[a-z]*$", r"^\\d{4}(-\\d\\d){2}$", "(a|b)+", "@"]
leaves = st.one_of(
    st.booleans(),
    st.just({}),
    st.sampled_from(["string", "number", "integer", "object", "array", "null", "boolean"]).map(
        lambda name: {"type": name}
    ),
    st.fixed_dictionaries({"enum": st.lists(values, min_size=1, max_size=3)}),
    st.fixed_dictionaries({"const": values}),
    st.fixed_dictionaries({"pattern": st.sampled_from(PATTERNS)}),
    st.fixed_dictionaries({"minimum": st.integers(-1, 2)}),
    st.fixed_dictionaries({"maxLength": st.integers(0, 3)}),
    st.fixed_dictionaries({"required": st.lists(st.sampled_from(TEXTS), max_size=2, unique=True)}),
    st.just({"uniqueItems": True}),
    st.just({"minItems": 1, "uniqueItems": True}),
)


def combined(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    several = st.lists(inner, min_size=1, max_size=3)
    named = st.dictionaries(st.sampled_from(TEXTS), inner, max_size=3)
    objects = {
        "properties": named,
        "patternProperties": st.dictionaries(st.sampled_from(PATTERNS), inner, max_size=2),
        "additionalProperties": inner,
        "propertyNames": inner,
    }
    return st.one_of(
        st.fixed_dictionaries({}, optional=objects),
        st.fixed_dictionaries({"items": inner}, optional={"contains": inner}),
        *(st.fixed_dictionaries({name: several}) for name in ("allOf", "anyOf", "oneOf")),
        st.fixed_dictionaries({"not": inner}),
        st.fixed_dictionaries({"if": inner, "then": inner, "else": inner}),
    )


schemas = st.recursive(leaves, combined, max_leaves=6)


@settings(max_examples=examples(250))
@given(
    schemas,
    values,
    st.sampled_from([Draft202012Validator, Draft201909Validator, Draft7Validator, Draft6Validator]),
)
@example({"uniqueItems": True}, [1, True, [1], [True]], Draft202012Validator)
@example({"uniqueItems": True}, [1, 1.0], Draft202012Validator)
@example({"uniqueItems": True}, [[{"a": 2}], [{"a": 2.0}]], Draft202012Validator)
def test_ordinary_schemas_are_checked_as_jsonschema_does_it(
    schema: Any, value: object, plain: Any
) -> None:
    whole = {"$schema": plain.META_SCHEMA["$schema"], "properties": {"a": schema}}
    check = checking(whole)
    errors = list(plain(whole).iter_errors({"a": value}))
    messages = check.payload("llm", {"a": value})
    assert len(messages) == min(len(errors), 10)


def test_without_the_extra_the_way_to_it_is_named() -> None:
    code = (
        "import sys; sys.modules['jsonschema'] = None\n"
        "from prefactor_core import PrefactorValueError\n"
        "from prefactor_core.schema_registry.schema_check import SchemaCheck\n"
        "try: SchemaCheck({})\n"
        "except PrefactorValueError as error: print(error)"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert "pip install '.[check]'" in result.stdout
