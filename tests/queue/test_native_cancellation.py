"""Cancellation that is not anyio's: asyncio's own Task.cancel(), and Ctrl-C on trio."""

from __future__ import annotations

import asyncio
import itertools
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest
from support.harness import AGENT, FaultyApi, make_config, open_faulty_api, stored_run, stored_runs
from support.process import program, run_in
from support.virtual_time import VirtualTimeLoop

from prefactor_core import InMemoryQueue, PrefactorCoreClient, TaskExecutor, open_prefactor
from prefactor_core.export.batch import Batcher
from prefactor_core.export.sender import Sender
from prefactor_core.export.worker import Worker
from prefactor_core.queue.workers import Workers

if TYPE_CHECKING:
    from _typeshed import TraceFunction


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
            with anyio.fail_after(9):
                await asyncio.wait([task])
            assert task.cancelled()
            statistics = client.statistics()
            assert statistics.pending == 0
            assert statistics.accepted == statistics.delivered + statistics.lost
            reported = [r for r in caplog.records if "were not delivered" in r.getMessage()]
            assert len(reported) == (1 if statistics.lost else 0)
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
        with anyio.fail_after(9):
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


@pytest.mark.parametrize("which", ["one", "every other task"])
def test_what_is_recorded_after_a_worker_was_cancelled_is_delivered_while_the_body_goes_on(
    which: str,
) -> None:
    async def main() -> None:
        async with open_faulty_api() as api:
            config = make_config(queue={"num_workers": 1})
            async with open_prefactor(config, asgi_app=api) as client:
                async with client.agent_instance(**AGENT) as instance:
                    await client.flush()
                    for task in asyncio.all_tasks() - {asyncio.current_task()}:
                        if which != "one" or task.get_name() == "prefactor-core-worker-0":
                            task.cancel()
                    for _ in range(2):
                        with instance.span("agent:tool"):
                            pass
                        # Only a worker that goes on can end this.
                        with anyio.fail_after(5):
                            await client.flush()
            run = await stored_run(api)
            assert run.shape == ("complete", [("agent:tool", "complete", [])] * 2)
            assert client.statistics().lost == 0

    asyncio.run(main())


def test_a_job_that_is_cancelled_again_and_again_neither_spins_nor_holds_up_the_drain() -> None:
    async def main() -> None:
        calls: list[float] = []

        async def serve() -> None:
            calls.append(anyio.current_time())
            if not closed.is_set():
                raise asyncio.CancelledError

        async def close() -> None:
            closed.set()

        closed = anyio.Event()
        before = anyio.current_time()
        async with Workers([serve], close, drain_timeout=30):
            await anyio.sleep(1.75)
            in_the_body = [time - before for time in calls]
        assert in_the_body == pytest.approx([0, 0.5, 1, 1.5], abs=0.01)
        # The drain does not wait for the next one's time.
        assert [time - before for time in calls[4:]] == pytest.approx([1.75], abs=0.01)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    anyio.run(main, backend_options={"loop_factory": VirtualTimeLoop})


def test_a_program_that_cancels_every_task_until_there_is_none_comes_to_an_end() -> None:
    async def main() -> None:
        async with open_faulty_api() as api:
            async with open_prefactor(make_config(), asgi_app=api) as client:
                async with client.agent_instance(**AGENT) as instance:
                    with instance.span("agent:run"):
                        pass
                    rounds = 0
                    while others := asyncio.all_tasks() - {asyncio.current_task()}:
                        rounds += 1
                        assert rounds < 20
                        for task in others:
                            task.cancel()
                        await asyncio.sleep(0)
                    await asyncio.sleep(0.01)
            assert client.statistics().lost == 0
            assert (await stored_run(api)).status == "complete"

    asyncio.run(main())


@pytest.mark.parametrize("turns", range(10))
def test_a_worker_that_is_cancelled_as_its_body_ends_is_not_followed_by_two(turns: int) -> None:
    async def main() -> None:
        at_once, most = 0, 0

        async def serve() -> None:
            nonlocal at_once, most
            at_once += 1
            most = max(most, at_once)
            try:
                await closed.wait()
                for _ in range(5):
                    await asyncio.sleep(0)
            finally:
                at_once -= 1

        async def close() -> None:
            closed.set()

        closed = anyio.Event()
        with anyio.fail_after(5):
            async with Workers([serve], close, drain_timeout=5):
                await anyio.wait_all_tasks_blocked()
                cancel_workers()
                for _ in range(turns):
                    await asyncio.sleep(0)
        assert (at_once, most) == (0, 1)

    asyncio.run(main())


@pytest.mark.parametrize("turns", range(0, 60, 4))
async def test_wherever_a_cancellation_hits_the_tree_is_whole_and_nothing_is_sent_twice(
    turns: int, anyio_backend_name: str
) -> None:
    async with open_faulty_api() as api:

        async def run() -> None:
            config = make_config(queue={"batch_window": 0, "max_batch_operations": 3})
            async with open_prefactor(config, asgi_app=api) as client:
                clients.append(client)
                while True:
                    async with client.agent_instance(**AGENT) as instance:
                        async with instance.span("agent:run"):
                            async with instance.span("agent:tool") as span:
                                await span.start()

        clients: list[PrefactorCoreClient] = []
        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                if anyio_backend_name == "asyncio":
                    task = asyncio.create_task(run())
                else:
                    tasks.start_soon(run)
                for _ in range(turns):
                    await anyio.lowlevel.checkpoint()
                if anyio_backend_name == "asyncio":
                    task.cancel()
                    await asyncio.wait([task])
                    assert task.cancelled()
                else:
                    tasks.cancel_scope.cancel()
        assert all(client.statistics().lost == 0 for client in clients)
        sent = Counter(call.body["idempotency_key"] for call in api.operations)
        assert set(sent.values()) <= {1}
        for stored in await stored_runs(api):
            statuses = {stored.status} | {span.status for span in stored.spans.values()}
            assert statuses <= {"complete", "cancelled"}


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
        with anyio.fail_after(9):
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
    assert ended.wait(9)


@pytest.mark.parametrize("recorded", ["in the body", "in the drain"])
def test_a_host_task_that_is_cancelled_natively_closes_its_client_in_time(recorded: str) -> None:
    async def main() -> None:
        async with open_faulty_api() as api:
            client = open_prefactor(make_config(drain_timeout=0.2), asgi_app=api)
            await client.initialize()
            instance = await client.create_agent_instance(**AGENT)
            await instance.start()
            (host,) = (t for t in asyncio.all_tasks() if t.get_name() == "prefactor-core-host")
            with anyio.fail_after(9):
                if recorded == "in the drain":
                    api.hanging = True
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(client.close)
                        await anyio.wait_all_tasks_blocked()
                        host.cancel()
                else:
                    host.cancel()
                    await client.close()
            assert client.statistics().pending == 0
            assert asyncio.all_tasks() == {asyncio.current_task()}
            if recorded == "in the body":
                assert (await stored_run(api)).status == "cancelled"

    asyncio.run(main())


def test_workers_whose_body_is_gone_end_with_the_loop() -> None:
    loops: list[asyncio.AbstractEventLoop] = []

    async def main() -> None:
        loops.append(asyncio.get_running_loop())
        await client.__aenter__()  # and nobody leaves it

    client = open_prefactor(make_config(), asgi_app=lambda *_: asyncio.sleep(0))
    asyncio.run(main())
    assert asyncio.all_tasks(loops[0]) == set()


INTERRUPTED = """
async def main():
    async with client_of(sys.argv[2], registration_timeout=0.2, drain_timeout=30) as client:
        async with client.agent_instance(**AGENT) as instance:
            async with instance.span("agent:run") as span:
                await span.start()
                try:
                    print("ready", flush=True)
                    await anyio.sleep_forever()
                finally:
                    print("stopping", flush=True)

try:
    anyio.run(main, backend=backend, backend_options=options)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_ends_a_program_whose_run_is_recorded_as_cancelled(
    anyio_backend: Any, tmp_path: Path
) -> None:
    with program(INTERRUPTED, anyio_backend, tmp_path, "local:runs.db") as process:
        assert process.line() == "ready"
        process.send(signal.SIGINT)
        assert process.line() == "stopping"
        assert process.wait() == (0, "interrupted", "")
    run = run_in(tmp_path / "runs.db")
    assert run.shape == ("cancelled", [("agent:run", "cancelled", [])])


def test_a_second_ctrl_c_does_not_wait_for_an_api_that_hangs(
    anyio_backend: Any, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        with program(INTERRUPTED, anyio_backend, tmp_path, url) as process:
            assert process.line() == "ready"
            process.send(signal.SIGINT)
            assert process.line() == "stopping"
            # The first one may still be in the body; the drain would take half a minute.
            for _ in range(20):
                process.send(signal.SIGINT)
                try:
                    code, out, err = process.wait(1)
                    break
                except subprocess.TimeoutExpired:
                    continue
    assert (code, out) == (0, "interrupted")
    # On asyncio it may hit anything, also what is no business of ours.
    assert anyio_backend[0] == "asyncio" or "were not delivered" in err


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


async def interrupted_agent(line: int) -> bool:
    """Run an agent that Ctrl-C meets as a worker is about to execute the given one of its lines;
    return whether it executes so many. All that was recorded has to be delivered."""
    left = line

    def trace(frame: FrameType, event: str, argument: object) -> TraceFunction | None:
        nonlocal left
        if frame.f_code.co_filename not in WORKER_FILES:
            return None
        if event == "line":
            left -= 1
            if left == 0:
                signal.raise_signal(signal.SIGINT)
        return trace

    async with open_faulty_api() as api:
        client = open_prefactor(make_config(), asgi_app=api)
        with suppress(KeyboardInterrupt):
            async with client, client.agent_instance(**AGENT) as instance:
                sys.settrace(trace)
                with instance.span("agent:run"):
                    await client.flush()
                sys.settrace(None)  # in the drain, Ctrl-C would break that off
                await anyio.lowlevel.checkpoint()
        statistics = client.statistics()
        assert statistics.delivered == statistics.accepted > 2
        assert (await stored_run(api)).shape[0] == ("complete" if left > 0 else "cancelled")
        return left <= 0


WORKER_FILES = {
    sys.modules[cls.__module__].__file__ for cls in (InMemoryQueue, Worker, Batcher, Sender)
}


def test_ctrl_c_on_trio_loses_no_operation_wherever_a_worker_is() -> None:
    for line in itertools.count(1, 7):
        if not anyio.run(interrupted_agent, line, backend="trio"):
            break
    assert line > 100


def test_ctrl_c_that_trio_raises_as_a_worker_ends_leaves_as_itself() -> None:
    def interrupt(frame: FrameType, event: str, argument: object) -> None:
        if event == "return" and frame.f_code is Workers._work.__code__ and ending:
            sys.setprofile(None)
            signal.raise_signal(signal.SIGINT)

    async def main() -> None:
        async def handle(item: int) -> None: ...

        async with TaskExecutor(InMemoryQueue[int](), handle, num_workers=2):
            await anyio.wait_all_tasks_blocked()
            ending.append(True)

    ending: list[bool] = []
    sys.setprofile(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            anyio.run(main, backend="trio")
    finally:
        sys.setprofile(None)


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
        async with TaskExecutor(queue, handle, num_workers=1, drain_timeout=3600):
            pass

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        anyio.run(main, backend=backend)
    assert time.monotonic() - began < 60


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
