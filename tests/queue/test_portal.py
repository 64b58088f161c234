"""A thread that waits for a coroutine of the loop: its result, its error, and how a wait ends."""

from __future__ import annotations

import ctypes
import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from prefactor_core import ClientNotInitializedError
from prefactor_core.queue.event_loop import EventLoop
from prefactor_core.queue.portal import call_in_loop

SECONDS = 20.0


class ProblemError(Exception):
    """Unlike a builtin exception, it can be weakly referenced."""


async def test_the_thread_gets_the_result_of_a_task_in_an_empty_context() -> None:
    variable: ContextVar[str] = ContextVar("variable", default="empty")

    async def function() -> tuple[int, str]:
        await anyio.lowlevel.checkpoint()
        return threading.get_ident(), variable.get()

    event_loop = EventLoop.here()
    variable.set("the caller's")
    with anyio.fail_after(SECONDS):
        found = await anyio.to_thread.run_sync(call_in_loop, event_loop, function)
    assert found == (threading.get_ident(), "empty")


async def test_the_thread_gets_the_error_as_the_same_object_and_keeps_none_of_it() -> None:
    raised, same = list["weakref.ref[BaseException]"](), list[bool]()

    async def function() -> None:
        error = ProblemError()
        raised.append(weakref.ref(error))
        try:
            raise error
        finally:
            del error

    def work() -> None:
        try:
            call_in_loop(event_loop, function)
        except ProblemError as error:
            same.append(error is raised[0]())

    event_loop = EventLoop.here()
    gc.disable()
    try:
        with anyio.fail_after(SECONDS), ThreadPoolExecutor(1) as pool:
            await anyio.to_thread.run_sync(pool.submit(work).result, SECONDS)
        assert same == [True]
        assert raised[0]() is None  # it was in no cycle
    finally:
        gc.enable()


async def test_the_cancellation_of_the_threads_own_task_does_not_reach_the_call() -> None:
    begun, go_on, left = anyio.Event(), anyio.Event(), threading.Event()
    found = list[str]()

    async def function() -> str:
        begun.set()
        await go_on.wait()
        return "done"

    def work() -> None:
        found.append(call_in_loop(event_loop, function))
        left.set()

    async def cancelled() -> None:
        with scope:
            await anyio.to_thread.run_sync(work, abandon_on_cancel=True)
        go_on.set()

    event_loop, scope = EventLoop.here(), anyio.CancelScope()
    with anyio.fail_after(SECONDS):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(cancelled)
            await begun.wait()
            scope.cancel()
        assert await anyio.to_thread.run_sync(left.wait, SECONDS)
    assert found == ["done"]


@pytest.mark.parametrize("loop_goes_on", [True, False])
async def test_an_interrupted_wait_cancels_the_call(loop_goes_on: bool) -> None:
    begun, cancelled = threading.Event(), anyio.Event()
    waiting = list[int]()

    async def function() -> None:
        begun.set()
        try:
            await anyio.sleep_forever()
        finally:
            cancelled.set()

    def work() -> None:
        waiting.append(threading.get_ident())
        with pytest.raises(KeyboardInterrupt):
            call_in_loop(event_loop, function)

    event_loop = EventLoop.here()
    with anyio.fail_after(SECONDS), ThreadPoolExecutor(1) as pool:
        working = pool.submit(work)
        if loop_goes_on:
            await anyio.to_thread.run_sync(begun.wait, SECONDS)
        else:  # the interruption comes before the loop has begun the call
            while not waiting:
                pass
        thread = ctypes.c_ulong(waiting[0])
        ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(KeyboardInterrupt))
        if loop_goes_on:
            await cancelled.wait()
        else:
            working.exception(SECONDS)
            await anyio.wait_all_tasks_blocked()
            assert not begun.is_set()
        await anyio.to_thread.run_sync(working.result, SECONDS)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_loop_that_ends_or_has_ended_lets_the_thread_go_on(backend: str) -> None:
    async def function() -> None:
        begun.set()
        await anyio.sleep_forever()

    async def main() -> EventLoop:
        event_loop = EventLoop.here()
        waiting.append(pool.submit(call_in_loop, event_loop, function))
        await begun.wait()
        return event_loop

    waiting = []
    begun = anyio.Event()
    with ThreadPoolExecutor(1) as pool:
        event_loop = anyio.run(main, backend=backend)
        waiting.append(pool.submit(call_in_loop, event_loop, function))
        for future in waiting:
            with pytest.raises(ClientNotInitializedError, match="has ended in the meantime"):
                future.result(SECONDS)
