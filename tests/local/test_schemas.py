"""The effects of schemas: flags, summaries, quality payloads, versions."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
from support.cases import case
from support.local_api import NOON, REGISTRATION, VERSION, Api, invalid, item, opened
from support.old_files import downgrade

from prefactor_core import PrefactorValueError
from prefactor_core.local import open_local_prefactor

SCHEMA: dict[str, Any] = {
    "external_identifier": "typed",
    "span_type_schemas": [
        {
            "name": "agent:llm",
            "title": "LLM call",
            "params_schema": {"properties": {"prompt": {"type": "string"}}},
            "result_schema": {"properties": {"response": {"type": "string"}}},
            "template": "{{prompt}} → {{response}}",
            "data_risk": {"classification": "public"},
        },
    ],
    "quality_schemas": [
        {
            "name": "score",
            "schema": {"properties": {"n": {"type": "number"}}},
            "template": "{{n}} of 10",
        }
    ],
}
PROMPT_FLAG = "payload.prompt: 1 is not of type 'string'"
RESPONSE_FLAG = "result.response: 2 is not of type 'string'"


async def start(api: Api, **changes: object) -> str:
    instance_id = await api.register(agent_schema_version={**SCHEMA, **changes})
    await api.done(f"agent_instance/{instance_id}/start", {})
    return instance_id


async def summary(api: Api, template: str, payload: object, **changes: object) -> object:
    types = [{"name": "agent:llm", "template": template}]
    identifier = {"external_identifier": f"template {template} {time.monotonic_ns()}"}
    run = await start(api, span_type_schemas=types, **identifier)
    await api.created(run, payload=payload, **changes)
    (span,) = await api.spans(run, summaries=True)
    return span["summary"]


# --- flags


async def test_what_does_not_fit_is_stored_and_flagged(api: Api) -> None:
    run = await start(api)
    span = await api.created(run, payload={"prompt": 1})
    assert (span["payload"], span["flags"]) == ({"prompt": 1}, [PROMPT_FLAG])
    finish = {"result_payload": {"response": 2}}
    finished = await api.done(f"agent_spans/{span['id']}/finish", finish)
    assert finished["flags"] == [PROMPT_FLAG, RESPONSE_FLAG]
    assert [stored["flags"] for stored in await api.spans(run)] == [finished["flags"]]


async def test_a_span_that_is_created_as_it_ended_is_flagged_at_once(api: Api) -> None:
    payloads = {"payload": {"prompt": 1}, "result_payload": {"response": 2}}
    run = await start(api)
    span = await api.created(run, status="complete", **payloads)
    assert span["flags"] == [PROMPT_FLAG, RESPONSE_FLAG]
    assert (await api.created(run, payload={"prompt": ""}))["flags"] == []
    (flag,) = (await api.created(run, schema_name="agent:lm"))["flags"]
    assert "'agent:lm' is not registered" in flag


async def test_the_result_of_a_span_that_is_not_complete_is_not_checked(api: Api) -> None:
    for status in ["failed", "cancelled"]:
        with case(status):
            run = await start(api)
            ended = {"status": status, "result_payload": {"response": 2}}
            assert (await api.created(run, **ended))["flags"] == []
            span = await api.created(run)
            assert (await api.done(f"agent_spans/{span['id']}/finish", ended))["flags"] == []


# --- summaries


TEMPLATES = [
    ("{{a}} {{missing.of.this}}|", "1 |"),
    ("{{o}}{{l}}{% echo l %}|{{l | size}} {{l | join: ','}} {{o.b}}", "|2 x,y 3"),
    ('{{o["ai.model.id"]}}', "m"),
    ("{{missing | default: 'none'}} {{text | truncate: 7}}", "none aaaa..."),
    ("{{a | no_such_filter}}", "1"),
    ("{{s}}", "[personal_identifiers]"),
    ("{{a", None),
    ("{% nothing %}", None),
    ("{{1 | divided_by: 0}}", None),
]


async def test_a_summary_is_made_by_the_template(api: Api) -> None:
    payload = {
        "a": 1,
        "o": {"b": 3, "ai.model.id": "m"},
        "l": ["x", "y"],
        "text": "a" * 20,
        "s": {"$sensitive": "string", "labels": ["personal_identifiers"], "value": "secret"},
    }
    for template, shown in TEMPLATES:
        with case(template, shown):
            assert await summary(api, template, payload) == shown


async def test_the_result_wins_over_the_payload(api: Api) -> None:
    result = {"status": "complete", "result_payload": {"a": 2}}
    assert await summary(api, "{{a}} {{b}}", {"a": 1, "b": 3}, **result) == "2 3"


TOO_MUCH = [
    "{% for i in (1..1000000000) %}x{% endfor %}",
    "{% for i in (1..900) %}{% for j in (1..900) %}x{% endfor %}{% endfor %}",
    "{{ (1..1000000000) | join }}",
    "{% assign x = 9 %}{% for i in (1..99) %}{% assign x = x | times: x %}{% endfor %}{{x}}",
    "{% assign x = 'ab' %}{% for i in (1..99) %}{% assign x = x | append: x %}{% endfor %}",
    "{{" * 10_000,
    "{{a}}" * 201,
    "{% raw %}" * 10_000,
    "{{ " + " " * 100_000 + "'",
    "{{ text" + " | replace: 'a', 'aaaaaaaaaa'" * 20 + " }}",
    "{{ text | replace: '', long | size }}",
    "{{ list | join: long | size }}",
    "{{ text" + " | base64_encode" * 90 + " | size }}",
    "{{ list | uniq | size }}",
]


async def test_a_template_that_takes_too_much_makes_no_summary(api: Api) -> None:
    payload = {"text": "a" * 1_000, "long": "b" * 400_000, "list": [{"n": n} for n in range(9_000)]}
    for template in TOO_MUCH:
        with case(template):
            before = time.process_time()  # which does not count other processes
            assert await summary(api, template, payload) is None
            assert time.process_time() - before < 5


async def test_a_template_may_show_what_is_large(api: Api) -> None:
    payload = {"text": "a" * 400_000, "list": [1, 2] * 9_000}
    template = (
        "{{text | truncate: 7}} {{list | size}} {{list | first}} {{text | default: 'b' | size}}"
    )
    assert await summary(api, template, payload) == "aaaa... 18000 1 400000"


async def test_a_payload_nested_too_deep_for_a_summary_is_stored_without(api: Api) -> None:
    payload: dict[str, Any] = {}
    for _ in range(600):
        payload = {"a": payload}
    # Empty where Python recurses deep enough.
    assert await summary(api, "{{b}}", payload) in (None, "")


async def test_lists_have_summaries_where_they_are_asked_for(api: Api) -> None:
    run = await start(api)
    await api.created(run, payload={"prompt": "Hi"})
    (asked,) = await api.spans(run, summaries=True)
    (plain,) = (await api.get("agent_spans", agent_instance_id=run)).json()["summaries"]
    assert asked == {**plain, "summary": "Hi → "}
    assert (plain["schema_title"], plain["data_risk"]) == (
        "LLM call",
        {"classification": "public"},
    )
    answered = await api.created(run, schema_name="other")
    assert (answered["schema_title"], answered["data_risk"]) == ("other", None)
    assert "summary" not in answered
    assert (await api.spans(run, summaries=True))[1]["summary"] is None


async def test_the_spans_of_an_agent_are_listed_by_time(api: Api) -> None:
    one, other = await start(api), await start(api)
    ids = [
        (await api.created(run, started_at=f"2026-01-0{day}T12:00:00Z"))["id"]
        for day, run in enumerate((one, other, one), 1)
    ]

    async def listed(**query: str) -> list[str]:
        page = (await api.get("agent_spans", **query)).json()
        return [span["id"] for span in page["summaries"]]

    assert await listed(agent_id="a1") == sorted(ids)
    assert await listed(agent_id="a1", start_time="2026-01-02T00:00:00Z") == sorted(ids[1:])
    assert await listed(agent_instance_id=one, end_time="2026-01-02T00:00:00+01:00") == ids[:1]
    assert await listed(agent_id="a2") == []
    invalid(await api.get("agent_spans", agent_id="a1", end_time="2026-01-02"), "end_time")


# --- quality


@pytest.mark.parametrize("state", ["pending", "active", "complete", "terminated"])
async def test_quality_is_recorded_in_every_state(api: Api, state: str) -> None:
    run = await api.register(agent_schema_version=SCHEMA)
    if state != "pending":
        await api.done(f"agent_instance/{run}/start", {})
    if state == "complete":
        await api.done(f"agent_instance/{run}/finish", {})
    if state == "terminated":
        await api.terminate(run, "r")
    path = f"agent_instance/{run}/record_quality"
    recorded = await api.done(path, {"name": "score", "payload": {"n": "9"}})
    assert recorded == await api.instance(run)
    assert recorded["status"] == state
    assert recorded["quality_payloads"] == {"score": {"n": "9"}}
    assert recorded["quality_summaries"] == {"score": "9 of 10"}
    assert recorded["quality_flags"] == {"score": ["quality.n: '9' is not of type 'number'"]}
    replaced = await api.done(path, {"name": "score", "payload": {"n": 3}})
    assert replaced["quality_flags"] == {"score": []}
    removed = await api.done(path, {"name": "score", "payload": None})
    assert removed["quality_payloads"] == removed["quality_summaries"] == {}


@pytest.mark.parametrize("template", [None, "{{n", "{{1 | divided_by: 0}}"])
async def test_a_quality_payload_without_a_summary_is_left_out_of_the_summaries(
    api: Api, template: str | None
) -> None:
    shown = {"name": "score", "template": "{{n}} of 10"}
    schemas = [shown, {"name": "cost", "template": template}]
    run = await start(api, quality_schemas=schemas)
    for name in ("score", "cost"):
        body = {"name": name, "payload": {"n": 9}}
        recorded = await api.done(f"agent_instance/{run}/record_quality", body)
    listed = (await api.get("agent_instance", agent_id="a1")).json()["summaries"]
    for instance in (recorded, await api.instance(run), *listed):
        assert instance["quality_payloads"] == {"score": {"n": 9}, "cost": {"n": 9}}
        assert instance["quality_summaries"] == {"score": "9 of 10"}


async def test_a_quality_payload_needs_a_name_that_is_registered(api: Api) -> None:
    path = f"agent_instance/{await start(api)}/record_quality"
    answer = await api.post(path, {"name": "scoer", "payload": {}})
    invalid(answer, "name")
    assert "'score'" in answer.text
    invalid(await api.post(path, {"name": "score"}), "payload", "required")
    invalid(await api.post(path, {"name": "score", "payload": 3}), "payload")


async def test_quality_is_recorded_in_bulk(api: Api) -> None:
    run = await start(api)
    quality = {"agent_instance_id": run, "name": "score", "payload": {"n": 1}}
    items = [item("agent_instances/record_quality", "quality-1", **quality)]
    answer = (await api.post("bulk", {"items": items})).json()
    assert answer["outputs"]["quality-1"]["details"] == await api.instance(run)


# --- versions


async def test_of_an_agent_version_only_what_is_given_is_compared(api: Api) -> None:
    first = {**VERSION, "description": "d", "runtime_environment": {"os": "a"}}
    stored = await api.register(agent_version=first)
    await api.register(agent_version={"external_identifier": "v1"})
    await api.register(agent_version={**VERSION, "mood": "good"})
    for change in ({"name": "B"}, {"description": "e"}, {"runtime_environment": {"os": "b"}}):
        body = {**REGISTRATION, "agent_version": {**VERSION, **change}}
        answer = await api.post("agent_instance/register", body)
        invalid(answer, "agent_version")
        assert f"different details ({next(iter(change))})" in answer.text
    answer = (await api.post("agent_instance/register", REGISTRATION)).json()["agent_version"]
    assert answer["description"] == "d"
    assert answer["id"] == (await api.instance(stored))["agent_version_id"]


async def test_versions_without_a_name_are_found_by_their_content(api: Api) -> None:
    ids = [
        (await api.instance(await api.register(agent_version={"name": name})))["agent_version_id"]
        for name in ("A", "B", "A")
    ]
    assert ids[0] == ids[2] != ids[1]


async def test_a_run_has_one_of_the_purposes(api: Api) -> None:
    for purpose in [None, "live", "smoke_test", "eval"]:
        with case(purpose):
            run = await api.instance(await api.register(purpose=purpose))
            assert run["purpose"] == (purpose or "live")
            wrong = {**REGISTRATION, "purpose": "fun"}
            invalid(await api.post("agent_instance/register", wrong), "purpose")


# --- files of other versions


async def test_a_file_of_an_earlier_version_is_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    async with opened(str(path)) as api:
        run = await start(api)
        await api.created(run)
        (span,) = await api.spans(run)
    downgrade(path, 1)
    async with opened(str(path)) as api:
        assert await api.spans(run) == [span]
        # The old file does not say whether the client gave the start.
        early = await api.done(f"agent_spans/{span['id']}/finish", {"timestamp": NOON})
        assert early["finished_at"] == span["started_at"]
        assert (await api.created(run, payload={"prompt": 1}))["flags"] == [PROMPT_FLAG]
        await api.done(f"agent_instance/{run}/record_quality", {"name": "score", "payload": {}})
        assert (await api.get("agent/a1")).json()["details"]["status"] == "active"


async def test_a_file_of_a_later_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "new.db"
    with sqlite3.connect(path) as new:
        new.execute("PRAGMA user_version = 99")
    new.close()
    with pytest.raises(PrefactorValueError, match="made by a later version"):
        async with open_local_prefactor(str(path)):
            pass
