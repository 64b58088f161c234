"""Span types, collected before a run and returned in the form of the API."""

from __future__ import annotations

import re
from copy import deepcopy
from types import MappingProxyType
from typing import Any, TypedDict, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct
from support.cases import for_each

from prefactor_core import (
    ActionProfile,
    DataCategories,
    DataCategory,
    DataRisk,
    PrefactorValueError,
    SchemaRegistry,
    SpanParams,
)
from prefactor_core.schema_registry.schema_version import choose_schema_version, content_hash

PARAMS = {"type": "object", "properties": {"prompt": {"type": "string"}}, "required": ["prompt"]}
RESULT = {"type": "object", "properties": {"response": {"type": "string"}}}

# How to register, the part of the version that it goes to, and what is said the second time.
WAYS: dict[str, tuple[str, str]] = {
    "register": ("span_schemas", "Schema 'x' is already registered"),
    "register_result": ("span_result_schemas", "Result schema 'x' is already registered"),
    "register_type": ("span_type_schemas", "Span type schema 'x' is already registered"),
}
each_way = pytest.mark.parametrize("way", WAYS)


def register(registry: SchemaRegistry, way: str, name: str, schema: Any) -> None:
    getattr(registry, way)(name, schema)


def version(registry: SchemaRegistry) -> dict[str, Any]:
    """What is registered, by part: names to schemas, in order."""
    parts = registry.to_agent_schema_version("v1")
    del parts["external_identifier"]
    if "span_type_schemas" in parts:
        parts["span_type_schemas"] = {
            each["name"]: each["params_schema"] for each in parts["span_type_schemas"]
        }
    return parts


@each_way
def test_a_name_can_be_registered_once_in_each_way(way: str) -> None:
    part, message = WAYS[way]
    registry = SchemaRegistry()
    register(registry, way, "x", PARAMS)
    with pytest.raises(PrefactorValueError, match=f"^{re.escape(message)}$"):
        register(registry, way, "x", RESULT)
    assert version(registry) == {part: {"x": PARAMS}}


def test_one_name_can_be_registered_in_all_ways() -> None:
    registry = SchemaRegistry()
    for way in WAYS:
        register(registry, way, "x", PARAMS)
    assert version(registry) == {part: {"x": PARAMS} for part, _ in WAYS.values()}


def test_register_unsafe_overwrites() -> None:
    registry = SchemaRegistry()
    registry.register("x", PARAMS)
    registry.register_unsafe("x", RESULT)
    assert registry.get("x") == RESULT


def test_an_empty_registry_gives_only_the_identifier() -> None:
    assert SchemaRegistry().to_agent_schema_version("v7") == {"external_identifier": "v7"}


@each_way
def test_schemas_are_given_in_the_order_of_registration(way: str) -> None:
    registry = SchemaRegistry()
    names = ["m", "a", "z", "b"]
    for name in names:
        register(registry, way, name, PARAMS)
    assert list(version(registry)[WAYS[way][0]]) == names


def test_a_type_is_given_with_all_that_was_said_about_it() -> None:
    registry = SchemaRegistry()
    registry.register_type("x", PARAMS, RESULT, "Title", "Description", "{{prompt}}")
    registry.register_type("y", {}, title="")
    assert registry.to_agent_schema_version("v1")["span_type_schemas"] == [
        {
            "name": "x",
            "params_schema": PARAMS,
            "result_schema": RESULT,
            "title": "Title",
            "description": "Description",
            "template": "{{prompt}}",
        },
        {"name": "y", "params_schema": {}, "title": ""},
    ]


@each_way
def test_any_mapping_can_be_a_schema(way: str) -> None:
    registry = SchemaRegistry()
    register(registry, way, "x", MappingProxyType({"type": "object"}))
    assert version(registry) == {WAYS[way][0]: {"x": {"type": "object"}}}


def test_both_ways_of_registering_payloads_can_be_looked_up() -> None:
    registry = SchemaRegistry()
    registry.register("plain", PARAMS)
    registry.register_type("typed", RESULT, title="Typed")
    registry.register_result("only a result", RESULT)
    assert (registry.get("plain"), registry.get("typed")) == (PARAMS, RESULT)
    assert registry.get("only a result") is registry.get("unknown") is None
    assert registry.list_schemas() == ["plain", "typed"]
    names = ("plain", "typed", "only a result", "unknown")
    assert [registry.has_schema(name) for name in names] == [True, True, False, False]


def test_names_are_listed_once_and_in_the_order_of_registration_of_any_kind() -> None:
    registry = SchemaRegistry()
    registry.register_type("first", PARAMS)
    registry.register("second", PARAMS)
    registry.register_type("third", PARAMS)
    registry.register("first", PARAMS)
    assert registry.list_schemas() == ["first", "second", "third"]


@each_way
def test_later_changes_of_a_schema_do_not_reach_the_registry(way: str) -> None:
    registry, schema = SchemaRegistry(), deepcopy(PARAMS)
    register(registry, way, "x", schema)
    schema["properties"]["prompt"]["type"] = "number"
    schema["required"].clear()
    assert version(registry) == {WAYS[way][0]: {"x": PARAMS}}


def test_later_changes_of_an_overwriting_schema_do_not_reach_the_registry() -> None:
    registry, schema = SchemaRegistry(), deepcopy(PARAMS)
    registry.register_unsafe("x", schema)
    schema["required"].clear()
    assert registry.get("x") == PARAMS


@each_way
def test_changes_of_what_was_given_out_do_not_reach_the_registry(way: str) -> None:
    registry = SchemaRegistry()
    register(registry, way, "x", PARAMS)
    before = deepcopy(version(registry))
    version(registry)[WAYS[way][0]]["x"]["properties"].clear()
    schema = registry.get("x")
    if schema is not None:
        schema["properties"].clear()
    assert version(registry) == before


@each_way
def test_a_merge_adds_everything_after_what_was_there(way: str) -> None:
    registry, other = SchemaRegistry(), SchemaRegistry()
    for name, into in (("b", registry), ("c", other), ("a", other)):
        register(into, way, name, {"title": name})
    registry.merge(other)
    part = version(registry)[WAYS[way][0]]
    assert list(part.items()) == [(name, {"title": name}) for name in "bca"]
    assert list(version(other)[WAYS[way][0]]) == ["c", "a"]


def test_a_merge_takes_titles_and_results_along() -> None:
    registry, other = SchemaRegistry(), SchemaRegistry()
    other.register_type("x", PARAMS, RESULT, title="Title")
    registry.merge(other)
    assert registry.to_agent_schema_version("v") == other.to_agent_schema_version("v")


def test_a_merge_with_conflicts_names_all_of_them_and_adds_nothing() -> None:
    registry, other = SchemaRegistry(), SchemaRegistry()
    for each in (registry, other):
        for way in WAYS:
            register(each, way, "x", PARAMS)
    other.register("new", RESULT)
    other.register_type("x2", RESULT)
    before = registry.to_agent_schema_version("v")
    message = (
        "Cannot merge registries - conflicting schemas: "
        "['span_schemas/x', 'span_result_schemas/x', 'span_type_schemas/x']"
    )
    with pytest.raises(PrefactorValueError, match=f"^{re.escape(message)}$"):
        registry.merge(other)
    assert registry.to_agent_schema_version("v") == before


def test_a_name_of_another_kind_is_no_conflict() -> None:
    registry, other = SchemaRegistry(), SchemaRegistry()
    registry.register("x", PARAMS)
    other.register_type("x", RESULT)
    registry.merge(other)
    assert registry.get("x") == PARAMS
    assert version(registry) == {"span_schemas": {"x": PARAMS}, "span_type_schemas": {"x": RESULT}}


def test_merged_registries_share_nothing() -> None:
    registry, other = SchemaRegistry(), SchemaRegistry()
    other.register("x", {"tags": ["a"]})
    registry.merge(other)
    other.register_unsafe("x", {"tags": ["b"]})
    other.register("y", {})
    assert version(registry) == {"span_schemas": {"x": {"tags": ["a"]}}}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
schemas = st.dictionaries(st.text(), json_values)


def reordered(value: Any) -> Any:
    """The same value with the keys of every dict the other way round."""
    if isinstance(value, dict):
        return {key: reordered(value[key]) for key in reversed(value)}
    return [reordered(item) for item in value] if isinstance(value, list) else value


@given(schemas)
def test_the_hash_does_not_depend_on_the_order_of_keys(schema: dict[str, Any]) -> None:
    assert content_hash(reordered(schema)) == content_hash(schema)


@for_each(
    "change",
    [
        {"type": "array"},
        {"required": []},
        {"required": ["prompt", "model"]},
        {"properties": {"prompt": {"type": "number"}}},
        {"title": "Prompt"},
    ],
    ids=str,
)
def test_any_change_of_a_schema_changes_the_hash(change: dict[str, Any]) -> None:
    assert content_hash({**PARAMS, **change}) != content_hash(PARAMS)


def test_the_hash_is_the_same_in_every_process_and_release() -> None:
    schema_version = {"external_identifier": "v1", "span_schemas": {"x": PARAMS}}
    # sha256sum of its JSON, keys sorted and without spaces.
    assert content_hash(schema_version) == "7553e10c3333"


class Answer(Struct):
    response: str


class Ask(Struct, SpanParams[Answer]):
    prompt: str


class AskAgain(Ask):
    times: int = 2


class Note(TypedDict):
    text: str


ASK = {
    "title": "Ask",
    "type": "object",
    "properties": {"prompt": {"type": "string"}},
    "required": ["prompt"],
}
ANSWER = {
    "title": "Answer",
    "type": "object",
    "properties": {"response": {"type": "string"}},
    "required": ["response"],
}


def span_types(registry: SchemaRegistry) -> list[dict[str, Any]]:
    types: list[dict[str, Any]] = registry.to_agent_schema_version("v1")["span_type_schemas"]
    return types


def test_a_type_of_classes_is_given_with_their_schemas() -> None:
    registry = SchemaRegistry()
    registry.register_type("x", params=Ask, result=Answer, template="{{prompt}} {{response}}")
    template = "{{prompt}} {{response}}"
    expected = {"name": "x", "params_schema": ASK, "result_schema": ANSWER, "template": template}
    assert span_types(registry) == [expected]
    assert registry.get("x") == ASK
    assert registry.name_of(Ask("Hello")) == "x"


def test_the_decorator_registers_the_class_and_leaves_it_as_it_is() -> None:
    registry = SchemaRegistry()

    @registry.span_type("x", title="Search", template="{{query}} {{response}}")
    class Search(Struct, SpanParams[Answer]):
        query: str

    assert Search("a") == Search(query="a")
    assert registry.name_of(Search("a")) == "x"
    (search,) = span_types(registry)
    assert (search["title"], search["result_schema"]) == ("Search", ANSWER)


def test_a_result_schema_that_is_given_goes_before_the_class_that_the_params_say() -> None:
    registry = SchemaRegistry()
    registry.register_type("x", params=Ask, result=Answer)
    registry.register_type("y", params=AskAgain, result_schema=RESULT)
    assert [each["result_schema"].get("title") for each in span_types(registry)] == ["Answer", None]


def test_only_a_registry_can_be_merged() -> None:
    with pytest.raises(PrefactorValueError, match="only a SchemaRegistry can be merged"):
        SchemaRegistry().merge({})  # type: ignore[arg-type]


def test_only_the_class_itself_stands_for_its_span_type() -> None:
    registry = SchemaRegistry()
    registry.register_type("x", params=Ask)
    with pytest.raises(
        PrefactorValueError, match=r"'AskAgain'.*register_type\(name, params=AskAgain"
    ):
        registry.name_of(AskAgain("Hello"))


def test_a_class_stands_for_one_span_type() -> None:
    registry = SchemaRegistry()
    registry.register_type("x", params=Ask)
    with pytest.raises(PrefactorValueError, match="the class 'Ask' is registered for 'x' already"):
        registry.register_type("y", params=Ask)
    assert registry.list_schemas() == ["x"]
    registry.register_type("n1", params=Note)
    registry.register_type("n2", params=Note)  # its objects are dicts, and stand for none


@for_each(
    ("arguments", "message"),
    [
        ({}, "'x' needs params=, a class, or params_schema=, a JSON Schema"),
        ({"params": Ask, "params_schema": {}}, "'x' has both params and params_schema: give one"),
        (
            {"params": Ask, "result": Answer, "result_schema": {}},
            "'x' has both result and result_schema: give one",
        ),
        ({"params": Ask, "result": Note}, "the params of 'x' say by SpanParams that its result is"),
        ({"params_schema": Ask}, "; a class is given as params= or result="),
        ({"params": int}, "params of 'x' must be a class that is an object in JSON, got int"),
        ({"params_schema": {}, "result": int}, "result of 'x' must be a class that is an object"),
        ({"params": Ask, "data_risk": {"profile": {}}}, "data_risk of 'x' is no DataRisk"),
    ],
    ids=str,
)
def test_what_makes_no_span_type_is_refused_and_leaves_nothing(
    arguments: dict[str, Any], message: str
) -> None:
    registry = SchemaRegistry()
    with pytest.raises(PrefactorValueError, match=re.escape(message)):
        registry.register_type("x", **arguments)
    assert not registry.has_schema("x")
    registry.register_type("x", params=Ask)


def test_schemas_appear_among_the_types_if_there_are_any() -> None:
    registry = SchemaRegistry()
    registry.register("flat", PARAMS)
    registry.register_result("flat", RESULT)
    registry.register_result("only a result", RESULT)
    flat = registry.to_agent_schema_version("v1")
    assert "span_type_schemas" not in flat
    registry.register_type("flat and typed", params=Ask)
    registry.register("flat and typed", PARAMS)
    assert [(each["name"], each["params_schema"]) for each in span_types(registry)] == [
        ("flat", PARAMS),
        ("flat and typed", ASK),
        ("only a result", {}),
    ]
    assert span_types(registry)[0]["result_schema"] == RESULT
    # The maps stay, for other readers.
    both = registry.to_agent_schema_version("v1")
    assert both["span_schemas"] == flat["span_schemas"] | {"flat and typed": PARAMS}


def test_a_merge_takes_classes_along_and_names_those_that_are_in_both() -> None:
    registry, other = SchemaRegistry(), SchemaRegistry()
    other.register_type("x", params=Ask)
    registry.register_type("y", params=Ask)
    with pytest.raises(PrefactorValueError, match=re.escape("['params/Ask']")):
        registry.merge(other)
    merged = SchemaRegistry()
    merged.merge(other)
    assert merged.name_of(Ask("Hello")) == "x"


def test_a_risk_is_given_with_every_name_that_the_api_knows() -> None:
    registry = SchemaRegistry()
    risk = DataRisk(
        action_profile=ActionProfile(read_data="allowed"),
        params_data_categories=DataCategories(contact_information="included"),
    )
    registry.register_type("x", PARAMS, data_risk=risk)
    registry.register_type(
        "y",
        PARAMS,
        data_risk={
            "action_profile": {"read_data": "allowed"},
            "params_data_categories": {"contact_information": "included"},
        },
    )
    first, second = (each["data_risk"] for each in span_types(registry))
    assert first == second
    assert {part: len(names) for part, names in first.items()} == {
        "action_profile": 6,
        "params_data_categories": 18,
        "result_data_categories": 18,
    }
    assert first["action_profile"]["read_data"] == "allowed"
    assert first["action_profile"]["create_data"] == "unknown"
    assert first["result_data_categories"]["classification"] == "unknown"


@for_each(
    ("risk", "message"),
    [
        ({"action_profile": {"read": "allowed"}}, "unknown field `read` - at `$.action_profile`"),
        (DataRisk(action_profile=ActionProfile(read_data=True)), "`$.action_profile.read_data`"),  # type: ignore[arg-type]
        ("high", "Expected `object`, got `str`"),
    ],
    ids=str,
)
def test_a_risk_that_the_api_does_not_know_is_refused(risk: Any, message: str) -> None:
    with pytest.raises(PrefactorValueError, match=re.escape(message)):
        SchemaRegistry().register_type("x", PARAMS, data_risk=risk)


def test_the_categories_of_a_risk_are_those_of_sensitive_values() -> None:
    assert DataCategories.__struct_fields__ == (*get_args(DataCategory), "classification")


def test_quality_schemas_are_registered_once_and_merged() -> None:
    registry = SchemaRegistry()
    registry.register_quality_schema("score", PARAMS, "Score", template="{{prompt}}")
    registry.register_quality_schema("answer", Answer)
    for schema in (PARAMS, Answer):
        with pytest.raises(PrefactorValueError, match="^Quality schema 'score' is already regis"):
            registry.register_quality_schema("score", schema)
    quality = {"name": "score", "schema": PARAMS, "title": "Score", "template": "{{prompt}}"}
    expected = [quality, {"name": "answer", "schema": ANSWER}]
    assert registry.to_agent_schema_version("v1")["quality_schemas"] == expected
    assert registry.list_schemas() == []
    with pytest.raises(PrefactorValueError, match="no schema of it has; the nearest field is 'pro"):
        registry.register_quality_schema("other", PARAMS, template="{{promt}}")
    other = SchemaRegistry()
    other.merge(registry)
    with pytest.raises(PrefactorValueError, match=re.escape("['quality_schemas/score', ")):
        other.merge(registry)


def test_a_version_without_an_identifier_gets_one_from_its_content() -> None:
    registry = SchemaRegistry()
    registry.register_type("x", params=Ask)
    first = choose_schema_version("agent", registry, None)
    same = choose_schema_version("agent", registry.to_agent_schema_version("v1"), None)
    assert same["external_identifier"] == "v1"
    given = {key: value for key, value in first.items() if key != "external_identifier"}
    assert choose_schema_version("agent", given, None) == first
    assert choose_schema_version("agent", given, "mine")["external_identifier"] == "mine"
    registry.register_type("y", params=AskAgain)
    other = choose_schema_version("agent", registry, None)
    assert other["external_identifier"] != first["external_identifier"]


@for_each(
    ("given", "message"),
    [
        (3, "agent_schema_version must be a mapping, got 3"),
        ({"span_schemas": object()}, "agent_schema_version cannot be written as JSON"),
    ],
)
def test_a_version_that_cannot_be_sent_is_refused(given: Any, message: str) -> None:
    with pytest.raises(PrefactorValueError, match=message):
        choose_schema_version("agent", given, None)


@for_each("text", ["\ud800", 5, b"x", ["x"]])
def test_a_text_of_a_span_type_that_cannot_be_sent_is_an_error_that_names_it(text: Any) -> None:
    registry = SchemaRegistry()
    for field in ("title", "description", "template"):
        for register in (registry.register_type, registry.register_quality_schema):
            with pytest.raises(PrefactorValueError, match=f"^{field} of 'x' must be a "):
                register("x", {"type": "object"}, **{field: text})
    for register in (registry.register, registry.register_result, registry.register_type):
        with pytest.raises(PrefactorValueError, match="^the name of a span type must be a text"):
            register(text, {"type": "object"})
    assert registry.list_schemas() == []


def test_the_error_of_a_schema_says_where_the_problem_is() -> None:
    problem = r"^schema of 'x' cannot be written as JSON: at \['properties'\]\['a'\]\['title'\]"
    with pytest.raises(PrefactorValueError, match=problem):
        SchemaRegistry().register("x", {"properties": {"a": {"title": "\ud800"}}})
