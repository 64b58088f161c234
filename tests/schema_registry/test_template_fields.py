"""Templates are checked at registration: a field that no schema knows is refused."""

from __future__ import annotations

import re
from typing import Any

import pytest
from support.cases import for_each

from prefactor_core import PrefactorValueError, SchemaRegistry
from prefactor_core.schema_registry.template_fields import shown_fields

TEXT = {"type": "string"}
PARAMS = {
    "type": "object",
    "properties": {
        "prompt": TEXT,
        "messages": {"type": "array", "items": {"type": "object", "properties": {"role": TEXT}}},
        "options": {"type": "object", "properties": {"max_tokens": {"type": "integer"}}},
        "anything": {"type": "object"},
        "labels": {"type": "object", "additionalProperties": TEXT, "properties": {"a": TEXT}},
        "open": {"properties": {}, "additionalProperties": {}},
        "nullable": {"anyOf": [{"type": "object", "properties": {"x": TEXT}}, {"type": "null"}]},
    },
}
RESULT = {
    "type": "object",
    "properties": {"response": TEXT, "options": {"properties": {"n": TEXT}}},
}


@for_each(
    ("template", "fields"),
    [
        ("{{prompt}} → {{ response }}", ["prompt", "response"]),
        ("{{- prompt -}}", ["prompt"]),
        ("{{ prompt | default: 'none | at all' | truncate: 20, '…' }}", ["prompt"]),
        (
            "{{ prompt | default: response | append: options.n }}",
            ["prompt", "response", "options.n"],
        ),
        ("{{ prompt | replace: from: response }}", ["prompt", "response"]),
        ("{{inputs[\"ai.model.id\"].x}} {{ inputs['a'] }}", ["inputs.ai.model.id.x", "inputs.a"]),
        ("{{ messages[0].role }} {{ messages.first.role }}", ["messages", "messages.first.role"]),
        ("{{ 'text' }} {{ 3 }} {{ 1.5 }} {{ true }} {{ nil }}", []),
        ("{% for m in messages %}{{ m.role }} {{ forloop.index }}{% endfor %}", []),
        ("{% assign x = prompt %}{{ x }}{% capture y %}…{% endcapture %}{{ y }}", []),
        ("{% raw %}{{ x }}{% endraw %}{% comment %}{{ y }}{% endcomment %}{% # {{ z }} %}", []),
        ("{% liquid\n  assign x = prompt\n  echo x\n%}{{ x }}", []),
        ("{{ tool-name }} {{ a_1 }}", ["tool-name", "a_1"]),
        ("no field, {one} brace", []),
    ],
)
def test_the_fields_that_a_template_shows_are_found(template: str, fields: list[str]) -> None:
    assert [".".join(path) for path in shown_fields(template)] == fields


def register(template: str, params: Any = PARAMS, result: Any = RESULT) -> None:
    SchemaRegistry().register_type("agent:llm", params, result, template=template)


@for_each(
    "template",
    [
        "{{prompt}} {{response}}",
        "{{options.max_tokens}} {{options.n}}",
        "{{messages.size}} {{messages | size}} {{prompt.size}} {{messages.first}}",
        "{{anything.at.all}} {{labels.any}} {{nullable.x}} {{open.x}}",
        "{{error.message}}",
        '{"of": {"prompt": {{prompt}}}} and }} alone',
    ],
)
def test_a_template_of_known_fields_is_taken(template: str) -> None:
    register(template)


@for_each(
    ("template", "field", "nearest"),
    [
        ("{{promt}}", "promt", "prompt"),
        ("{{prompt}} → {{respons}}", "respons", "response"),
        ("{{options.max_token}}", "options.max_token", "options.max_tokens"),
        ("{{prompt.x}}", "prompt.x", None),
        ("{{ prompt | default: reponse }}", "reponse", "response"),
        ("{{error.mesage}}", "error.mesage", "error.message"),
    ],
)
def test_a_field_that_no_schema_knows_is_named_with_the_nearest(
    template: str, field: str, nearest: str | None
) -> None:
    message = f"template of 'agent:llm' shows {{{{{field}}}}}, which no schema of it has"
    with pytest.raises(PrefactorValueError, match=re.escape(message)) as raised:
        register(template)
    assert ("the nearest field is" in str(raised.value)) == (nearest is not None)
    assert nearest is None or repr(nearest) in str(raised.value)


@for_each("template", ["{{prompt", "{{prompt}} {{", "{{prompt}"])
def test_a_template_that_is_not_closed_is_refused(template: str) -> None:
    with pytest.raises(PrefactorValueError, match="has a {{ without }}"):
        register(template)


@for_each(
    "schema",
    [
        {},
        {"type": "object"},
        {"properties": {"x": {}}, "additionalProperties": True},
        {"properties": {"x": {}}, "patternProperties": {"^y": {}}},
        {"$ref": "#/$defs/X"},
        {"allOf": [{"properties": {"x": {}}}]},
    ],
    ids=str,
)
def test_a_schema_that_does_not_say_which_fields_there_are_knows_all(schema: Any) -> None:
    register("{{whatever}}", schema)
    register("{{whatever}}", {"properties": {"x": {}}}, schema)


def test_nothing_is_registered_with_a_template_that_is_wrong() -> None:
    registry = SchemaRegistry()
    with pytest.raises(PrefactorValueError):
        registry.register_type("x", PARAMS, template="{{promt}}")
    assert not registry.has_schema("x")
    registry.register_type("x", PARAMS, template="{{prompt}}")
