"""cancel_on_signals: a signal ends the block of the client as a time-out does."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from support.harness import AGENT, Call, FaultyApi, make_config, open_faulty_api, stored_run
from support.process import RUN, program, run_in

from prefactor_core import (
    PrefactorCoreClient,
    PrefactorCoreError,
    PrefactorTelemetryFailureError,
    PrefactorValueError,
    open_prefactor,
)

TERM = signal.SIGTERM


@pytest.fixture
async def api() -> AsyncGenerator[FaultyApi]:
    async with open_faulty_api() as api:
        yield api


@pytest.fixture
def heard() -> Generator[list[int]]:
    """The signals that the program's own handler of SIGTERM gets, which is back at the end."""
    heard: list[int] = []

    def own(number: int, frame: object) -> None:
        heard.append(number)

    before = signal.signal(TERM, own)
    try:
        yield heard
        assert signal.getsignal(TERM) is own
    finally:
        signal.signal(TERM, before)


def client_of(
    api: FaultyApi, signals: tuple[signal.Signals, ...] = (TERM,), **options: Any
) -> PrefactorCoreClient:
    return open_prefactor(make_config(cancel_on_signals=signals, **options), asgi_app=api)


async def stopped(client: PrefactorCoreClient, number: int = TERM) -> None:
    """The tested agent, which gets a signal."""
    async with client, client.agent_instance(**AGENT) as instance:
        async with instance.span("agent:run"):
            signal.raise_signal(number)
            await anyio.sleep_forever()


async def test_a_signal_cancels_the_block_which_is_left_quietly(
    api: FaultyApi, heard: list[int]
) -> None:
    client = client_of(api)
    assert client.stopped_by is None
    with anyio.fail_after(5):
        async with client, client.agent_instance(**AGENT) as instance:
            async with instance.span("agent:run"):
                signal.raise_signal(TERM)
                try:
                    await anyio.sleep_forever()
                finally:
                    # What happens while the body unwinds is delivered too.
                    with instance.span("agent:tool"):
                        pass
        await anyio.lowlevel.checkpoint()  # nothing of the cancellation is left
    assert client.stopped_by is TERM
    assert client.statistics().lost == 0
    assert (await stored_run(api)).shape == (
        "cancelled",
        [("agent:run", "cancelled", [("agent:tool", "complete", [])])],
    )
    assert heard == []


async def test_ctrl_c_may_be_one_of_the_signals(api: FaultyApi) -> None:
    before = signal.getsignal(signal.SIGINT)
    client = client_of(api, (TERM, signal.SIGINT))
    with anyio.fail_after(5):
        await stopped(client, signal.SIGINT)
    assert client.stopped_by is signal.SIGINT
    assert signal.getsignal(signal.SIGINT) is before
    assert (await stored_run(api)).status == "cancelled"


async def test_by_default_the_signals_are_the_programs_own(
    api: FaultyApi, heard: list[int]
) -> None:
    before = signal.getsignal(TERM), signal.getsignal(signal.SIGINT)
    async with open_prefactor(make_config(), asgi_app=api) as client:
        assert (signal.getsignal(TERM), signal.getsignal(signal.SIGINT)) == before
        signal.raise_signal(TERM)
        await anyio.lowlevel.checkpoint()
    assert heard == [TERM]
    assert client.stopped_by is None


@pytest.mark.parametrize("way", ["returned", "raised", "cancelled", "closed", "failed to open"])
async def test_the_programs_handler_is_back_however_the_block_is_left(
    api: FaultyApi, heard: list[int], way: str, tmp_path: Path
) -> None:
    own = signal.getsignal(TERM)
    client = client_of(api)
    if way == "failed to open":
        config = make_config(
            http={"api_url": f"local:{tmp_path}/no/folder/x.db"}, cancel_on_signals=(TERM,)
        )
        client = open_prefactor(config)
    raising = pytest.raises((ValueError, PrefactorCoreError))
    with anyio.fail_after(5), anyio.CancelScope() as scope:
        with raising if way in ("raised", "failed to open") else nullcontext():
            async with client:
                assert signal.getsignal(TERM) is not own
                if way == "raised":
                    raise ValueError("mine")
                if way == "cancelled":
                    scope.cancel()
                    await anyio.sleep_forever()
                if way == "closed":
                    await client.close()
                    assert signal.getsignal(TERM) is own
    assert signal.getsignal(TERM) is own
    signal.raise_signal(TERM)
    assert heard == [TERM]
    assert client.stopped_by is None


async def test_a_client_is_opened_again_after_a_signal(api: FaultyApi, heard: list[int]) -> None:
    client = client_of(api)
    with anyio.fail_after(5):
        await stopped(client)
        async with client:
            assert client.stopped_by is None
        await stopped(client)
    assert client.stopped_by is TERM


async def test_after_an_early_close_a_signal_is_the_programs_again(
    api: FaultyApi, heard: list[int]
) -> None:
    client = client_of(api)
    with anyio.fail_after(5):
        async with client:
            signal.raise_signal(TERM)
            with pytest.raises(anyio.get_cancelled_exc_class()):
                await anyio.sleep_forever()
            await client.close()
            # The cancellation ends with the scope that was cancelled.
            await anyio.lowlevel.checkpoint()
            signal.raise_signal(TERM)
            await anyio.lowlevel.checkpoint()
    assert client.stopped_by is TERM
    assert heard == [TERM]


@pytest.mark.parametrize("in_a_group", [False, True])
async def test_an_error_of_the_body_that_a_signal_cancels_leaves_as_itself(
    api: FaultyApi, heard: list[int], in_a_group: bool
) -> None:
    error, cause = ValueError("mine"), KeyError("cause")
    error.__cause__ = error.__context__ = cause

    async def unwind() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise error

    client = client_of(api)
    with anyio.fail_after(5), pytest.raises(Exception) as caught:  # noqa: PT011
        async with client, client.agent_instance(**AGENT):
            signal.raise_signal(TERM)
            if in_a_group:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(unwind)
                    await anyio.sleep_forever()
            try:
                await anyio.sleep_forever()
            finally:
                raise error
    if in_a_group:
        assert isinstance(caught.value, ExceptionGroup)
        assert caught.value.exceptions == (error,)
    else:
        assert caught.value is error
        assert error.__cause__ is cause
    assert client.stopped_by is TERM
    assert (await stored_run(api)).status == "failed"


async def test_a_body_that_survives_the_cancellation_ends_as_it_ends(
    api: FaultyApi, heard: list[int]
) -> None:
    client = client_of(api)
    with anyio.fail_after(5):
        async with client, client.agent_instance(**AGENT):
            signal.raise_signal(TERM)
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()
    assert client.stopped_by is TERM
    assert (await stored_run(api)).status == "complete"


async def test_a_cancellation_from_outside_goes_on_beside_that_of_a_signal(
    api: FaultyApi, heard: list[int]
) -> None:
    with anyio.fail_after(5), anyio.CancelScope() as outer:
        client = client_of(api)
        async with client, client.agent_instance(**AGENT):
            signal.raise_signal(TERM)
            outer.cancel()
            await anyio.sleep_forever()
        await anyio.lowlevel.checkpoint()
        pytest.fail("the outer scope is cancelled")
    assert outer.cancelled_caught
    assert (await stored_run(api)).status == "cancelled"


@pytest.mark.parametrize("first", ["signal", "cancel"])
def test_a_native_cancellation_goes_on_beside_that_of_a_signal(
    heard: list[int], first: str
) -> None:
    async def main() -> None:
        async def agent() -> None:
            async with client, client.agent_instance(**AGENT):
                started.set()
                # It is over before the next one comes: anyio before 4.15 takes a cancellation
                # in the handling of its own for its own.
                with suppress(asyncio.CancelledError):
                    await anyio.sleep_forever()
                unwinding.set()
                with anyio.CancelScope(shield=True):
                    await let_go.wait()
                if first == "cancel":
                    raise asyncio.CancelledError

        async with open_faulty_api() as api:
            client = client_of(api)
            started, unwinding, let_go = anyio.Event(), anyio.Event(), anyio.Event()
            task = asyncio.create_task(agent())
            await started.wait()
            if first == "cancel":
                task.cancel()
            else:
                signal.raise_signal(TERM)
            await unwinding.wait()
            if first == "cancel":
                signal.raise_signal(TERM)
                await anyio.wait_all_tasks_blocked()
                let_go.set()
            else:
                task.cancel()
            with anyio.fail_after(5):
                await asyncio.wait([task])
            assert task.cancelled()
            assert (await stored_run(api)).status == "cancelled"

    asyncio.run(main())


@pytest.mark.virtual_time
@pytest.mark.parametrize("again", [0, 2])
async def test_an_api_that_hangs_holds_a_stop_up_for_the_drain_timeout_and_no_longer(
    api: FaultyApi, heard: list[int], again: int
) -> None:
    client = client_of(api, drain_timeout=7.0)
    async with anyio.create_task_group() as tasks:

        async def raise_again() -> None:
            for _ in range(again):
                await anyio.sleep(2)
                signal.raise_signal(TERM)

        async with client, client.agent_instance(**AGENT):
            api.hanging = True
            before = anyio.current_time()
            signal.raise_signal(TERM)
            tasks.start_soon(raise_again)
            await anyio.sleep_forever()
        assert anyio.current_time() - before == pytest.approx(7.0, abs=0.01)
    statistics = client.statistics()
    assert (statistics.pending, statistics.dropped) == (0, {"drain_timeout": statistics.lost})
    # A further signal during the stop changes nothing.
    assert client.stopped_by is TERM
    assert heard == []


async def test_a_loss_is_still_an_error_where_it_is_to_be_one(
    api: FaultyApi, heard: list[int]
) -> None:
    client = client_of(api, drain_timeout=0.0, raise_on_loss=True)
    with anyio.fail_after(5), pytest.raises(PrefactorTelemetryFailureError):
        async with client, client.agent_instance(**AGENT):
            api.hanging = True
            signal.raise_signal(TERM)
            await anyio.sleep_forever()
    assert client.stopped_by is TERM


async def test_a_signal_that_comes_in_the_drain_is_the_programs_after_it(
    api: FaultyApi, heard: list[int]
) -> None:
    heard_in_the_drain: list[list[int]] = []

    def stop_late(call: Call) -> None:
        signal.raise_signal(TERM)
        heard_in_the_drain.append(list(heard))

    client = client_of(api)
    with anyio.fail_after(5):
        async with client, client.agent_instance(**AGENT):
            api.faults["bulk"] = stop_late
    assert heard_in_the_drain == [[]]
    assert heard == [TERM]
    assert client.stopped_by is None
    run = await stored_run(api)
    assert run.status == "complete"


async def test_an_error_of_a_late_signal_leaves_the_block_once_everything_is_closed(
    api: FaultyApi,
) -> None:
    class StopError(Exception):
        pass

    def own(number: int, frame: object) -> None:
        raise StopError

    before = signal.signal(TERM, own)
    try:
        client = client_of(api)
        with anyio.fail_after(5), pytest.raises(StopError):
            async with client, client.agent_instance(**AGENT):
                api.faults["bulk"] = lambda call: signal.raise_signal(TERM)
        assert signal.getsignal(TERM) is own
    finally:
        signal.signal(TERM, before)
    assert client.statistics().pending == client.statistics().lost == 0


async def test_a_handler_that_the_program_sets_in_the_block_stays(
    api: FaultyApi, heard: list[int]
) -> None:
    own, later = signal.getsignal(TERM), list[int]()
    async with client_of(api):
        signal.signal(TERM, lambda number, frame: later.append(number))
    signal.raise_signal(TERM)
    assert (later, heard) == ([TERM], [])
    signal.signal(TERM, own)


async def test_of_two_clients_the_inner_is_stopped_and_then_the_outer(
    api: FaultyApi, heard: list[int]
) -> None:
    outer, inner = client_of(api), client_of(api)
    with anyio.fail_after(5):
        async with outer:
            await stopped(inner)
            assert (outer.stopped_by, inner.stopped_by) == (None, TERM)
            signal.raise_signal(TERM)
            await anyio.sleep_forever()
    assert outer.stopped_by is TERM
    assert heard == []


async def test_clients_that_close_in_the_order_in_which_they_opened_leave_no_handler_behind(
    api: FaultyApi, heard: list[int]
) -> None:
    first_is_open, first_may_close = anyio.Event(), anyio.Event()
    first, second = client_of(api), client_of(api)

    async def run_first() -> None:
        async with first:
            first_is_open.set()
            await first_may_close.wait()

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run_first)
            await first_is_open.wait()
            async with second:
                first_may_close.set()
                await anyio.wait_all_tasks_blocked()
                signal.raise_signal(TERM)
                await anyio.sleep_forever()
    assert (first.stopped_by, second.stopped_by) == (None, TERM)
    signal.raise_signal(TERM)
    assert heard == [TERM]


async def test_opening_outside_of_the_main_thread_is_a_clear_error(anyio_backend: Any) -> None:
    errors: list[str] = []
    requests: list[str] = []

    async def main() -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            requests.append(scope["path"])

        with pytest.raises(PrefactorValueError) as caught:
            async with open_prefactor(make_config(cancel_on_signals=(TERM,)), asgi_app=app):
                pytest.fail("the body must not run")
        errors.append(str(caught.value))
        async with open_prefactor(make_config(), asgi_app=app):
            pass

    thread = threading.Thread(
        target=lambda: anyio.run(main, backend=anyio_backend[0], backend_options=anyio_backend[1])
    )
    thread.start()
    await anyio.to_thread.run_sync(thread.join, 5)
    assert errors == ["cancel_on_signals works in the main thread only: leave it out elsewhere"]
    assert requests == []


AGENT_THAT_IS_STOPPED = """
signals = [signal.Signals(int(number)) for number in sys.argv[3:]]
# A file is there in time, however busy the machine is.
hangs = not sys.argv[2].startswith("local:")
limits = {"drain_timeout": 0.5, "registration_timeout": 0.2} if hangs else {}

async def main():
    async with client_of(sys.argv[2], cancel_on_signals=signals, **limits) as client:
        async with client.agent_instance(**AGENT) as instance:
            async with instance.span("agent:run"), instance.span("agent:llm") as span:
                await span.start({"prompt": "Hello"})
                print("ready", flush=True)
                try:
                    await anyio.sleep_forever()
                finally:
                    with instance.span("agent:tool"):
                        pass
    print(client.stopped_by.name, client.statistics().pending, flush=True)
    sys.exit(7)
"""
STOPPED_TREE = (
    "cancelled",
    [("agent:run", "cancelled", [("agent:llm", "cancelled", [("agent:tool", "complete", [])])])],
)


@pytest.mark.parametrize("number", [TERM, signal.SIGINT])
def test_a_container_that_is_told_to_stop_loses_nothing_and_exits_as_it_chooses(
    anyio_backend: Any, tmp_path: Path, number: signal.Signals
) -> None:
    arguments = ("local:runs.db", str(int(TERM)), str(int(signal.SIGINT)))
    with program(AGENT_THAT_IS_STOPPED + RUN, anyio_backend, tmp_path, *arguments) as process:
        assert process.line() == "ready"
        process.send(number)
        assert process.wait() == (7, f"{number.name} 0", "")
    assert run_in(tmp_path / "runs.db").shape == STOPPED_TREE


def test_a_container_that_is_told_to_stop_does_so_in_time_though_the_api_hangs(
    anyio_backend: Any, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with program(
            AGENT_THAT_IS_STOPPED + RUN, anyio_backend, tmp_path, url, str(int(TERM))
        ) as process:
            assert process.line() == "ready"
            began = time.monotonic()
            process.send(TERM)
            process.send(TERM)
            code, out, err = process.wait()
            assert time.monotonic() - began > 0.4
    assert (code, out) == (7, "SIGTERM 0")
    assert "were not delivered" in err


def test_without_cancel_on_signals_a_container_is_killed_as_ever(
    anyio_backend: Any, tmp_path: Path
) -> None:
    with program(AGENT_THAT_IS_STOPPED + RUN, anyio_backend, tmp_path, "local:x.db") as process:
        assert process.line() == "ready"
        process.send(TERM)
        assert process.wait() == (-TERM, "", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_that_is_told_to_stop_dies_as_if_there_was_no_client(
    anyio_backend: Any, tmp_path: Path
) -> None:
    code = """
async def main():
    async with client_of(cancel_on_signals=[signal.SIGTERM]) as client:
        async with client.agent_instance(**AGENT) as instance:
            async with instance.span("agent:run"):
                child = os.fork()
                if child == 0:
                    signal.raise_signal(signal.SIGTERM)
                    os._exit(1)
                _, status = os.waitpid(child, 0)
                print(os.waitstatus_to_exitcode(status), flush=True)
    print(client.stopped_by)
"""
    with program(code + RUN, anyio_backend, tmp_path) as process:
        assert process.wait() == (0, f"{-TERM}\nNone", "")
    assert run_in(tmp_path / "runs.db").shape == ("complete", [("agent:run", "complete", [])])
