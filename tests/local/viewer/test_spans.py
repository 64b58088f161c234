"""Spans: the skeleton of a run, the changes in it, and single spans."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import msgspec
from support.cases import case
from support.local_api import NOON, ONE
from support.viewing import Site, rows_of

HOSTILE = [
    "<script>alert(1)</script>",
    "</script><!--",
    '"; DROP TABLE agent_spans; --',
    "\x01\x1f\x7f\x00",
    "\u2028\u2029\ufeff",
    "\U0001f9d1\u200d\U0001f680 \u202e gnp.exe",
    "{{7*7}}{% raw %}",
    "%_\\'\"",
]


async def test_a_skeleton_has_the_spans_by_id_without_their_payloads(site: Site) -> None:
    run_id = await site.api.start()
    root = await site.api.created(run_id, schema_name="agent:run", payload={"input": "Why?"})
    usage = {"token_usage": {"total_tokens": 5}, "cost": 0.5}
    call = await site.api.created(
        run_id,
        schema_name="agent:llm_call",
        parent_span_id=root["id"],
        status="complete",
        started_at=NOON,
        finished_at=ONE,
        payload={"model": "small-1"},
        result_payload=usage,
    )
    pending = await site.api.created(run_id, status="pending")
    shape = await site.json(f"/-/runs/{run_id}/skeleton")
    assert shape["revision"] == (await site.run(run_id))["revision"]
    rows = {row["id"]: row for row in rows_of(shape)}
    assert list(rows) == sorted(rows) == sorted(span["id"] for span in (root, call, pending))
    assert rows[call["id"]] == {
        "id": call["id"],
        "parent": root["id"],
        "name": "agent:llm_call",
        "status": "complete",
        "start": NOON,
        "end": ONE,
        "flags": 1,  # its span type is not registered
        "error": None,
        "tokens": 5,
        "cost": 0.5,
        "size": len('{"model":"small-1"}{"token_usage":{"total_tokens":5},"cost":0.5}'),
        "label": "small-1",
    }
    row = rows[root["id"]]
    assert (row["parent"], row["status"], row["end"], row["tokens"]) == (None, "active", None, None)
    assert rows[pending["id"]]["start"] is None


async def test_a_label_is_the_most_telling_text_of_the_payload(site: Site) -> None:
    run_id = await site.api.start()
    secret = {"$sensitive": "string", "labels": ["contact_information"], "value": "secret"}
    for payload, label in (
        ({"model": "small-1", "prompt": "Why?"}, "small-1"),
        ({"tool": "search", "arguments": {"q": "x"}}, "search"),
        ({"query": "height of Everest"}, "height of Everest"),
        ({"agent": "planner", "input": "x"}, "planner"),
        ({"input": "x" * 200}, "x" * 80),
        ({"input": "ä" * 200}, "ä" * 80),
        ({"inputs": {"model": "from the dashboard"}}, "from the dashboard"),
        ({"query": secret}, None),
        ({"prompt": secret, "input": "open"}, "open"),
        ({"model": {"name": "x"}, "tool": 7, "query": None, "input": ["x"]}, None),
        ({"model": "", "tool": "search"}, "search"),
        ({}, None),
    ):
        with case(payload):
            span = await site.api.created(run_id, payload=payload)
            rows = {row["id"]: row for row in await site.skeleton(run_id)}
            assert rows[span["id"]]["label"] == label


async def test_the_error_of_a_failed_span_is_type_and_message(site: Site) -> None:
    run_id = await site.api.start()
    secret = {"$sensitive": "string", "labels": ["contact_information"], "value": "secret"}
    for result, error in (
        ({"error": {"type": "ValueError", "message": "no number"}}, "ValueError: no number"),
        ({"error": {"error_type": "ValueError"}}, "ValueError: "),
        ({"error": {"message": "no number"}}, "no number"),
        ({"error": "no number"}, "no number"),
        ({"message": "no number"}, "no number"),
        ({"error": {"type": "E", "message": "x" * 500}}, "E: " + "x" * 197),
        ({"error": {"type": "E", "message": secret}}, "E: "),
        ({"output": 1}, ""),
        ({}, ""),
        (None, None),
    ):
        with case(result):
            span = await site.api.created(run_id, status="failed", result_payload=result)
            rows = {row["id"]: row for row in await site.skeleton(run_id)}
            assert rows[span["id"]]["error"] == error


async def test_changes_are_the_spans_since_a_revision_and_the_run(site: Site) -> None:
    run_id = await site.api.start()
    known = [await site.api.created(run_id) for _ in range(3)]
    rows = {row["id"]: row for row in await site.skeleton(run_id)}
    revision = (await site.run(run_id))["revision"]
    await site.api.done(f"agent_spans/{known[1]['id']}/finish", {"status": "failed"})
    parent_id = known[0]["id"]
    added = await site.api.created(run_id, parent_span_id=parent_id, schema_name="step")
    await site.api.created(await site.api.start())  # another run
    changes = await site.json(f"/-/runs/{run_id}/changes", after=revision)
    changed = {row["id"]: row for row in rows_of(changes)}
    assert set(changed) == {known[1]["id"], added["id"]}
    assert list((rows | changed).values()) == await site.skeleton(run_id)
    run = await site.run(run_id)
    assert {name: run[name] for name in changes["run"]} == changes["run"]
    again = await site.json(f"/-/runs/{run_id}/changes", after=changes["revision"])
    assert (again["rows"], again["revision"]) == ([], changes["revision"])
    everything = await site.json(f"/-/runs/{run_id}/changes")
    assert len(everything["rows"]) == 4
    answer = await site.get(f"/-/runs/{run_id}/changes", after="soon")
    assert answer.status_code == 422


async def test_a_span_has_its_payloads_as_they_are_stored(site: Site) -> None:
    span_type = {
        "name": "agent:llm",
        "title": "Model call",
        "params_schema": {"required": ["model"]},
        "result_schema": {"type": "object"},
        "template": "{{model}} → {{text}}",
        "data_risk": {"action_profile": {}},
    }
    run_id = await site.api.register(
        agent_schema_version={"external_identifier": "s2", "span_type_schemas": [span_type]}
    )
    root = await site.api.created(run_id, schema_name="agent:run")
    child = await site.api.created(run_id, schema_name="agent:step", parent_span_id=root["id"])
    created = await site.api.created(
        run_id,
        status="complete",
        parent_span_id=child["id"],
        payload={"n": 2**53 + 1},
    )
    span = await site.span(created["id"])
    assert span == {
        **{name: created[name] for name in ("id", "started_at", "finished_at")},
        "agent_instance_id": run_id,
        "parent_span_id": child["id"],
        "schema_name": "agent:llm",
        "schema_title": "Model call",
        "status": "complete",
        "inserted_at": span["inserted_at"],
        "updated_at": span["updated_at"],
        "sensitive_encoding": False,
        "flags": ["payload: 'model' is a required property"],
        "summary": " → ",
        "data_risk": {"action_profile": {}},
        "path": [
            {"id": root["id"], "name": "agent:run"},
            {"id": child["id"], "name": "agent:step"},
        ],
        "payload_text": '{"n":9007199254740993}',
        "result_text": None,
        "params_schema": {"required": ["model"]},
        "result_schema": {"type": "object"},
    }


async def test_schemas_are_found_in_maps_too(site: Site) -> None:
    schemas = {"span_schemas": {"step": {"title": "in"}}, "span_result_schemas": {"step": {}}}
    for version, expected in (
        (schemas, ({"title": "in"}, {})),
        ({"span_schemas": {}}, (None, None)),
        ({}, (None, None)),
        ({**schemas, "span_type_schemas": []}, (None, None)),
    ):
        with case(version):
            run_id = await site.api.register(agent_schema_version=version)
            span = await site.api.created(run_id, schema_name="step")
            span = await site.span(span["id"])
            assert (span["params_schema"], span["result_schema"]) == expected
            assert span["schema_title"] == "step"


async def test_hostile_texts_come_as_they_were_sent(site: Site) -> None:
    for text in HOSTILE:
        with case(text):
            run_id = await site.api.start()
            span = await site.api.created(
                run_id,
                schema_name=text,
                status="failed",
                payload={"input": text, text: text},
                result_payload={"error": {"type": text, "message": text}},
            )
            (row,) = await site.skeleton(run_id)
            # SQLite ends a text that it takes out of JSON at a NUL character.
            shown = text.partition("\0")[0]
            assert (row["name"], row["label"]) == (text, shown)
            assert row["error"] == f"{shown}: {shown}"
            details = await site.span(span["id"])
            assert msgspec.json.decode(details["payload_text"]) == {"input": text, text: text}
            hits = await site.json(f"/-/runs/{run_id}/search", q=text)
            assert hits["spans"] == [span["id"]]


async def test_a_payload_that_is_nested_very_deep_has_a_row_without_a_label(site: Site) -> None:
    run_id = await site.api.start()
    span = await site.api.created(run_id, status="complete", payload={"input": "x"})
    deep = '{"input":' * 3_000 + "1" + "}" * 3_000
    with closing(sqlite3.connect(site.path)) as db, db:
        query = "UPDATE agent_spans SET payload = ?, result_payload = ?, status = 'failed'"
        db.execute(query, (deep, deep))
    (row,) = await site.skeleton(run_id)
    assert (row["label"], row["error"], row["size"]) == (None, None, 2 * len(deep))
    assert (await site.json(f"/-/runs/{run_id}/usage")) == {"models": []}
    assert (await site.span(span["id"]))["payload_text"] == deep


async def test_a_path_has_the_nearest_hundred_ancestors(site: Site) -> None:
    run_id = await site.api.start()
    ids: list[str] = []
    for _ in range(103):
        parent_id = ids[-1] if ids else None
        ids.append((await site.api.created(run_id, parent_span_id=parent_id))["id"])
    assert [each["id"] for each in (await site.span(ids[-1]))["path"]] == ids[2:-1]
    # A file from elsewhere may have parents in a circle.
    with closing(sqlite3.connect(site.path)) as db, db:
        query = "UPDATE agent_spans SET parent_span_id = ? WHERE id = ?"
        db.execute(query, (ids[1], ids[0]))
    assert len((await site.span(ids[1]))["path"]) == 100


async def test_hits_come_in_the_order_of_their_starts(site: Site) -> None:
    run_id = await site.api.start()
    late = await site.api.created(run_id, payload={"text": "mountain"})
    early = await site.api.created(run_id, started_at=NOON, payload={"text": "Mountain"})
    await site.api.created(run_id, payload={"text": "valley"})
    hits = await site.json(f"/-/runs/{run_id}/search", q="mountain")
    assert hits == {"spans": [early["id"], late["id"]], "more": False}
    answer = await site.get(f"/-/runs/{run_id}/search", q="")
    assert answer.json()["errors"]["q"]["code"] == "required"


async def test_the_payloads_of_many_spans_come_at_once_as_they_are_stored(site: Site) -> None:
    run_id = await site.api.start()
    ids = [
        (await site.api.created(run_id, status="complete", payload=payload, result_payload=result))[
            "id"
        ]
        for payload, result in (({"n": 2**60, "text": "ü\0</script>"}, {"ok": True}), ({}, None))
    ]
    answer = await site.json("/-/spans", ids=",".join([*reversed(ids), "unknown", ids[0]]))
    assert answer["left"] == []
    assert [span["id"] for span in answer["spans"]] == sorted(ids)
    for span in answer["spans"]:
        details = await site.span(span["id"])
        assert span == {name: details[name] for name in ("id", "payload_text", "result_text")}


async def test_payloads_that_are_large_come_in_several_answers(site: Site) -> None:
    run_id = await site.api.start()
    large = {"text": "ü" * 600_000}
    made = [(await site.api.created(run_id, payload=large))["id"] for _ in range(5)]
    wanted, answers, got = ["unknown", *made], 0, set[str]()
    while wanted:
        answer = await site.json("/-/spans", ids=",".join(wanted))
        texts = [span["payload_text"] for span in answer["spans"]]
        assert sum(map(len, texts)) < 2_000_000
        got |= {span["id"] for span in answer["spans"]}
        wanted = answer["left"]
        answers += 1
    assert (got, answers) == (set(made), 3)


async def test_payloads_of_no_span_or_too_many_are_refused(site: Site) -> None:
    for ids in ("", ",,", ",".join(str(number) for number in range(101))):
        answer = await site.get("/-/spans", ids=ids)
        assert (answer.status_code, answer.json()["code"]) == (422, "validation_errors")
    assert (await site.json("/-/spans", ids=",".join(str(n) for n in range(100))))["spans"] == []
