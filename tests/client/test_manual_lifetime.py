"""A client that is opened and closed by calls, in any tasks; and spans that another task ends."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from support.harness import AGENT, FaultyApi, make_config, open_faulty_api, stored_run, stored_runs
from support.process import RUN, program, run_in

from prefactor_core import (
    ClientAlreadyInitializedError,
    ClientNotInitializedError,
    ClientScopeError,
    InMemoryQueue,
    Operation,
    PrefactorCoreClient,
    PrefactorCoreError,
    PrefactorTelemetryFailureError,
    PrefactorValueError,
    QueueClosedError,
    open_prefactor,
)

Step = Callable[[], Awaitable[object]]


@pytest.fixture
async def api() -> AsyncGenerator[FaultyApi]:
    async with open_faulty_api() as api:
        yield api


async def in_a_task(step: Step) -> None:
    """Do ``step`` in a task of its own."""
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(step)


async def in_this_task(step: Step) -> None:
    with anyio.fail_after(5):
        await step()


def tasks_of_ours() -> list[str]:
    names = [task.name or "" for task in anyio.get_running_tasks()]
    return [name for name in names if name.startswith("prefactor")]


async def record(client: PrefactorCoreClient) -> None:
    async with client.agent_instance(**AGENT) as instance, instance.span("agent:run"):
        pass


@pytest.mark.parametrize("do", [in_this_task, in_a_task])
async def test_a_client_is_opened_used_and_closed_by_calls(
    api: FaultyApi, do: Callable[[Step], Awaitable[None]]
) -> None:
    client = open_prefactor(make_config(), asgi_app=api)

    async def leave_open() -> None:
        instance = await client.create_agent_instance(**AGENT)
        await instance.start()
        await instance.create_span("agent:run")

    for step in (client.initialize, lambda: record(client), leave_open, client.close):
        await do(step)
    assert [run.shape for run in await stored_runs(api)] == [
        ("complete", [("agent:run", status, [])]) for status in ("complete", "cancelled")
    ]
    assert client.statistics().lost == 0
    assert tasks_of_ours() == []


async def test_a_crash_where_a_client_was_opened_does_not_close_it(api: FaultyApi) -> None:
    client = open_prefactor(make_config(), asgi_app=api)

    async def open_and_crash() -> None:
        await client.initialize()
        raise ValueError("mine")

    with pytest.raises(ExceptionGroup) as caught:
        await in_a_task(open_and_crash)
    assert [str(error) for error in caught.value.exceptions] == ["mine"]
    await record(client)
    await client.close()
    assert (await stored_run(api)).status == "complete"


async def test_a_cancellation_where_a_client_was_opened_does_not_reach_it(api: FaultyApi) -> None:
    client = open_prefactor(make_config(), asgi_app=api)
    with anyio.fail_after(5), anyio.CancelScope() as scope:
        await client.initialize()
        scope.cancel()
        await anyio.sleep_forever()
    assert scope.cancelled_caught
    await record(client)
    await client.close()
    assert (await stored_run(api)).status == "complete"


async def test_a_client_inherits_nothing_from_the_context_of_its_opener(api: FaultyApi) -> None:
    variable = ContextVar("variable", default="nothing")
    seen: list[str] = []

    class Watching(InMemoryQueue[Operation]):
        async def close(self, num_waiters: int = 1) -> None:
            seen.append(variable.get())
            await super().close(num_waiters)

    variable.set("the opener's")
    client = open_prefactor(make_config(), queue=Watching(), asgi_app=api)
    await client.initialize()
    await client.close()
    assert seen == ["nothing"]


@pytest.mark.virtual_time
async def test_every_close_returns_when_the_drain_is_over(api: FaultyApi) -> None:
    client = open_prefactor(make_config(drain_timeout=7.0), asgi_app=api)
    await client.initialize()
    instance = await client.create_agent_instance(**AGENT)
    await instance.start()
    api.hanging = True
    before = anyio.current_time()
    took: list[float] = []

    async def close(later: float) -> None:
        await anyio.sleep(later)
        await client.close()
        assert client.statistics().pending == 0
        took.append(anyio.current_time() - before)

    async with anyio.create_task_group() as tasks:
        for later in (0, 0, 3):
            tasks.start_soon(close, later)
    assert took == [pytest.approx(7.0, abs=0.01)] * 3
    await client.close()
    assert anyio.current_time() - before == pytest.approx(7.0, abs=0.01)


async def test_of_two_tasks_that_open_a_client_at_once_one_is_refused(api: FaultyApi) -> None:
    client = open_prefactor(make_config(), asgi_app=api)
    outcomes: list[str] = []

    async def initialize() -> None:
        try:
            await client.initialize()
            outcomes.append("opened")
        except ClientAlreadyInitializedError:
            outcomes.append("refused")

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(initialize)
            tasks.start_soon(initialize)
        assert sorted(outcomes) == ["opened", "refused"]
        await record(client)
        await client.close()
    assert (await stored_run(api)).status == "complete"
    assert tasks_of_ours() == []


async def test_a_client_that_is_closed_while_it_opens_is_closed(api: FaultyApi) -> None:
    client = open_prefactor(make_config(), asgi_app=api)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.initialize)
            await anyio.lowlevel.checkpoint()
            tasks.start_soon(client.close)
        await client.close()
    assert tasks_of_ours() == []
    with pytest.raises(ClientNotInitializedError):
        client.span_manager  # noqa: B018


@pytest.mark.parametrize("url", ["http://prefactor.invalid", "local::memory:"])
async def test_an_opening_that_is_cancelled_leaves_nothing_open(url: str) -> None:
    client = open_prefactor(make_config(http={"api_url": url}))
    with anyio.fail_after(5), anyio.CancelScope() as scope:
        scope.cancel()
        await client.initialize()
    assert scope.cancelled_caught
    assert tasks_of_ours() == []
    await client.initialize()
    await client.close()


def test_an_opening_that_is_cancelled_natively_leaves_nothing_open() -> None:
    async def main(turns: int) -> None:
        async with open_faulty_api() as api:
            client = open_prefactor(make_config(), asgi_app=api)
            task = asyncio.create_task(client.initialize())
            for _ in range(turns):
                await asyncio.sleep(0)
            opened = task.done()
            task.cancel()
            with anyio.fail_after(9):
                await asyncio.wait([task])
            if opened:
                await client.close()
            assert tasks_of_ours() == []
            await client.initialize()
            await client.close()

    for turns in range(8):
        asyncio.run(main(turns))


async def test_an_error_of_opening_leaves_initialize_and_nothing_stays_open(
    api: FaultyApi, tmp_path: Path
) -> None:
    config = make_config(http={"api_url": f"local:{tmp_path}/no/such/folder/x.db"})
    client = open_prefactor(config)
    for _ in range(2):
        with anyio.fail_after(5), pytest.raises(PrefactorCoreError, match="cannot open"):
            await client.initialize()
        assert tasks_of_ours() == []
        await client.close()
    await anyio.Path(tmp_path / "no/such/folder").mkdir(parents=True)
    await client.initialize()
    await client.close()

    queue = InMemoryQueue[Operation]()
    await queue.close()
    with pytest.raises(QueueClosedError, match="make a client with a new one"):
        await open_prefactor(make_config(), queue=queue, asgi_app=api).initialize()
    config = make_config(cancel_on_signals=(signal.SIGTERM,))
    with pytest.raises(PrefactorValueError, match="write 'async with'"):
        await open_prefactor(config, asgi_app=api).initialize()
    assert tasks_of_ours() == []


async def test_a_block_after_initialize_is_refused_and_harms_nothing(
    api: FaultyApi,
) -> None:
    client = open_prefactor(make_config(), asgi_app=api)
    await client.initialize()
    with pytest.raises(ClientAlreadyInitializedError):
        async with client:
            pytest.fail("the body must not run")
    await record(client)
    await client.close()
    assert (await stored_run(api)).status == "complete"


async def test_initialize_inside_a_block_is_refused_and_harms_nothing(api: FaultyApi) -> None:
    async with open_prefactor(make_config(), asgi_app=api) as client:
        with pytest.raises(ClientAlreadyInitializedError):
            await client.initialize()
        await record(client)
        # Its own task closes it, and no host does.
        await client.close()
        assert (await stored_run(api)).status == "complete"
    assert tasks_of_ours() == []


async def test_a_client_is_opened_by_calls_and_blocks_in_turn(api: FaultyApi) -> None:
    client = open_prefactor(make_config(), asgi_app=api)
    for _ in range(2):
        await client.initialize()
        await record(client)
        await client.close()
        async with client:
            await record(client)
            await client.close()
    assert [run.status for run in await stored_runs(api)] == ["complete"] * 4


async def test_a_close_that_is_cancelled_delivers_all_the_same(api: FaultyApi) -> None:
    client = open_prefactor(make_config(), asgi_app=api)
    await client.initialize()
    await record(client)
    with anyio.fail_after(5), anyio.CancelScope() as scope:
        scope.cancel()
        await client.close()
        assert client.statistics().pending == 0
        await anyio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert client.statistics().lost == 0
    assert (await stored_run(api)).status == "complete"


def test_a_close_that_is_cancelled_natively_ends_and_the_host_goes_on() -> None:
    async def main() -> None:
        async with open_faulty_api() as api:
            client = open_prefactor(make_config(), asgi_app=api)
            await client.initialize()
            await record(client)
            release = anyio.Event()
            app = api.app

            async def slowly(scope: Any, receive: Any, send: Any) -> None:
                if scope["path"].endswith("bulk"):
                    await release.wait()
                await app(scope, receive, send)

            api.app = slowly
            task = asyncio.create_task(client.close())
            await anyio.wait_all_tasks_blocked()
            task.cancel()
            with anyio.fail_after(9):
                await asyncio.wait([task])
            assert task.cancelled()
            assert client.statistics().pending > 0
            with pytest.raises(ClientAlreadyInitializedError):
                await client.initialize()  # it is still closing
            release.set()
            with anyio.fail_after(9):
                await client.close()
            assert client.statistics().pending == client.statistics().lost == 0
            assert tasks_of_ours() == []
            assert (await stored_run(app)).status == "complete"

    asyncio.run(main())


async def test_a_loss_leaves_close_as_an_error_once_and_the_loop_goes_on(api: FaultyApi) -> None:
    config = make_config(queue={"max_pending_operations": 1}, raise_on_loss=True)
    client = open_prefactor(config, asgi_app=api)
    await client.initialize()
    async with client.agent_instance(**AGENT) as instance:
        with instance.span("agent:run"), instance.span("agent:tool"):
            pass
    with pytest.raises(PrefactorTelemetryFailureError):
        await in_this_task(client.close)
    await in_this_task(client.close)
    await anyio.lowlevel.checkpoint()
    assert client.statistics().lost > 0
    await client.initialize()
    await client.close()


NEVER_CLOSED = """
import gc

async def open_and_record():
    client = client_of(drain_timeout=5)
    await client.initialize()
    instance = await client.create_agent_instance(**AGENT)
    async with instance.span("agent:llm"):
        pass
    span = instance.span("agent:run")
    await span.__aenter__()

async def main():
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(open_and_record)
    gc.collect()  # nothing refers to the client
    print("ending", flush=True)
    if len(sys.argv) > 2:
        raise ValueError("mine")
"""


@pytest.mark.parametrize("raises", [False, True])
def test_the_operations_of_a_client_that_is_never_closed_are_delivered_as_the_loop_ends(
    anyio_backend: Any, tmp_path: Path, raises: bool
) -> None:
    with program(NEVER_CLOSED + RUN, anyio_backend, tmp_path, *["raise"] * raises) as process:
        assert process.line() == "ending"
        code, out, err = process.wait()
    assert (code, out) == (raises, "")
    assert err.splitlines()[-1:] == ["ValueError: mine"] * raises
    assert not raises or "destroyed" not in err
    run = run_in(tmp_path / "runs.db")
    assert run.status == "cancelled"
    assert {span.name: span.status for span in run.spans.values()} == {
        "agent:llm": "complete",
        "agent:run": "cancelled",
    }


def test_a_client_that_is_never_closed_holds_the_end_up_for_its_drain_timeout_at_most(
    anyio_backend: Any,
) -> None:
    clients: list[PrefactorCoreClient] = []

    async def main() -> None:
        async with open_faulty_api() as api:
            clients.append(open_prefactor(make_config(drain_timeout=0.2), asgi_app=api))
            await clients[0].initialize()
            instance = await clients[0].create_agent_instance(**AGENT)
            api.hanging = True
            await instance.start()

    began = time.monotonic()
    anyio.run(main, backend=anyio_backend[0], backend_options=anyio_backend[1])
    assert 0.2 <= time.monotonic() - began < 60
    statistics = clients[0].statistics()
    assert (statistics.pending, statistics.dropped) == (0, {"drain_timeout": statistics.lost})


def test_ctrl_c_in_a_worker_of_a_client_without_a_block_leaves_the_program_as_itself(
    anyio_backend: Any,
) -> None:
    async def main() -> None:
        async with open_faulty_api() as api:
            app, fired = api.app, False

            async def interrupting(scope: Any, receive: Any, send: Any) -> None:
                nonlocal fired
                if scope["path"].endswith("start") and not fired:
                    fired = True
                    signal.raise_signal(signal.SIGINT)
                await app(scope, receive, send)

            client = open_prefactor(make_config(), asgi_app=FaultyApi(interrupting))
            await client.initialize()
            try:
                async with client.agent_instance(**AGENT):
                    with anyio.fail_after(5):
                        await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    await client.close()
                    statuses.append((await stored_run(api)).status)

    statuses: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        anyio.run(main, backend=anyio_backend[0], backend_options=anyio_backend[1])
    assert statuses == ["cancelled"]


def test_a_loop_that_runs_step_by_step_keeps_a_client_open_in_between(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    client = open_prefactor(make_config(http={"api_url": f"local:{path}"}))
    loop, other = asyncio.new_event_loop(), asyncio.new_event_loop()
    try:
        loop.run_until_complete(client.initialize())
        loop.run_until_complete(record(client))
        with pytest.raises(ClientScopeError, match="another event loop"):
            other.run_until_complete(asyncio.wait_for(client.close(), 5))
        loop.run_until_complete(asyncio.wait_for(client.close(), 5))
        # Nothing is left to close, wherever that is asked for.
        other.run_until_complete(asyncio.wait_for(client.close(), 5))
    finally:
        other.close()
        loop.close()
    assert run_in(path).status == "complete"


def test_a_span_raises_nothing_once_the_loop_has_closed_without_the_client(tmp_path: Path) -> None:
    code = """
import asyncio

async def main():
    await client.initialize()
    instance = await client.create_agent_instance(**AGENT)
    await instance.start()
    await client.flush()
    await asyncio.sleep(0.1)  # the workers wait for more
    return instance

client = client_of()
loop = asyncio.new_event_loop()
instance = loop.run_until_complete(main())
loop.close()
with instance.span("agent:tool"):
    pass
client.create_agent_instance_nowait(**AGENT).finish_nowait()
statistics = client.statistics()
print(statistics.accepted == statistics.delivered + statistics.pending, statistics.pending)
"""
    with program(code, [None, None], tmp_path) as process:
        code, out, err = process.wait()
    assert (code, out) == (0, "True 4"), err
    assert "4 of 6 Prefactor operations were not delivered" in err


async def test_a_web_application_opens_a_client_as_it_starts_and_closes_it_as_it_ends(
    api: FaultyApi,
) -> None:
    client = open_prefactor(make_config(), asgi_app=api)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None]:
        await client.initialize()
        yield
        await client.close()

    async def answer(request: Request) -> JSONResponse:
        async with client.agent_instance(**AGENT) as instance:
            async with instance.span("agent:llm") as span:
                span.set_result({"response": "Hi there"})
        return JSONResponse({"run": instance.id})

    app = Starlette(routes=[Route("/", answer)], lifespan=lifespan)
    said: list[str] = []
    started, ending = anyio.Event(), anyio.Event()

    async def receive() -> dict[str, str]:
        if not started.is_set():
            return {"type": "lifespan.startup"}
        await ending.wait()
        return {"type": "lifespan.shutdown"}

    async def send(message: Any) -> None:
        said.append(message["type"])
        started.set()

    ids: list[str] = []
    transport = httpx.ASGITransport(app)

    async def ask() -> None:
        async with httpx.AsyncClient(transport=transport, base_url="http://app") as http:
            ids.append((await http.get("/")).json()["run"])

    with anyio.fail_after(5):
        async with anyio.create_task_group() as server:
            server.start_soon(app, {"type": "lifespan"}, receive, send)
            await started.wait()
            async with anyio.create_task_group() as requests:
                for _ in range(3):
                    requests.start_soon(ask)
            ending.set()
    assert said == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    runs = await stored_runs(api)
    assert {run.id for run in runs} == set(ids)
    assert [run.shape for run in runs] == [("complete", [("agent:llm", "complete", [])])] * 3
    assert client.statistics().lost == 0


@pytest.mark.parametrize("error", [None, ValueError("mine")], ids=["returns", "raises"])
async def test_a_span_is_entered_by_one_task_and_left_by_another(
    api: FaultyApi, error: ValueError | None
) -> None:
    client = open_prefactor(make_config(), asgi_app=api)
    await in_a_task(client.initialize)
    instance = await client.create_agent_instance(**AGENT)
    await instance.start()
    outer = instance.span("agent:run")
    inner = instance.span("agent:tool", parent_span_id=outer.id)
    await in_a_task(outer.__aenter__)
    await in_a_task(inner.__aenter__)
    left = (type(error), error, None) if error else (None, None, None)
    for span in (inner, outer):
        await in_a_task(lambda span=span: span.__aexit__(*left))  # type: ignore[misc]
    await instance.finish()
    await in_a_task(client.close)
    status = "failed" if error else "complete"
    run = await stored_run(api)
    assert run.shape == ("complete", [("agent:run", status, [("agent:tool", status, [])])])
    result = run.named("agent:tool").result
    assert result["error"]["message"] == "mine" if error else not result


async def test_a_span_that_another_task_has_left_is_no_parent_for_later_spans(
    api: FaultyApi,
) -> None:
    async with open_prefactor(make_config(), asgi_app=api) as client:
        async with client.agent_instance(**AGENT) as instance:
            outer = instance.span("agent:run")
            await outer.__aenter__()
            async with instance.span("agent:tool"):
                pass
            await in_a_task(lambda: outer.__aexit__(None, None, None))
            async with instance.span("agent:llm"):
                pass
    assert (await stored_run(api)).shape == (
        "complete",
        [
            ("agent:run", "complete", [("agent:tool", "complete", [])]),
            ("agent:llm", "complete", []),
        ],
    )


async def test_a_span_that_is_never_left_ends_as_cancelled_with_its_run(api: FaultyApi) -> None:
    async with open_prefactor(make_config(), asgi_app=api) as client:
        async with client.agent_instance(**AGENT) as instance:
            await in_a_task(instance.span("agent:run").__aenter__)
            span = instance.span("agent:tool")
            await in_a_task(span.__aenter__)
            await in_a_task(span.start)
        await record(client)
        # A later end changes nothing.
        await span.__aexit__(ValueError, ValueError("late"), None)
    first, second = await stored_runs(api)
    assert first.status == second.status == "complete"
    assert {span.name: span.status for span in first.spans.values()} == {
        "agent:run": "cancelled",
        "agent:tool": "cancelled",
    }
    assert client.statistics().lost == 0


async def test_the_second_time_a_span_is_left_changes_nothing(api: FaultyApi) -> None:
    client = open_prefactor(make_config(), asgi_app=api)
    await client.initialize()
    instance = await client.create_agent_instance(**AGENT)
    span = instance.span("agent:run")
    await span.__aenter__()
    await span.__aexit__(None, None, None)
    error = ValueError("late")
    await in_a_task(lambda: span.__aexit__(ValueError, error, None))
    span.__exit__(ValueError, error, None)
    with pytest.raises(PrefactorCoreError, match="entered before"):
        await span.__aenter__()
    await instance.finish()
    await client.close()
    await span.__aexit__(None, None, None)
    assert (await stored_run(api)).shape == ("complete", [("agent:run", "complete", [])])
    assert api.names().count("agent_spans") == 1
    assert client.statistics().lost == 0


async def test_a_task_that_waits_for_a_place_as_the_client_closes_gets_a_clear_error(
    api: FaultyApi,
) -> None:
    queue = {"max_pending_operations": 1, "when_full": "wait"}
    client = open_prefactor(make_config(queue=queue, drain_timeout=0.1), asgi_app=api)
    await client.initialize()
    instance = await client.create_agent_instance(**AGENT)
    api.hanging = True
    await instance.start()
    errors: list[str] = []

    async def record_one_more() -> None:
        with pytest.raises(ClientNotInitializedError) as caught:
            async with instance.span("agent:tool"):
                pytest.fail("there is no place")
        errors.append(str(caught.value))

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(record_one_more)
            await anyio.wait_all_tasks_blocked()
            assert errors == []
            await client.close()
    assert errors == ["the 'agent:tool' span was made by a client that has closed since"]
    statistics = client.statistics()
    assert statistics.accepted == statistics.delivered + statistics.lost
