"""One run: its details, its usage, and the agents with their runs."""

from __future__ import annotations

from support.cases import case
from support.local_api import REGISTRATION, SCHEMA
from support.viewing import Site


async def test_the_details_add_version_flags_and_quality_to_the_row(site: Site) -> None:
    quality_schema = {
        "name": "helpfulness",
        "schema": {"properties": {"score": {"type": "integer"}}},
        "template": "score {{score}}",
    }
    schema = {**SCHEMA, "quality_schemas": [quality_schema]}
    run_id = await site.api.register(agent_schema_version=schema)
    body = {"name": "helpfulness", "payload": {"score": "high", "n": 2**60}}
    await site.api.done(f"agent_instance/{run_id}/record_quality", body)
    run = await site.run(run_id)
    row = (await site.json("/-/runs"))["runs"][0]
    assert {name: run[name] for name in row} == row
    assert run["flags"] == []
    assert run["environment_id"] == (await site.json("/-/about"))["account_id"]
    assert run["agent_version"].items() >= REGISTRATION["agent_version"].items()
    (quality,) = run["quality"]
    assert len(quality.pop("flags")) == 1
    assert quality == {
        "name": "helpfulness",
        "payload_text": '{"score":"high","n":1152921504606846976}',
        "summary": "score high",
    }


async def test_the_details_name_the_step_that_caused_the_run(site: Site) -> None:
    first = await site.api.start()
    step = await site.api.created(first)
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    elsewhere = "7" * 32
    for cause, is_stored in (
        ({"run_id": first, "span_id": step["id"]}, True),
        ({"run_id": first}, True),
        ({"run_id": elsewhere, "span_id": elsewhere}, False),
        ({}, False),
    ):
        with case(cause):
            run_id = await site.api.start()
            assert (await site.run(run_id))["caused_by"] is None
            named = {"prefactor_caused_by": {**cause, "traceparent": traceparent}}
            root = await site.api.created(run_id, payload=named)
            await site.api.created(run_id, parent_span_id=root["id"])
            assert (await site.run(run_id))["caused_by"] == {
                "run_id": None,
                "span_id": None,
                **cause,
                "traceparent": traceparent,
                "is_stored": is_stored,
            }
    assert (await site.run(first))["caused_by"] is None


async def test_what_is_unknown_is_not_found(site: Site) -> None:
    for path in ("runs/x", "runs/x/skeleton", "runs/x/changes", "runs/x/search", "runs/x/usage"):
        with case(path):
            answer = await site.get(f"/-/{path}", q="x")
            assert answer.status_code == 404
            assert answer.json() == {
                "status": "error",
                "code": "not_found",
                "message": "agent instance 'x' not found",
            }
    answer = await site.get("/-/spans/x")
    assert (answer.status_code, answer.json()["message"]) == (404, "span 'x' not found")


async def test_usage_sums_the_leaves_among_the_llm_calls_by_model(site: Site) -> None:
    run_id = await site.api.start()

    async def call(model: str, usage: object, **changes: object) -> str:
        result = {"token_usage": usage, "cost": 0.5}
        span = {"schema_name": "agent:llm_call", "status": "complete", "result_payload": result}
        payload = {"model": model}
        span = await site.api.created(run_id, **{**span, "payload": payload, **changes})
        return str(span["id"])

    parts = {"prompt_tokens": 10, "completion_tokens": 5, "reasoning_tokens": 2}
    chain = await call("large", {"total_tokens": 1000}, schema_name="langchain:llm")
    await call("large", parts, parent_span_id=chain)
    await call("large", {**parts, "cache_read_tokens": 7, "cache_write_tokens": 1})
    await call("large", {"prompt_tokens": "many", "completion_tokens": -1})
    in_payload = {"model": "small", "token_usage": {"prompt_tokens": 1, "completion_tokens": 2}}
    await call("small", None, payload=in_payload)
    await call("tool", parts, schema_name="agent:tool_call")
    models = (await site.json(f"/-/runs/{run_id}/usage"))["models"]
    empty = dict.fromkeys(("cache_read_tokens", "cache_write_tokens", "reasoning_tokens"), 0)
    assert models == [
        {
            "model": "large",
            "calls": 3,
            "prompt_tokens": 20,
            "completion_tokens": 10,
            "cache_read_tokens": 7,
            "cache_write_tokens": 1,
            "reasoning_tokens": 4,
            "total_tokens": 30,
            "cost": 1.5,
        },
        {
            "model": "small",
            "calls": 1,
            "prompt_tokens": 1,
            "completion_tokens": 2,
            **empty,
            "total_tokens": 3,
            "cost": 0.5,
        },
    ]
    run = await site.run(run_id)
    assert run["tokens"] == sum(model["total_tokens"] for model in models)
    assert run["llm_calls"] == sum(model["calls"] for model in models)


async def test_agents_are_listed_with_their_runs_the_last_active_one_first(site: Site) -> None:
    idle = await site.api.done("agent", {"details": {"name": "Idle", "description": "Rests."}})
    retired = await site.api.done("agent", {"details": {"name": "Old"}})
    await site.api.done(f"agent/{retired['id']}/retire", {})
    first_id, newest_id = sorted([await site.api.start() for _ in range(2)])
    await site.api.done(f"agent_instance/{first_id}/finish", {"status": "failed"})
    other_id = await site.api.register(agent_id="a2")
    first, second, *others = (await site.json("/-/agents"))["agents"]
    assert first["newest"]["id"] > second["newest"]["id"]
    a1, a2 = sorted([first, second], key=lambda agent: agent["id"])
    assert a1 == {
        "id": "a1",
        "name": "a1",
        "description": None,
        "external_identifier": None,
        "status": "active",
        "runs": {"total": 2, "active": 1, "failed": 1},
        "newest": {
            "id": newest_id,
            "status": "active",
            "started_at": (await site.run(newest_id))["started_at"],
        },
    }
    assert (a2["id"], a2["newest"]["id"], a2["newest"]["started_at"]) == ("a2", other_id, None)
    no_runs = {"runs": {"total": 0, "active": 0, "failed": 0}, "newest": None}
    names = [(agent["id"], agent["status"], agent["description"]) for agent in others]
    assert names == [(idle["id"], "pending", "Rests."), (retired["id"], "retired", None)]
    assert all(agent.items() >= no_runs.items() for agent in others)
