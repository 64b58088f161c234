"""What the commands read: the newest runs of many agents, and a run that goes on."""

from __future__ import annotations

from contextlib import closing

import anyio
import pytest
from support.deleting import delete_run
from support.local_api import item
from support.stored import Stored, storing

from prefactor_core.cli.reading import NewestRuns, changes_of, spans_of
from prefactor_core.exceptions import PrefactorServerError
from prefactor_core.local import Faults, LocalPrefactor
from prefactor_core.local.store import Store
from prefactor_core.operations.identifiers import generate_related

pytestmark = pytest.mark.virtual_time


async def finish(stored: Stored, id: str) -> None:
    await stored.write.done(f"agent_instance/{id}/start", {})
    await stored.write.done(f"agent_instance/{id}/finish", {})


async def test_only_agents_with_changes_are_asked_again() -> None:
    async with storing() as stored:
        done = await stored.run("a1")
        await finish(stored, done)
        active = await stored.run("a2", id=generate_related(done, 1 << 46))
        newest = NewestRuns(stored.read, None, [], 20)
        assert {run.id for run in await newest.read()} == {done, active}
        asked = len(stored.asked)
        again = await newest.read()
        assert {run.id for run in again} == {done, active}
        assert stored.asked[asked:] == ["agent", "agent_instance"]
        new = await stored.run("a1", id=generate_related(done, 1 << 47))
        assert (await newest.read())[0].id == new


async def test_a_run_that_was_deleted_leaves_the_list() -> None:
    with closing(Store(":memory:")) as store:
        async with storing(app=LocalPrefactor(store)) as stored:
            old, new = await stored.run(), await stored.run()
            for id in (old, new):
                await finish(stored, id)
            newest = NewestRuns(stored.read, None, [], 20)
            assert {run.id for run in await newest.read()} == {old, new}
            delete_run(store, old)
            assert [run.id for run in await newest.read()] == [new]


async def test_a_list_says_which_runs_it_did_not_look_through() -> None:
    async with storing() as stored:
        await stored.run("busy")
        items = [
            item(
                "agent_instances/register",
                f"register{n}",
                agent_id="busy",
                agent_version={"name": "v"},
            )
            for n in range(1_000)
        ]
        answer = await stored.write.post("bulk", {"items": items})
        assert answer.status_code == 200, answer.text
        newest = NewestRuns(stored.read, None, ["failed"], 20)
        assert await newest.read() == []
        assert newest.note == "only the newest 1,000 runs were looked through of: busy"
        newest = NewestRuns(stored.read, "busy", ["pending"], 20)
        assert len(await newest.read()) == 20
        assert newest.note is None


async def test_spans_are_read_in_the_order_of_their_tree_and_not_of_their_ids() -> None:
    async with storing() as stored:
        run = await stored.run()
        instance = await stored.read.get_agent_instance(run)
        one, two, three, four = (generate_related(run, (1 << 46) + n) for n in (4, 3, 2, 1))
        for id, parent, second in (
            (two, None, 2),
            (one, None, 1),
            (four, two, 4),
            (three, one, 3),
        ):
            more = {} if parent is None else {"parent_span_id": parent}
            await stored.write.created(
                run, id=id, started_at=f"2026-01-01T12:00:0{second}Z", **more
            )
        read = [span.id for span in await spans_of(stored.read, instance)]
        assert read == [one, three, two, four]


async def test_a_run_is_followed_until_it_ends() -> None:
    async with storing() as stored:
        id = await stored.run()
        seen: list[tuple[str, int]] = []

        async def act() -> None:
            for _ in range(3):
                await anyio.sleep(5)
                await stored.write.created(id)
            await finish(stored, id)

        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(act)
                instance = await stored.read.get_agent_instance(id)
                async for run, spans in changes_of(stored.read, instance):
                    seen.append((run.status, len(spans)))
        assert seen == [("pending", 0), ("pending", 1), ("pending", 2), ("complete", 3)]
        assert stored.asked.count("agent_spans") == 4


@pytest.mark.parametrize(("seconds", "survives"), [(5, True), (30, False)])
async def test_a_run_is_followed_through_a_short_outage(seconds: float, survives: bool) -> None:
    faults = Faults()
    async with storing(faults) as stored:
        id = await stored.run()
        instance = await stored.read.get_agent_instance(id)
        statuses: list[str] = []

        async def act() -> None:
            await anyio.sleep(3.5)
            faults.failure_rate = 1.0
            await anyio.sleep(seconds)
            faults.failure_rate = 0.0
            await finish(stored, id)

        async def follow() -> None:
            async for run, _ in changes_of(stored.read, instance):
                statuses.append(run.status)

        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(act)
                if survives:
                    await follow()
                else:
                    with pytest.raises(PrefactorServerError):
                        await follow()
        assert statuses == ["pending", "complete"][: 1 + survives]
