"""SchemaCheck tells what of a payload does not fit, in few and short words, and never raises."""

from __future__ import annotations

import subprocess
import sys

import pytest

from prefactor_core.schema_check import SchemaCheck

TEXT = {"type": "string"}


def checking(schema: object, **more: object) -> SchemaCheck:
    return SchemaCheck({"span_type_schemas": [{"name": "llm", "params_schema": schema, **more}]})


def secret(value: object) -> dict[str, object]:
    return {"$sensitive": "string", "labels": ["authentication_and_secrets"], "value": value}


@pytest.mark.parametrize(
    ("schema", "payload", "told"),
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
    schema: object, payload: object, told: list[str]
) -> None:
    assert checking(schema).payload("llm", payload) == told


def test_a_long_value_is_shortened_and_many_problems_are_few() -> None:
    check = checking({"properties": {"a": TEXT, "b": {"items": TEXT}}})
    (told,) = check.payload("llm", {"a": ["x" * 10_000]})
    assert len(told) < 120
    assert told.endswith("… is not of type 'string'")
    assert len(check.payload("llm", {"b": [1] * 1_000})) == 10


def test_a_sensitive_value_is_checked_as_what_it_is_and_not_shown() -> None:
    check = checking({"properties": {"key": {"type": "string", "maxLength": 3}}})
    assert check.payload("llm", {"key": secret("abc")}) == []
    (told,) = check.payload("llm", {"key": secret("hunter2")})
    assert told == "payload.key: [authentication_and_secrets] is too long"
    for value in (5, 2.5):
        (told,) = check.payload("llm", {"key": secret(value)})
        assert told == "payload.key: [authentication_and_secrets] is not of type 'string'"
    (told,) = checking({"maxProperties": 0}).payload("llm", {"key": secret("hunter2")})
    assert "hunter2" not in told


@pytest.mark.parametrize("value", [{"password": "hunter2"}, ["hunter2"], [{"a": ["hunter2"]}]])
def test_nothing_inside_of_a_sensitive_value_is_shown(value: object) -> None:
    name, text = "authentication_and_secrets", {"type": "string", "maxLength": 3}
    check = checking({"properties": {"key": text}})
    told = [f"payload.key: [{name}] is not of type 'string'"]
    assert check.payload("llm", {"key": secret(value)}) == told
    inside = {"items": text, "additionalProperties": text}
    (shown,) = checking({"properties": {"key": inside}}).payload("llm", {"key": secret(value)})
    assert "hunter2" not in shown


def test_a_type_that_is_not_registered_is_told_with_the_nearest_name() -> None:
    check = checking({"required": ["a"]})
    told = ["schema_name: 'lm' is not registered; the nearest that is: 'llm'"]
    assert check.payload("lm", {}) == check.payload("lm", {}) == told
    assert check.result("lm", {}) == []
    assert SchemaCheck({"external_identifier": "s1"}).payload("lm", {}) == []


def test_results_and_quality_payloads_have_schemas_of_their_own() -> None:
    types = [{"name": "llm", "params_schema": {}, "result_schema": {"required": ["r"]}}]
    quality = [{"name": "score", "schema": {"required": ["q"]}}]
    check = SchemaCheck({"span_type_schemas": types, "quality_schemas": quality})
    assert check.payload("llm", {}) == []
    assert check.result("llm", {}) == ["result: 'r' is a required property"]
    assert check.quality("score", {}) == ["quality: 'q' is a required property"]
    unknown = "name: 'scores' is not registered; the nearest that is: 'score'"
    assert check.quality("scores", {}) == [unknown]
    assert SchemaCheck({}).quality("score", {}) == ["name: 'score' is not registered; nothing is"]


def test_the_maps_are_read_unless_there_are_span_types() -> None:
    maps = {"span_schemas": {"a": {"required": ["p"]}}, "span_result_schemas": {"a": {"not": {}}}}
    check = SchemaCheck(maps)
    assert check.payload("a", {}) == ["payload: 'p' is a required property"]
    assert len(check.result("a", {})) == 1
    check = SchemaCheck({**maps, "span_type_schemas": [{"name": "a", "params_schema": {}}]})
    assert check.payload("a", {}) == check.result("a", {}) == []


@pytest.mark.parametrize("marker", ["$truncated", "$withheld", "$unreadable"])
def test_what_stands_for_a_payload_is_not_checked(marker: str) -> None:
    assert checking({"required": ["a"]}).payload("llm", {marker: {}}) == []


@pytest.mark.parametrize(
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
        (told,) = check.payload("llm", {"a": "x"})
        assert told.startswith("payload: ")
        assert "'llm'" in told
        assert "\n" not in told


def test_without_the_extra_the_way_to_it_is_named() -> None:
    code = (
        "import sys; sys.modules['jsonschema'] = None\n"
        "from prefactor_core import PrefactorValueError\n"
        "from prefactor_core.schema_check import SchemaCheck\n"
        "try: SchemaCheck({})\n"
        "except PrefactorValueError as error: print(error)"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert "pip install '.[check]'" in result.stdout
