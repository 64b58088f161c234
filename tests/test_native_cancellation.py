"""Cancellation that is not anyio's: asyncio's own Task.cancel(), and Ctrl-C on trio."""

from __future__ import annotations

import asyncio
import signal
import threading
from typing import Any

import anyio
import pytest
from harness import AGENT, FaultyApi, make_config, open_faulty_api, stored_run

from prefactor_core import PrefactorCoreClient, open_prefactor


async def agent(client: PrefactorCoreClient, started: asyncio.Event | None = None) -> None:
    async with client, client.agent_instance(**AGENT) as instance:
        async with instance.span("agent:run") as span:
            await span.start()
            if started is not None:
                started.set()
            await anyio.sleep_forever()


@pytest.mark.parametrize("cancels", [1, 2, 3, 5])
@pytest.mark.parametrize("in_the_body", [True, False], ids=["from the body on", "in the drain"])
def test_any_number_of_native_cancellations_leaves_a_clean_loop(
    cancels: int, in_the_body: bool
) -> None:
    async def main() -> None:
        async with open_faulty_api() as api:
            client = open_prefactor(make_config(drain_timeout=5), asgi_app=api)
            started = asyncio.Event()
            task = asyncio.create_task(agent(client, started))
            await started.wait()
            if not in_the_body:
                api.hanging = True
                task.cancel()
                await asyncio.sleep(0.01)
            for _ in range(cancels):
                task.cancel()
                await asyncio.sleep(0)
            with anyio.fail_after(3):
                await asyncio.wait([task])
            assert task.cancelled()
            statistics = client.statistics()
            assert statistics.pending == 0
            assert statistics.accepted == statistics.delivered + statistics.lost
            names = [other.get_name() for other in asyncio.all_tasks()]
            assert not [name for name in names if name.startswith("prefactor")]

    asyncio.run(main())


def test_cancelling_every_task_of_the_loop_still_delivers_what_was_recorded() -> None:
    async def main() -> None:
        async with open_faulty_api() as api:
            client = open_prefactor(make_config(), asgi_app=api)
            started = asyncio.Event()
            task = asyncio.create_task(agent(client, started))
            await started.wait()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            assert task in tasks
            for each in tasks:
                each.cancel()
            with anyio.fail_after(5):
                await asyncio.gather(*tasks, return_exceptions=True)
            run = await stored_run(api)
            assert run.shape == ("cancelled", [("agent:run", "cancelled", [])])
            assert client.statistics().lost == 0

    asyncio.run(main())


def test_cancelling_the_workers_cancels_neither_them_nor_the_agent() -> None:
    async def main() -> None:
        async with open_faulty_api() as api:
            async with open_prefactor(make_config(), asgi_app=api) as client:
                await asyncio.sleep(0)
                for task in asyncio.all_tasks():
                    if task.get_name().startswith("prefactor"):
                        task.cancel()
                async with client.agent_instance(**AGENT) as instance:
                    async with instance.span("agent:run"):
                        await asyncio.sleep(0.01)
            run = await stored_run(api)
            assert run.shape == ("complete", [("agent:run", "complete", [])])

    asyncio.run(main())


def test_a_client_that_is_never_closed_does_not_keep_the_program_from_ending() -> None:
    async def main() -> None:
        client = open_prefactor(make_config(), asgi_app=lambda *_: asyncio.sleep(0))
        await client.initialize()

    ended = threading.Event()

    def run() -> None:
        asyncio.run(main())
        ended.set()

    threading.Thread(target=run, daemon=True).start()
    assert ended.wait(5)


def test_ctrl_c_that_trio_raises_in_a_worker_ends_the_body_and_leaves_as_itself() -> None:
    async def main() -> None:
        async with open_faulty_api() as api:
            app, fired = api.app, False

            async def interrupting(scope: Any, receive: Any, send: Any) -> None:
                nonlocal fired
                if scope["path"].endswith("agent_spans") and not fired:
                    fired = True
                    signal.raise_signal(signal.SIGINT)
                await app(scope, receive, send)

            with pytest.raises(KeyboardInterrupt):
                await agent(open_prefactor(make_config(), asgi_app=FaultyApi(interrupting)))
            run = await stored_run(api)
            assert run.shape == ("cancelled", [("agent:run", "cancelled", [])])

    anyio.run(main, backend="trio")
