"""The list of runs: its rows, filters and pages."""

from __future__ import annotations

from support.viewing import Site


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


async def test_an_empty_file_has_an_empty_list(site: Site) -> None:
    page = await site.json("/-/runs")
    assert (page["runs"], page["next"], page["total"], page["matched"]) == ([], None, 0, 0)
    assert set(page["statuses"].values()) == {0}
