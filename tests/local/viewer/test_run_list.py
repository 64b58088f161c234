"""The list of runs: its rows, filters and pages."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any

from support.cases import case
from support.viewing import Site, viewing

from prefactor_core.operations import identifiers


async def test_a_row_has_the_run_with_its_totals(site: Site) -> None:
    run_id = await site.api.start()
    usage = {"token_usage": {"prompt_tokens": 3, "completion_tokens": 4}, "cost": 0.25}
    await site.api.created(run_id, schema_name="agent:llm", status="complete", result_payload=usage)
    await site.api.created(run_id, schema_name="agent:tool_call", status="failed")
    await site.api.created(run_id)
    page = await site.json("/-/runs")
    (row,) = page["runs"]
    instance = await site.api.instance(run_id)
    assert row == {
        "id": run_id,
        "agent_id": "a1",
        "agent_name": "a1",
        "external_identifier": None,
        "purpose": "live",
        "status": "active",
        "started_at": instance["started_at"],
        "finished_at": None,
        "inserted_at": instance["inserted_at"],
        "last_activity_at": row["last_activity_at"],
        "termination_reason": None,
        "heard_at": None,
        "stopped_at": None,
        "spans": {
            "total": 3,
            "pending": 0,
            "active": 1,
            "complete": 1,
            "failed": 1,
            "cancelled": 0,
        },
        "flagged": row["flagged"],
        "llm_calls": 2,
        "tokens": 7,
        "cost": 0.25,
        "revision": page["revision"],
    }
    assert row["last_activity_at"] >= instance["started_at"]
    assert (page["total"], page["matched"], page["next"]) == (1, 1, None)
    assert page["agents"] == [{"id": "a1", "name": "a1"}]
    assert page["statuses"]["active"] == 1
    assert page["purposes"] == ["live"]


async def test_the_purposes_of_all_runs_are_listed_whichever_runs_are_shown(site: Site) -> None:
    for purpose in ("eval", "eval", "live"):
        await site.api.register(purpose=purpose)
    for query in ({}, {"limit": 1}, {"purpose": "smoke_test"}):
        with case(query):
            assert (await site.json("/-/runs", **query))["purposes"] == ["live", "eval"]


async def test_an_empty_file_has_an_empty_list(site: Site) -> None:
    page = await site.json("/-/runs")
    assert (page["runs"], page["next"], page["total"], page["matched"]) == ([], None, 0, 0)
    assert set(page["statuses"].values()) == {0}


async def test_filters_keep_the_runs_that_match_all_of_them(site: Site) -> None:
    runs = []
    for agent, purpose, status in product(["a1", "a2"], ["live", "eval"], ["pending", "active"]):
        run_id = await site.api.register(agent_id=agent, purpose=purpose)
        if status == "active":
            await site.api.done(f"agent_instance/{run_id}/start", {})
        runs.append((run_id, agent, purpose, status))
    agents = {None: ["a1", "a2"], "a1": ["a1"], "a2": ["a2"], "none": []}
    purposes = {None: ["live", "eval"], "live": ["live"], "eval": ["eval"], "smoke_test": []}
    statuses = {
        None: ["pending", "active"],
        "pending": ["pending"],
        "failed,active": ["active"],
        "active,pending": ["active", "pending"],
        "failed": [],
    }
    for agent, purpose, status in product(agents, purposes, statuses):
        query = {"agent": agent, "purpose": purpose, "status": status}
        with case(query):
            page = await site.json("/-/runs", **{k: v for k, v in query.items() if v is not None})
            expected = [
                run_id
                for run_id, *values in runs
                if values[0] in agents[agent]
                and values[1] in purposes[purpose]
                and values[2] in statuses[status]
            ]
            assert [run["id"] for run in page["runs"]] == sorted(expected, reverse=True)
            assert (page["total"], page["matched"]) == (8, len(expected))


async def test_an_agent_is_found_by_its_id_and_its_name(site: Site) -> None:
    agent = await site.api.done("agent", {"details": {"name": "Research"}})
    run_id = await site.api.register(agent_id=agent["id"])
    await site.api.register(agent_id="another")
    for name in ("Research", agent["id"]):
        assert await site.runs(agent=name) == [run_id]
    assert (await site.json("/-/runs"))["agents"] == [
        {"id": agent["id"], "name": "Research"},
        {"id": "another", "name": "another"},
    ]


async def test_runs_since_a_time_are_those_that_began_then_or_later(site: Site) -> None:
    partition = identifiers.partition_of((await site.json("/-/about"))["account_id"])
    now = datetime.now(UTC)
    ids = {}
    for age in (timedelta(minutes=5), timedelta(hours=5), timedelta(days=5)):
        moment = int((now - age).timestamp() * 1000)
        ids[age] = await site.api.register(id=identifiers.generate(partition, moment))
    for since, count in {
        "1m": 0,
        "10m": 1,
        "1h": 1,
        "24h": 2,
        "7d": 3,
        "999999d": 3,
        (now - timedelta(hours=6)).isoformat(): 2,
        now.isoformat(): 0,
        "1969-01-01T00:00:00Z": 3,
    }.items():
        with case(since):
            assert await site.runs(since=since) == list(ids.values())[:count]


async def test_pages_hold_each_run_once_while_runs_are_added(site: Site) -> None:
    ids = [await site.api.register() for _ in range(11)]
    seen: list[str] = []
    query: dict[str, object] = {"limit": 3}
    while True:
        page = await site.json("/-/runs", **query)
        seen += [run["id"] for run in page["runs"]]
        if page["next"] is None:
            break
        assert len(page["runs"]) == 3
        await site.api.register()
        query["before"] = page["next"]
    assert seen == sorted(ids, reverse=True)


@dataclass(frozen=True)
class Found:
    """A text, and whether a run with a span of these payloads has it."""

    text: str
    expected: bool = True
    payload: Any = field(default_factory=dict)
    result: Any = None


FOUND = [
    Found("Olympus", payload={"prompt": "How high is Olympus Mons?"}),
    Found("olympus mons", payload={"prompt": "How high is Olympus Mons?"}),
    Found("Olympus  Mons", False, payload={"prompt": "How high is Olympus Mons?"}),
    Found("Größe", payload={"prompt": "Die Größe von \U0001f30d"}),
    Found("\U0001f30d", payload={"prompt": "Die Größe von \U0001f30d"}),
    Found('say "hi"', payload={"prompt": 'I say "hi" to you'}),
    Found("two\nlines", payload={"prompt": "two\nlines"}),
    Found("C:\\temp", payload={"path": "C:\\temp"}),
    Found("100%", payload={"prompt": "100% sure"}),
    Found("1%0", False, payload={"prompt": "100"}),
    Found("a_b", False, payload={"prompt": "axb"}),
    Found("'; DROP TABLE agents; --", False),
    Found("'; drop", payload={"prompt": "'; DROP TABLE agents; --"}),
    Found("the answer", result={"response": "This is the answer."}),
    Found("agent:llm", True),
    Found("a1", True),
    Found("nowhere", False, payload={"prompt": "somewhere"}, result={"response": "there"}),
]


async def test_a_text_is_found_in_the_names_and_payloads_of_spans(tmp_path: Path) -> None:
    for number, found in enumerate(FOUND):
        with case(found):
            async with viewing(str(tmp_path / f"{number}.db")) as site:
                run_id = await site.api.start()
                changes = {"payload": found.payload, "result_payload": found.result}
                span = await site.api.created(run_id, status="complete", **changes)
                page = await site.json("/-/runs", q=found.text)
                expected = [run_id] if found.expected else []
                assert [run["id"] for run in page["runs"]] == expected
                assert (page["matched"], page["next"]) == (len(expected), None)
                hits = await site.json(f"/-/runs/{run_id}/search", q=found.text)
                is_of_span = found.expected and found.text != "a1"
                assert hits == {"spans": [span["id"]] if is_of_span else [], "more": False}


async def test_a_run_is_found_by_its_own_names(site: Site) -> None:
    run_id = await site.api.register(external_identifier="Nightly-7")
    await site.api.terminate(run_id, "over the Budget")
    other_id = await site.api.register(agent_id="a2")
    span = await site.api.created(other_id)
    for text in (run_id, run_id.upper(), "nightly", "Nightly-7", "budget"):
        with case(text):
            assert await site.runs(q=text) == [run_id]
    assert await site.runs(q=span["id"]) == [other_id]
    both = sorted([run_id, other_id], reverse=True)
    assert await site.runs(q=run_id[:4]) == await site.runs(q="  ") == both


async def test_a_search_has_pages_too(site: Site) -> None:
    ids = [await site.api.register(external_identifier=f"Nightly-{n}") for n in range(3)]
    ids.sort(reverse=True)
    await site.api.register()
    page = await site.json("/-/runs", q="nightly", limit=2)
    assert ([run["id"] for run in page["runs"]], page["next"]) == (ids[:2], ids[1])
    assert page["matched"] is None
    page = await site.json("/-/runs", q="nightly", limit=2, before=page["next"])
    assert ([run["id"] for run in page["runs"]], page["next"]) == (ids[2:], None)


async def test_a_query_that_is_wrong_is_refused(site: Site) -> None:
    for query in (
        {"limit": "0"},
        {"limit": "201"},
        {"limit": "x"},
        {"limit": "²"},
        {"status": "running"},
        {"since": "yesterday"},
        {"since": "2026-01-01T00:00:00"},
        {"q": "x" * 501},
    ):
        with case(query):
            answer = await site.get("/-/runs", **query)
            assert (answer.status_code, answer.json()["code"]) == (422, "validation_errors")
            assert list(answer.json()["errors"]) == list(query)


async def test_a_terminated_run_says_when_it_stopped(site: Site) -> None:
    run_id = await site.api.start()
    spans = [await site.api.created(run_id) for _ in range(2)]
    terminated = await site.api.terminate(run_id, "enough")
    for span in spans:
        assert (await site.run(run_id))["stopped_at"] is None
        ended = await site.api.done(f"agent_spans/{span['id']}/finish", {"status": "cancelled"})
    run = await site.run(run_id)
    assert run["stopped_at"] == ended["finished_at"] >= terminated["finished_at"]
    assert run["heard_at"] is not None
    # A run without an active span has stopped when it is terminated.
    idle_id = await site.api.start()
    terminated = await site.api.terminate(idle_id, "enough")
    assert (await site.run(idle_id))["stopped_at"] == terminated["finished_at"]
