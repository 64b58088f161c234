"""What a user names: a run or a span by its id, by the beginning of it, or by an agent."""

from __future__ import annotations

from collections.abc import Awaitable

import anyio
import pytest
from support.stored import storing

from prefactor_core.cli.finding import find_agent, find_run, find_span
from prefactor_core.exceptions import PrefactorNotFoundError, PrefactorValueError
from prefactor_core.operations.identifiers import generate_related


async def said(finding: Awaitable[object]) -> str:
    with pytest.raises(PrefactorValueError) as caught:
        await finding
    return str(caught.value)


def ids_from(pfid: str, *milliseconds: int) -> list[str]:
    return [generate_related(pfid, each) for each in milliseconds]


async def test_a_run_is_found_by_its_id_and_by_the_beginning_of_it() -> None:
    async with storing() as stored:
        first = await stored.run()
        early, later, other = ids_from(first, 1 << 30, 1 << 31, 1 << 40)
        for id, agent_id in ((later, "a1"), (early, "a1"), (other, "a2")):
            await stored.run(agent_id, id=id)
        for id in (first, early, later, other):
            for length in (32, 31, 12, 10):
                assert (await find_run(stored.read, id[:length])).id == id


async def test_a_word_that_begins_several_ids_is_refused_with_a_list_of_them() -> None:
    async with storing() as stored:
        first = await stored.run()
        early, later = ids_from(first, 1 << 30, (1 << 30) + 1)
        await stored.run("a1", id=early)
        await stored.run("a2", id=later)
        message = await said(find_run(stored.read, early[:5]))
        assert f"the ids of several runs begin with '{early[:5]}'" in message
        assert f"{early} (pending)" in message
        assert f"{later} (pending)" in message


async def test_a_long_list_of_candidates_is_cut() -> None:
    async with storing() as stored:
        first = await stored.run()
        for n in range(15):
            await stored.run(id=generate_related(first, (1 << 30) + n))
        message = await said(find_run(stored.read, generate_related(first, 1 << 30)[:5]))
        assert message.count("(pending)") == 10
        assert message.endswith(" and 1 more")


async def test_an_agent_stands_for_its_newest_run() -> None:
    async with storing() as stored:
        agent_id = await stored.agent("Research agent", "research-1")
        older = await stored.run(agent_id)
        newer = await stored.run(agent_id, id=generate_related(older, 1 << 47))
        await stored.run("another")
        for word in (agent_id, "Research agent", "research-1"):
            assert (await find_run(stored.read, word)).id == newer
            assert (await find_agent(stored.read, word)).id == agent_id


async def test_a_name_of_two_agents_is_refused_with_their_ids() -> None:
    async with storing() as stored:
        ids = [await stored.agent("Twin"), await stored.agent("Twin")]
        for finding in (find_run(stored.read, "Twin"), find_agent(stored.read, "Twin")):
            message = await said(finding)
            assert "2 agents are named 'Twin'" in message
            assert all(id in message for id in ids)


async def test_what_names_nothing_is_refused() -> None:
    async with storing() as stored:
        first = await stored.run()
        (unknown,) = ids_from(first, 5)
        idle = await stored.agent("Idle")
        with pytest.raises(PrefactorNotFoundError, match=unknown):
            await find_run(stored.read, unknown)
        for word, message in (
            ("Idle", "agent 'Idle' has no run at "),
            (idle, "has no run at "),
            ("no\x1bbody", "there is no agent 'no\N{REPLACEMENT CHARACTER}body' at "),
            (unknown[:8], f"whose id begins with '{unknown[:8]}'"),
            ("", "there is no agent '' at "),
            ("nobody", "there is no agent 'nobody' at "),
        ):
            assert message in await said(find_run(stored.read, word))
        nobody = await said(find_run(stored.read, "nobody"))
        assert await said(find_agent(stored.read, "nobody")) == nobody
        assert "is not the id of a span" in await said(find_span(stored.read, "012"))
        assert "there is no span" in await said(find_span(stored.read, unknown))


async def test_a_span_is_found_without_its_run_and_within_it() -> None:
    async with storing() as stored:
        runs = [await stored.run("a1"), await stored.run("a2")]
        ids = ids_from(runs[0], 1 << 30, (1 << 30) + (1 << 10), 1 << 32, 1 << 33)
        for place, id in enumerate(ids):
            await stored.write.created(runs[place % 2], id=id)
        for place, id in enumerate(ids):
            run = runs[place % 2]
            for word, within in ((id, None), (id[:9], None), (id[:9], run), (f"{run}/{id}", None)):
                assert (await find_span(stored.read, word, within)).id == id
            assert "there is no span" in await said(find_span(stored.read, id, runs[1 - place % 2]))
        assert "several spans" in await said(find_span(stored.read, ids[0][:4]))


async def test_a_beginning_is_looked_up_in_few_requests() -> None:
    async with storing() as stored:
        first = await stored.run()
        ids = [generate_related(first, 1000 * n) for n in range(1, 200)]
        for id in ids:
            await stored.run(id=id)
        stored.asked.clear()
        assert (await find_run(stored.read, ids[70][:10])).id == ids[70]
        assert len(stored.asked) < 16


async def test_looking_says_how_far_it_is() -> None:
    async with storing() as stored:
        first = await stored.run("a1")
        await stored.run("a2", id=generate_related(first, 1 << 30))
        steps: list[tuple[int, int]] = []
        with anyio.fail_after(5):
            await find_run(stored.read, first[:20], lambda done, total: steps.append((done, total)))
        assert steps == [(0, 2), (1, 2)]
