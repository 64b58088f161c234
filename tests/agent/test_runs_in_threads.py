"""Runs that synchronous code enters by ``with``, in threads without the client's event loop."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
from support.harness import (
    AGENT,
    FaultyApi,
    make_config,
    open_faulty_api,
    stored_run,
    stored_runs,
    terminate,
)

from prefactor_core import (
    ClientNotInitializedError,
    ClientScopeError,
    PrefactorApiError,
    PrefactorCoreClient,
    PrefactorCoreError,
    PrefactorTerminatedError,
    current_instance,
    current_span,
    open_prefactor,
    traced,
)

SECONDS = 20.0
TREE = ("complete", [("agent:run", "complete", [("agent:tool", "complete", [])])])


@asynccontextmanager
async def opened(**options: Any) -> AsyncGenerator[tuple[PrefactorCoreClient, FaultyApi]]:
    with anyio.fail_after(SECONDS):
        async with open_faulty_api() as api:
            async with open_prefactor(make_config(**options), asgi_app=api) as client:
                yield client, api
            assert client.statistics().lost == 0


async def in_thread_of_mine(function: Callable[[], object]) -> None:
    """Call in a thread that knows nothing of the task, while the loop goes on."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(function)
        await anyio.to_thread.run_sync(future.result, SECONDS)


@traced("agent:tool")
def search() -> int:
    return 3


def endpoint(client: PrefactorCoreClient) -> None:
    with client.agent_instance(**AGENT) as instance:
        assert current_instance() is instance
        with instance.span("agent:run"):
            search()
    assert instance.ended
    assert current_instance() is not instance


@pytest.mark.parametrize("way", [anyio.to_thread.run_sync, in_thread_of_mine])
async def test_a_thread_enters_a_run_and_records_in_it(way: Any) -> None:
    async with opened() as (client, api):
        await way(lambda: endpoint(client))
        await way(lambda: endpoint(client))
        assert current_instance() is None
        await client.flush()
        assert [run.shape for run in await stored_runs(api)] == [TREE] * 2


async def test_many_threads_have_each_its_own_run() -> None:
    async with opened() as (client, api):
        async with anyio.create_task_group() as tasks:
            for _ in range(30):
                tasks.start_soon(anyio.to_thread.run_sync, endpoint, client)
        await client.flush()
        runs = await stored_runs(api)
    assert [run.shape for run in runs] == [TREE] * 30


async def test_it_is_a_run_beside_the_one_of_the_task() -> None:
    async with opened() as (client, api):
        async with client.agent_instance(**AGENT) as outer:
            with outer.span("agent:llm") as span:
                await anyio.to_thread.run_sync(endpoint, client)
                assert current_span() is span
            assert current_instance() is outer
        await client.flush()
        runs = await stored_runs(api)
    shapes = sorted(run.shape for run in runs)
    assert shapes == [("complete", [("agent:llm", "complete", [])]), TREE]


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError("no"), "failed"), (KeyboardInterrupt(), "cancelled")]
)
async def test_the_error_of_the_block_leaves_it_as_the_same_object(
    error: BaseException, status: str
) -> None:
    def work() -> None:
        with pytest.raises(type(error)) as caught:
            with client.agent_instance(**AGENT) as instance, instance.span("agent:run"):
                raise error
        assert caught.value is error
        assert error.__context__ is None

    async with opened() as (client, api):
        await anyio.to_thread.run_sync(work)
        await client.flush()
        assert (await stored_run(api)).shape == (status, [("agent:run", status, [])])


async def test_in_the_loops_own_thread_it_says_what_to_write_instead() -> None:
    async with opened() as (client, api):
        scope = client.agent_instance(**AGENT)
        with pytest.raises(ClientScopeError, match="'async with client.agent_instance"):
            with scope:
                pytest.fail("the body must not run")

        def called_by_the_loop() -> None:
            with pytest.raises(ClientScopeError, match="'async with client.agent_instance"):
                scope.__enter__()

        await anyio.to_thread.run_sync(anyio.from_thread.run_sync, called_by_the_loop)
        assert not api.operations
        async with scope as instance:  # it was not entered
            assert not instance.ended


async def test_a_thread_that_runs_another_loop_may_wait_for_the_clients() -> None:
    async def main() -> None:
        endpoint(client)

    async with opened() as (client, api):
        for backend in ("asyncio", "trio"):
            await in_thread_of_mine(lambda: anyio.run(main, backend=backend))  # noqa: B023
        await client.flush()
        assert [run.shape for run in await stored_runs(api)] == [TREE] * 2


async def test_a_scope_is_entered_once_also_by_a_thread() -> None:
    def work() -> None:
        with scope:
            pass
        with pytest.raises(PrefactorCoreError, match="entered once only"):
            scope.__enter__()

    async with opened() as (client, _):
        scope = client.agent_instance(**AGENT)
        await anyio.to_thread.run_sync(work)
        with pytest.raises(PrefactorCoreError, match="entered once only"):
            await scope.__aenter__()


async def test_a_refusal_is_raised_in_the_thread_if_it_is_asked_for() -> None:
    def work() -> None:
        with pytest.raises(PrefactorApiError, match="no"):
            client.agent_instance(**AGENT, on_refused="raise").__enter__()
        api.faults.clear()
        endpoint(client)

    with anyio.fail_after(SECONDS):
        async with open_faulty_api() as api:
            api.faults["register"] = 422
            async with open_prefactor(make_config(), asgi_app=api) as client:
                await in_thread_of_mine(work)
            assert (await stored_run(api)).shape == TREE


async def test_the_cancellation_of_the_waiting_task_does_not_reach_the_thread() -> None:
    asked, go_on = anyio.Event(), anyio.Event()
    answering = anyio.Event()

    async def hold(*_: object) -> None:
        asked.set()
        await answering.wait()

    entered = threading.Event()

    def work() -> None:
        endpoint(client)
        entered.set()

    async def request(scope: anyio.CancelScope) -> None:
        with scope:
            await anyio.to_thread.run_sync(work, abandon_on_cancel=True)
            pytest.fail("it was not cancelled")
        go_on.set()

    async with opened() as (client, api):
        app, api.app = api.app, SlowApp(api.app, hold)
        scope = anyio.CancelScope()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(request, scope)
            await asked.wait()
            scope.cancel()
            await go_on.wait()
            answering.set()
        await anyio.to_thread.run_sync(entered.wait, SECONDS)
        assert entered.is_set()
        api.app = app
        await client.flush()
        assert (await stored_run(api)).shape == TREE


class SlowApp:
    """An application that waits for ``hold`` before its first answer."""

    def __init__(self, app: Any, hold: Callable[..., Any]) -> None:
        self.app, self.hold = app, hold

    async def __call__(self, *arguments: Any) -> None:
        await self.hold()
        await self.app(*arguments)


async def test_a_terminated_run_raises_at_its_next_span_or_at_the_end_of_the_block() -> None:
    def work(stopped: str) -> None:
        known = threading.Event()
        with pytest.raises(PrefactorTerminatedError, match="over budget") as caught:
            with client.agent_instance(**AGENT) as instance:
                with instance.span("agent:run") as span:
                    span.start_nowait()
                anyio.from_thread.run(client.flush)
                anyio.from_thread.run(terminate, api, instance.id)
                instance.on_terminate(lambda reason: known.set())
                with instance.span("agent:llm"):
                    pass
                assert known.wait(SECONDS)
                if stopped == "span":
                    with instance.span("agent:tool"):
                        pytest.fail("the body must not run")
        assert caught.value.instance_id == instance.id
        assert caught.value.__context__ is None

    async with opened(queue={"batch_window": 0.0}) as (client, api):
        for stopped in ("span", "end"):
            await anyio.to_thread.run_sync(work, stopped)
        await client.flush()
        runs = await stored_runs(api)
    assert [run.status for run in runs] == ["terminated"] * 2


async def test_a_client_that_closes_ends_the_runs_of_its_threads() -> None:
    entered, closed = threading.Event(), threading.Event()

    def work() -> None:
        with pytest.raises(ClientNotInitializedError):
            with client.agent_instance(**AGENT) as instance, instance.span("agent:run"):
                entered.set()
                assert closed.wait(SECONDS)
                instance.span("agent:tool")
        with pytest.raises(ClientNotInitializedError):
            client.agent_instance(**AGENT).__enter__()

    with anyio.fail_after(SECONDS), ThreadPoolExecutor(1) as pool:
        async with open_faulty_api() as api:
            async with open_prefactor(make_config(), asgi_app=api) as client:
                working = pool.submit(work)
                await anyio.to_thread.run_sync(entered.wait, SECONDS)
            closed.set()
            await anyio.to_thread.run_sync(working.result, SECONDS)
            run = await stored_run(api)
            assert run.shape == ("complete", [("agent:run", "cancelled", [])])
    assert client.statistics().lost == 0


async def test_a_client_that_closes_does_not_wait_for_a_registration_in_a_thread() -> None:
    asked = anyio.Event()

    async def hold() -> None:
        asked.set()
        await anyio.sleep_forever()

    with anyio.fail_after(SECONDS), ThreadPoolExecutor(1) as pool:
        async with open_faulty_api() as api:
            api.app = SlowApp(api.app, hold)
            config = make_config(drain_timeout=0.1, registration_timeout=60)
            async with open_prefactor(config, asgi_app=api) as client:
                entering = pool.submit(client.agent_instance(**AGENT).__enter__)
                await asked.wait()
            with pytest.raises(ClientNotInitializedError):
                await anyio.to_thread.run_sync(entering.result, SECONDS)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_thread_does_not_wait_for_a_loop_that_has_ended(backend: str) -> None:
    entering: Future[object]

    async def main() -> None:
        nonlocal entering
        async with open_faulty_api() as api:
            asked = anyio.Event()

            async def hold() -> None:
                asked.set()
                await anyio.sleep_forever()

            api.app = SlowApp(api.app, hold)
            client = open_prefactor(
                make_config(registration_timeout=60, drain_timeout=0.1), asgi_app=api
            )
            await client.initialize()
            clients.append(client)
            entering = pool.submit(client.agent_instance(**AGENT).__enter__)
            await asked.wait()
            raise InterruptedError  # the loop ends, and nobody closes the client

    clients = list[PrefactorCoreClient]()
    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(InterruptedError):
            anyio.run(main, backend=backend)
        with pytest.raises(ClientNotInitializedError):
            entering.result(SECONDS)
        with pytest.raises(ClientNotInitializedError):
            pool.submit(clients[0].agent_instance(**AGENT).__enter__).result(SECONDS)


async def test_a_disabled_client_has_runs_in_threads_too() -> None:
    async with open_prefactor(make_config(enabled=False)) as client:
        await anyio.to_thread.run_sync(endpoint, client)
        with pytest.raises(ClientScopeError, match="async with"):
            client.agent_instance(**AGENT).__enter__()
