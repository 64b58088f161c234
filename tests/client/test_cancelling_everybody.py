"""A program that cancels every task but its own, again and again: only asyncio lets it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from support.harness import AGENT, make_config, open_faulty_api, stored_run
from support.virtual_time import VirtualTimeLoop

from prefactor_core import ClientScopeError, open_prefactor

ROUNDS = pytest.mark.parametrize(
    ("times", "apart"), [(1, 0), (2, 0), (2, 1), (2, 2), (3, 0), (3, 1), (3, 2)]
)
"""How often all tasks are cancelled, and how many turns of the loop are in between."""

TURNS = range(0, 60, 3)


def cancel_all_but(*spared: asyncio.Task[Any] | None) -> None:
    for task in asyncio.all_tasks() - set(spared):
        task.cancel()


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def run(main: Callable[[], Any]) -> None:
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(main())


@ROUNDS
def test_a_body_that_cancels_all_other_tasks_is_not_cancelled_and_loses_nothing(
    times: int, apart: int
) -> None:
    async def main() -> None:
        me = asyncio.current_task()
        assert me is not None
        for at in TURNS:
            async with open_faulty_api() as api:
                config = make_config(
                    queue={"num_workers": 2, "batch_window": 0}, termination_poll_interval=0.5
                )
                with anyio.fail_after(60):
                    async with open_prefactor(config, asgi_app=api) as client:
                        async with client.agent_instance(**AGENT) as instance:
                            with instance.span("agent:run"):
                                pass
                            await turns(at)
                            for _ in range(times):
                                cancel_all_but(me)
                                await turns(apart)
                            with instance.span("agent:tool"):
                                await turns(2)
                            await client.flush()
                            polls = len([call for call in api.calls if call.method == "GET"])
                            await anyio.sleep(5)
                            # The poll goes on, too.
                            assert len([c for c in api.calls if c.method == "GET"]) > polls
                assert me.cancelling() == 0
                run = await stored_run(api)
                assert run.shape == (
                    "complete",
                    [("agent:run", "complete", []), ("agent:tool", "complete", [])],
                ), at
                assert client.statistics().lost == client.statistics().pending == 0
            assert asyncio.all_tasks() == {me}

    run(main)


@ROUNDS
def test_cancelling_the_workers_in_the_drain_loses_nothing(times: int, apart: int) -> None:
    async def main() -> None:
        me = asyncio.current_task()
        assert me is not None

        async def cancel(at: int) -> None:
            await turns(at)
            for _ in range(times):
                cancel_all_but(me, asyncio.current_task())
                await turns(apart)

        for at in TURNS:
            async with open_faulty_api() as api:
                config = make_config(queue={"num_workers": 2, "batch_window": 0})
                with anyio.fail_after(60):
                    async with open_prefactor(config, asgi_app=api) as client:
                        async with client.agent_instance(**AGENT) as instance:
                            for _ in range(3):
                                with instance.span("agent:run"):
                                    pass
                            other = asyncio.create_task(cancel(at))
                await other
                assert me.cancelling() == 0
                run = await stored_run(api)
                assert run.shape == ("complete", [("agent:run", "complete", [])] * 3), at
                assert client.statistics().lost == client.statistics().pending == 0
            assert asyncio.all_tasks() == {me}

    run(main)


@ROUNDS
@pytest.mark.parametrize("manual", [False, True], ids=["a block", "initialize()"])
def test_cancelling_the_agent_as_well_ends_it_with_everything_counted(
    manual: bool, times: int, apart: int
) -> None:
    async def agent(client: Any) -> None:
        async with client.agent_instance(**AGENT) as instance:
            with instance.span("agent:run"):
                pass
            await anyio.sleep(100)

    async def agent_in_a_block(client: Any) -> None:
        async with client:
            await agent(client)

    async def main() -> None:
        me = asyncio.current_task()
        delivered = 0
        for at in TURNS[::2]:
            async with open_faulty_api() as api:
                config = make_config(queue={"num_workers": 2, "batch_window": 0})
                client = open_prefactor(config, asgi_app=api)
                with anyio.fail_after(60):
                    if manual:
                        await client.initialize()
                    task = asyncio.create_task((agent if manual else agent_in_a_block)(client))
                    await turns(at)
                    for _ in range(times):
                        cancel_all_but(me)
                        await turns(apart)
                    await asyncio.wait([task])
                    assert task.cancelled()
                    await client.close()
                statistics = client.statistics()
                assert statistics.pending == 0
                assert statistics.accepted == statistics.delivered + statistics.lost
                # A second cancellation breaks the drain off, as it should.
                assert statistics.lost == 0 or times > 1
                delivered += statistics.delivered
            assert asyncio.all_tasks() == {me}
        assert delivered > 0

    run(main)


@pytest.mark.parametrize("whom", ["everybody", "our tasks"])
def test_an_opening_whose_task_is_cancelled_comes_to_an_end(whom: str) -> None:
    async def main() -> None:
        me = asyncio.current_task()
        refused = 0
        async with open_faulty_api() as api:
            for at in range(12):
                client = open_prefactor(make_config(), asgi_app=api)
                opening = asyncio.create_task(client.initialize())
                await turns(at)
                cancel_all_but(me, opening if whom == "our tasks" else None)
                with anyio.fail_after(60):
                    await asyncio.wait([opening])
                    await client.close()
                if not opening.cancelled() and opening.exception() is not None:
                    refused += 1
                    with pytest.raises(ClientScopeError, match="was cancelled"):
                        await opening
                assert asyncio.all_tasks() == {me}
                await client.initialize()
                await client.close()
        assert refused > 0 or whom == "everybody"

    run(main)


def test_a_body_that_cancels_tasks_until_none_is_left_comes_to_an_end_and_loses_nothing() -> None:
    async def main() -> None:
        me = asyncio.current_task()
        for pause in (0.0, 0.1, 0.4):
            async with open_faulty_api() as api:
                async with open_prefactor(make_config(), asgi_app=api) as client:
                    async with client.agent_instance(**AGENT) as instance:
                        with instance.span("agent:run"):
                            pass
                        rounds = 0
                        while others := asyncio.all_tasks() - {me}:
                            rounds += 1
                            assert rounds < 20
                            for task in others:
                                task.cancel()
                            await asyncio.sleep(pause)
                assert (await stored_run(api)).status == "complete"
                assert client.statistics().lost == 0

    run(main)


def test_a_body_that_cancels_all_tasks_and_waits_for_them_goes_on() -> None:
    async def main() -> None:
        me = asyncio.current_task()
        async with open_faulty_api() as api:
            async with open_prefactor(make_config(), asgi_app=api) as client:
                async with client.agent_instance(**AGENT) as instance:
                    others = asyncio.all_tasks() - {me}
                    cancel_all_but(me)
                    with anyio.fail_after(5):
                        await asyncio.gather(*others, return_exceptions=True)
                        with instance.span("agent:run"):
                            pass
                        await client.flush()
            assert client.statistics().lost == 0

    run(main)
