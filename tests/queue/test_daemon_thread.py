"""DaemonThread: calls that may block, out of the way of the event loop and of every exit."""

from __future__ import annotations

import subprocess
import sys
import threading
from functools import partial

import anyio
import pytest
from anyio.abc import TaskStatus

from prefactor_core.queue.daemon_thread import DaemonThread


async def test_a_call_gives_what_the_function_gives() -> None:
    with anyio.fail_after(10):
        name = await DaemonThread("a helper", idle_seconds=0).call(
            lambda: threading.current_thread().name
        )
        assert name == "a helper"
        assert await DaemonThread("a helper", idle_seconds=0).call(
            lambda: threading.current_thread().daemon
        )


async def test_a_call_raises_what_the_function_raises() -> None:
    error = LookupError("nothing there")

    def fail() -> None:
        raise error

    with anyio.fail_after(60), pytest.raises(LookupError) as raised:
        await DaemonThread("a helper", idle_seconds=0).call(fail)
    assert raised.value is error


async def test_calls_are_made_one_after_another_in_their_order() -> None:
    thread, made, all_asked = DaemonThread("a helper"), list[int](), threading.Event()

    def make(number: int) -> None:
        all_asked.wait(10)
        made.append(number)

    async def call(number: int, *, task_status: TaskStatus[None]) -> None:
        task_status.started()
        await thread.call(partial(make, number))

    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            for number in range(50):
                await group.start(call, number)
            all_asked.set()
    assert made == list(range(50))


async def test_a_cancelled_task_does_not_wait_for_the_call() -> None:
    goes_on, ended = threading.Event(), threading.Event()

    def wait() -> None:
        goes_on.wait(10)
        ended.set()

    thread = DaemonThread("a helper")
    with anyio.fail_after(10):
        with anyio.move_on_after(0.01) as scope:
            await thread.call(wait)
        assert scope.cancelled_caught
        assert not ended.is_set()
        goes_on.set()
        # The next one comes after it.
        assert await thread.call(ended.is_set)


async def test_a_thread_ends_on_request_and_begins_again() -> None:
    thread = DaemonThread("a helper", idle_seconds=3600)
    thread.end()  # it has not begun
    with anyio.fail_after(60):
        first = await thread.call(threading.current_thread)
        thread.end()
        first.join(60)
        assert not first.is_alive()
        assert await thread.call(threading.current_thread) is not first
    thread.end()


async def test_a_thread_makes_the_calls_that_were_asked_for_before_it_ends() -> None:
    goes_on, made = threading.Event(), threading.Event()
    thread = DaemonThread("a helper")
    with anyio.fail_after(60):
        for function in (lambda: goes_on.wait(60), made.set):
            with anyio.move_on_after(0):
                await thread.call(function)
        thread.end()
        goes_on.set()
        assert made.wait(60)


async def test_the_thread_of_one_call_ends_with_it() -> None:
    with anyio.fail_after(60):
        thread = await DaemonThread("a helper", idle_seconds=0).call(threading.current_thread)
    thread.join(4)  # as above
    assert not thread.is_alive()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_call_that_never_returns_holds_up_no_exit(backend: str) -> None:
    program = f"""
import threading
import anyio
from prefactor_core.queue.daemon_thread import DaemonThread

async def main():
    with anyio.move_on_after(0.05):
        await DaemonThread("a helper", idle_seconds=0).call(threading.Event().wait)
    print("left")

anyio.run(main, backend={backend!r})
print("ended")
"""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert (result.stdout, result.stderr) == ("left\nended\n", "")
