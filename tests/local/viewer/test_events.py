"""The stream of changes, as server-sent events."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import anyio
import msgspec
from support.cases import case
from support.deleting import delete_run
from support.local_api import REGISTRATION, item, opened
from support.viewing import Site, listening, viewing

from prefactor_core.local.read_only import connect
from prefactor_core.local.store import Store
from prefactor_core.local.viewer.events import Position


async def test_a_run_that_another_process_writes_arrives(site: Site) -> None:
    async with listening(site, "/-/events") as stream, opened(site.path) as other:
        run_id = await other.register()
        event = await stream.event_with(run_id)
        assert event.name == "runs"
        assert event.data["total"] == 1
        assert event.data["runs"] == [(await site.json("/-/runs"))["runs"][0]]
        assert event.data["revision"] == event.id


async def test_a_revision_that_is_no_number_is_refused(site: Site) -> None:
    for query in ({"after": "x"}, {"after": "-1"}, {"after": "9" * 19}):
        answer = await site.get("/-/events", **query)
        assert (answer.status_code, answer.json()["code"]) == (422, "validation_errors")


async def test_a_stream_resumes_without_a_gap(site: Site) -> None:
    run_id = await site.api.start()
    async with listening(site, "/-/events") as stream:
        await site.api.created(run_id)
        await stream.event_with(run_id)
        last = str(stream.last_id)
    for _ in range(3):
        await site.api.created(run_id)
    # A browser sends the header when it connects again, with the query of the first time.
    for query, headers in (
        (f"?after={last}", {}),
        ("", {"Last-Event-ID": last}),
        ("?after=0", {"Last-Event-ID": last}),
    ):
        with case(query, headers):
            async with listening(site, f"/-/events{query}", **headers) as stream:
                event = await stream.event_with(run_id)
                assert event.data["runs"][0]["spans"]["total"] == 4


async def test_a_run_that_is_deleted_is_reported(site: Site) -> None:
    old, new = await site.api.start(), await site.api.start()
    await site.api.created(old)
    for run_id in (old, new):
        await site.api.done(f"agent_instance/{run_id}/finish", {})
    with closing(Store(site.path)) as store:
        async with listening(site, "/-/events") as stream:
            made = await site.api.start()
            event = await stream.event_with(made)
            assert (event.data["total"], event.data["deleted"]) == (3, False)
            for run_id, left in ((old, 2), (new, 1)):
                delete_run(store, run_id)
                while not (event := await stream.event()).data["deleted"]:
                    pass  # its spans go first
                assert run_id not in [run["id"] for run in event.data["runs"]]
                assert (event.data["total"], event.data["revision"]) == (left, event.id)
    assert await site.runs() == [made]


async def test_a_run_that_is_deleted_while_another_begins_is_reported(site: Site) -> None:
    old = await site.api.start()
    await site.api.done(f"agent_instance/{old}/finish", {})
    for _ in range(2):
        await site.api.start()
    with closing(Store(site.path)) as store, closing(connect(site.path)) as db:
        position = Position(None)
        position.begin(db)
        made = await site.api.start()
        delete_run(store, old)
        event = msgspec.json.decode(position.advance(db))
        assert (event["total"], event["deleted"]) == (3, True)
        assert [run["id"] for run in event["runs"]] == [made]
        assert position.advance(db) == b""


async def test_a_client_that_is_ahead_of_the_file_gets_its_next_changes(site: Site) -> None:
    async with listening(site, "/-/events?after=1000000") as stream:
        await stream.event_with(await site.api.register())


async def test_many_changes_come_in_several_events_without_a_gap(site: Site) -> None:
    # More than one event may have; a transaction gives all its runs one revision.
    ids: set[str] = set()
    for bulk in range(4):
        items = [
            item("agent_instances/register", f"key-{bulk}-{n:04}", **REGISTRATION)
            for n in range(400)
        ]
        outputs = (await site.api.post("bulk", {"items": items})).json()["outputs"]
        ids |= {output["details"]["id"] for output in outputs.values()}
    seen: set[str] = set()
    async with listening(site, "/-/events?after=0") as stream:
        with anyio.fail_after(20):
            first = await stream.event()
            seen |= {run["id"] for run in first.data["runs"]}
            assert seen < ids
            while seen != ids:
                seen |= {run["id"] for run in (await stream.event()).data["runs"]}
        assert stream.last_id == (await site.json("/-/runs"))["revision"]


async def test_a_client_that_leaves_ends_its_stream(site: Site) -> None:
    async with listening(site, "/-/events") as stream:
        stream.leave()
        with anyio.fail_after(20):
            await stream.ended.wait()


async def test_the_stop_of_the_server_ends_all_streams(tmp_path: Path) -> None:
    stopping = anyio.Event()
    async with viewing(str(tmp_path / "runs.db"), stopping=stopping) as site:
        async with listening(site, "/-/events") as one, listening(site, "/-/events") as other:
            stopping.set()
            for stream in (one, other):
                with anyio.fail_after(20):
                    await stream.ended.wait()
                while (last := await stream.message())["body"]:
                    pass
                assert last["more_body"] is False
        # A stream that begins later ends at once.
        async with listening(site, "/-/events") as late:
            with anyio.fail_after(20):
                await late.ended.wait()


async def test_a_client_that_reads_nothing_ends_with_the_server(tmp_path: Path) -> None:
    stopping = anyio.Event()
    async with viewing(str(tmp_path / "runs.db"), stopping=stopping) as site:
        async with listening(site, "/-/events") as stream:
            await stream.block()
            stream.is_stuck = True
            await site.api.start()
            with anyio.fail_after(20):
                await stream.stuck.wait()
            stopping.set()
            with anyio.fail_after(20):
                await stream.ended.wait()


async def test_a_client_that_the_server_lost_ends_its_stream(site: Site) -> None:
    async with listening(site, "/-/events") as stream:
        await stream.block()
        stream.is_lost = True
        await site.api.start()
        with anyio.fail_after(20):
            await stream.ended.wait()
