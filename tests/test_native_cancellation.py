"""Cancellation that is not anyio's: asyncio's own Task.cancel(), and Ctrl-C on trio."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from typing import Any

import anyio
import pytest
from harness import AGENT, FaultyApi, make_config, open_faulty_api, stored_run

from prefactor_core import InMemoryQueue, PrefactorCoreClient, TaskExecutor, open_prefactor


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
    cancels: int, in_the_body: bool, caplog: pytest.LogCaptureFixture
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
                await anyio.wait_all_tasks_blocked()
            for _ in range(cancels):
                task.cancel()
                await asyncio.sleep(0)
            with anyio.fail_after(3):
                await asyncio.wait([task])
            assert task.cancelled()
            statistics = client.statistics()
            assert statistics.pending == 0
            assert statistics.accepted == statistics.delivered + statistics.lost
            told = [r for r in caplog.records if "were not delivered" in r.getMessage()]
            assert len(told) == (1 if statistics.lost else 0)
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


@pytest.mark.parametrize("turns", range(6))
def test_a_native_cancellation_in_the_opening_leaves_nothing_open(turns: int) -> None:
    async def main() -> None:
        async def open_and_wait() -> None:
            with anyio.CancelScope():  # complains if a scope inside it was not left
                async with TaskExecutor(InMemoryQueue[int](), anyio.sleep, num_workers=2):
                    await anyio.sleep_forever()

        task = asyncio.create_task(open_and_wait())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with anyio.fail_after(3):
            await asyncio.wait([task])
        assert task.cancelled()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def cancel_workers() -> None:
    for task in asyncio.all_tasks():
        if task.get_name().startswith("prefactor"):
            task.cancel()


@pytest.mark.parametrize("turns", [0, 1, 5])
def test_cancelling_the_workers_cancels_neither_the_agent_nor_what_it_recorded(turns: int) -> None:
    async def main() -> None:
        async with open_faulty_api() as api:
            async with open_prefactor(make_config(), asgi_app=api) as client:
                async with client.agent_instance(**AGENT) as instance:
                    async with instance.span("agent:run"):
                        for _ in range(turns):
                            await asyncio.sleep(0)
                        cancel_workers()
                        with instance.span("agent:tool"):
                            await anyio.wait_all_tasks_blocked()
                            cancel_workers()
            run = await stored_run(api)
            assert run.shape == (
                "complete",
                [("agent:run", "complete", [("agent:tool", "complete", [])])],
            )
            assert client.statistics().lost == 0

    asyncio.run(main())


def test_an_item_that_was_just_put_survives_the_cancellation_of_its_worker() -> None:
    async def main() -> None:
        done: list[str] = []

        async def handle(item: str) -> None:
            done.append(item)

        queue = InMemoryQueue[str]()
        async with TaskExecutor(queue, handle, num_workers=1):
            await anyio.wait_all_tasks_blocked()
            queue.put_nowait("item")
            cancel_workers()
        assert done == ["item"]

    asyncio.run(main())


def test_a_handler_that_always_raises_a_cancellation_freezes_nothing() -> None:
    async def main() -> None:
        dead = asyncio.create_task(asyncio.sleep(9))
        await asyncio.sleep(0)
        dead.cancel()
        await asyncio.wait([dead])

        async def handle(item: int) -> None:
            await dead

        queue = InMemoryQueue[int]()
        with anyio.fail_after(3):
            async with TaskExecutor(queue, handle, drain_timeout=1):
                queue.put_nowait(1)
                await anyio.wait_all_tasks_blocked()

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
                if scope["path"].endswith("bulk") and not fired:
                    fired = True
                    signal.raise_signal(signal.SIGINT)
                await app(scope, receive, send)

            with pytest.raises(KeyboardInterrupt):
                await agent(open_prefactor(make_config(), asgi_app=FaultyApi(interrupting)))
            run = await stored_run(api)
            assert run.shape == ("cancelled", [("agent:run", "cancelled", [])])

    anyio.run(main, backend="trio")


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_ctrl_c_in_the_drain_breaks_it_off(backend: str) -> None:
    async def main() -> None:
        async def handle(item: int) -> None:
            if not draining.is_set():
                draining.set()
                await anyio.sleep(0.01)
                signal.raise_signal(signal.SIGINT)
            await anyio.sleep_forever()

        draining = anyio.Event()
        queue = InMemoryQueue[int]()
        queue.put_nowait(1)
        async with TaskExecutor(queue, handle, num_workers=1, drain_timeout=20):
            pass

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        anyio.run(main, backend=backend)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("in_a_group", [False, True])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_program_leaves_a_worker_as_itself(
    backend: str, in_a_group: bool, kind: type[BaseException]
) -> None:
    stop = kind()

    async def main() -> None:
        async def handle(item: int) -> None:
            if item == 1 and 1 not in seen:
                seen.append(1)
                raise BaseExceptionGroup("from a nursery", [stop]) if in_a_group else stop
            seen.append(item)

        seen: list[int] = []
        queue = InMemoryQueue[int]()
        with pytest.raises(kind) as caught:
            async with TaskExecutor(queue, handle, num_workers=1):
                queue.put_nowait(1)
                queue.put_nowait(2)
                await anyio.sleep_forever()
        assert caught.value is stop
        assert seen == [1, 1, 2]

    anyio.run(main, backend=backend)
