"""InMemoryQueue and what every Queue promises."""

from __future__ import annotations

import gc
from collections.abc import Callable

import anyio
import anyio.lowlevel
import pytest

from prefactor_core import InMemoryQueue, PrefactorCoreError, Queue, QueueClosedError


async def test_items_come_out_in_the_order_they_went_in() -> None:
    queue = InMemoryQueue[int]()
    for item in range(3):
        await queue.put(item)
    queue.put_nowait(3)
    assert queue.size() == 4
    assert [await queue.get() for _ in range(4)] == [0, 1, 2, 3]
    assert queue.size() == 0


async def test_a_closed_queue_takes_nothing_and_gives_what_it_has() -> None:
    queue = InMemoryQueue[str]()
    await queue.put("last")
    assert not queue.closed
    await queue.close()
    await queue.close()
    assert queue.closed
    with pytest.raises(QueueClosedError, match="Cannot put to closed queue"):
        await queue.put("more")
    assert await queue.get() == "last"
    with pytest.raises(QueueClosedError, match="Queue is closed and empty"):
        await queue.get()


async def test_closing_wakes_everybody_who_waits_whatever_number_is_given() -> None:
    queue = InMemoryQueue[str]()
    woken = 0

    async def wait() -> None:
        nonlocal woken
        with pytest.raises(QueueClosedError):
            await queue.get()
        woken += 1

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            await queue.close(num_waiters=1)
    assert woken == 3


async def test_the_size_of_a_closed_queue_counts_items_only() -> None:
    queue = InMemoryQueue[str]()
    await queue.put("one")
    await queue.close(num_waiters=5)
    assert queue.size() == 1


async def test_putting_gives_other_tasks_a_turn_and_put_nowait_does_not_wait() -> None:
    queue = InMemoryQueue[int]()
    got: list[int] = []

    async def take() -> None:
        while True:
            got.append(await queue.get())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(take)
        await anyio.wait_all_tasks_blocked()
        queue.put_nowait(1)
        assert got == []
        with anyio.fail_after(5):
            while len(got) < 2:
                await queue.put(2)
        tasks.cancel_scope.cancel()
    assert got[:2] == [1, 2]


class _Plain(InMemoryQueue[int]):
    """Drains as a queue does that says nothing about it."""

    async def drain(self, take: Callable[[int], object], most: int) -> None:
        await Queue.drain(self, take, most)


@pytest.mark.parametrize("kind", [InMemoryQueue, _Plain])
async def test_draining_gives_the_oldest_and_no_more_than_are_asked_for(
    kind: type[InMemoryQueue[int]],
) -> None:
    queue = kind()
    for item in range(5):
        queue.put_nowait(item)
    got: list[int] = []
    with anyio.fail_after(5):
        await queue.drain(got.append, 0)
        assert got == []
        await queue.drain(got.append, 3)
        assert got == [0, 1, 2]
        await queue.drain(got.append, 3)
        await queue.close()
        await queue.drain(got.append, 3)
    assert got == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("way", ["get", "drain"])
async def test_taking_what_is_there_gives_other_tasks_a_turn(way: str) -> None:
    queue = InMemoryQueue[int]()
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(other)
        for item in range(10):
            queue.put_nowait(item)
            await (queue.get() if way == "get" else queue.drain(lambda item: None, 1))
        assert turns >= 5
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("in_a_cycle", [False, True])
async def test_a_queue_that_is_dropped_open_makes_no_noise(in_a_cycle: bool) -> None:
    for _ in range(50):
        queue = InMemoryQueue[object]()
        if in_a_cycle:
            queue.put_nowait(queue)
            queue.cycle = queue  # type: ignore[attr-defined]
        del queue
    gc.collect()  # an unclosed stream would warn here, and a warning is an error


def test_a_closed_queue_is_an_error_of_ours() -> None:
    assert issubclass(QueueClosedError, PrefactorCoreError)


def test_a_queue_that_cannot_put_without_waiting_is_refused_when_it_is_made() -> None:
    class OldQueue(Queue[int]):
        async def get(self) -> int:
            return 1

        def size(self) -> int:
            return 0

        async def close(self, num_waiters: int = 1) -> None: ...

        @property
        def closed(self) -> bool:
            return False

    with pytest.raises(TypeError, match="put_nowait"):
        OldQueue()  # type: ignore[abstract]
