"""InMemoryQueue and what every Queue promises."""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.harness import AGENT, make_config, open_faulty_api, stored_run

from prefactor_core import (
    AgentInstanceHandle,
    InMemoryQueue,
    Operation,
    PrefactorCoreError,
    Queue,
    QueueClosedError,
    TaskExecutor,
    open_prefactor,
)
from prefactor_core.queue.awaited import AwaitedPuts

T = TypeVar("T")


async def test_items_come_out_in_the_order_they_went_in() -> None:
    queue = InMemoryQueue[int]()
    for item in range(3):
        await queue.put(item)
    queue.put_nowait(3)
    assert queue.size() == 4
    assert [await queue.get() for _ in range(4)] == [0, 1, 2, 3]
    assert queue.size() == 0


async def test_a_closed_queue_accepts_nothing_and_gives_the_items_that_it_has() -> None:
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


async def test_closing_wakes_every_task_that_waits_whatever_number_is_given() -> None:
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
async def test_taking_items_gives_other_tasks_a_turn(way: str) -> None:
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


def test_a_queue_that_cannot_put_is_refused_when_it_is_made() -> None:
    class OldQueue(Queue[int]):
        async def get(self) -> int:
            return 1

        def size(self) -> int:
            return 0

        async def close(self, num_waiters: int = 1) -> None: ...

        @property
        def closed(self) -> bool:
            return False

    with pytest.raises(TypeError, match=r"OldQueue must have put_nowait\(\), or put\(\)"):
        OldQueue()


# A queue with the methods of the seed: put() may wait, and there is no put_nowait()


class FiveMethods(Queue[T]):
    """Puts and takes with a turn of the loop before and after."""

    def __init__(self) -> None:
        self.items = deque[T]()
        self.is_closed = False
        self.changed = anyio.Event()

    async def put(self, item: T) -> None:
        await anyio.lowlevel.checkpoint()
        if self.is_closed:
            raise QueueClosedError("closed")
        self.items.append(item)
        self.wake()
        await anyio.lowlevel.checkpoint()

    async def get(self) -> T:
        await anyio.lowlevel.checkpoint()
        while not self.items:
            if self.is_closed:
                raise QueueClosedError("closed and empty")
            await self.changed.wait()
        return self.items.popleft()

    def size(self) -> int:
        return len(self.items)

    async def close(self, num_waiters: int = 1) -> None:
        self.is_closed = True
        self.wake()
        await anyio.lowlevel.checkpoint()

    @property
    def closed(self) -> bool:
        return self.is_closed

    def wake(self) -> None:
        self.changed.set()
        self.changed = anyio.Event()


class EndingByItems(FiveMethods[T]):
    """Ends each of its readers by an item, as the seed's own queue does; ``size()`` counts it."""

    end: Any = object()

    async def get(self) -> T:
        item = await super().get()
        if item is self.end:
            raise QueueClosedError("closed and empty")
        return item

    async def close(self, num_waiters: int = 1) -> None:
        self.items.extend([self.end] * num_waiters)
        await super().close(num_waiters)


class RefusingEveryThird(FiveMethods[T]):
    """Is full every now and then."""

    asked = 0

    async def put(self, item: T) -> None:
        self.asked += 1
        if self.asked % 3 == 0:
            raise OSError("the disk is full")
        await super().put(item)


class RefusingUntilTheEnd(EndingByItems[T], RefusingEveryThird[T]):
    """Both."""


class WithBound(FiveMethods[T]):
    """A queue for two items; a put waits until one is free."""

    async def put(self, item: T) -> None:
        while len(self.items) == 2:
            await self.changed.wait()
        await super().put(item)

    async def get(self) -> T:
        item = await super().get()
        self.wake()
        return item


@pytest.mark.parametrize("kind", [FiveMethods, EndingByItems])
@pytest.mark.parametrize("workers", [1, 3])
async def test_a_queue_whose_put_waits_works_in_an_executor(
    kind: type[FiveMethods[int]], workers: int
) -> None:
    queue, done = kind(), list[int]()

    async def handle(item: int) -> None:
        done.append(item)

    with anyio.fail_after(5):
        async with TaskExecutor(queue, handle, num_workers=workers):
            for item in range(5):
                await queue.put(item)
    assert sorted(done) == [0, 1, 2, 3, 4]
    if workers == 1:
        assert done == sorted(done)
    with pytest.raises(PrefactorCoreError, match=rf"{kind.__name__}.* has no put_nowait\(\)"):
        queue.put_nowait(1)


@pytest.mark.parametrize(
    "kind", [FiveMethods, EndingByItems, RefusingEveryThird, RefusingUntilTheEnd, WithBound]
)
async def test_a_queue_whose_put_waits_works_in_a_client(
    kind: type[FiveMethods[Operation]], caplog: pytest.LogCaptureFixture
) -> None:
    queue = kind()

    def in_thread(instance: AgentInstanceHandle) -> None:
        with instance.span("agent:tool", payload={"n": -1}):
            pass

    with anyio.fail_after(10):
        async with open_faulty_api() as api:
            async with open_prefactor(make_config(), queue=queue, asgi_app=api) as client:
                async with client.agent_instance(**AGENT) as instance:
                    for number in range(20):
                        async with instance.span("agent:tool", payload={"n": number}):
                            pass
                    await anyio.to_thread.run_sync(in_thread, instance)
                    await client.flush()
                    assert client.statistics().pending == 0
                    with instance.span("agent:llm"):
                        pass
            assert queue.closed
            assert queue.size() == 0
            assert client.statistics().lost == 0
            run = await stored_run(api)
    assert run.shape == (
        "complete",
        [("agent:tool", "complete", [])] * 21 + [("agent:llm", "complete", [])],
    )
    refuses = issubclass(kind, RefusingEveryThird)
    assert ("they are sent from memory" in caplog.text) is refuses
    assert "ERROR" not in caplog.text


@pytest.mark.virtual_time
async def test_a_queue_whose_put_never_returns_costs_the_drain_timeout_and_is_counted() -> None:
    class Stuck(FiveMethods[Operation]):
        async def put(self, item: Operation) -> None:
            await anyio.sleep_forever()

    config = make_config(drain_timeout=3, registration_timeout=1)
    with anyio.fail_after(20):
        async with open_faulty_api() as api:
            before = anyio.current_time()
            async with open_prefactor(config, queue=Stuck(), asgi_app=api) as client:
                async with client.agent_instance(**AGENT) as instance:
                    with instance.span("agent:tool"):
                        pass
            assert anyio.current_time() - before < 10
    assert client.statistics().dropped == {"drain_timeout": client.statistics().accepted}


@given(
    steps=st.lists(st.sampled_from(["put", "get", "cancel put", "refuse"]), max_size=30),
    kind=st.sampled_from([FiveMethods[int], WithBound[int]]),
)
@example(steps=["put", "put", "put", "get"], kind=WithBound[int])
async def test_no_item_is_lost_doubled_or_out_of_order_on_its_way_through_a_queue_that_waits(
    steps: list[str], kind: type[FiveMethods[int]]
) -> None:
    class Refusing(kind):  # type: ignore[misc, valid-type]
        refuses = False
        to_cancel: anyio.CancelScope | None = None

        async def put(self, item: int) -> None:
            if self.refuses:
                self.refuses = False
                raise OSError("full")
            if self.to_cancel is not None:
                self.items.append(item)
                self.to_cancel.cancel()
                self.to_cancel = None
            await super().put(item)

    inner = Refusing()
    queue = AwaitedPuts(inner)
    put, got = list[int](), list[int]()
    with anyio.fail_after(5):
        for step in steps:
            if step == "put":
                put.append(len(put))
                queue.put_nowait(put[-1])
            elif step == "refuse":
                inner.refuses = True
            elif step == "get" and queue.size() > 0:
                got.append(await queue.get())
            elif step == "cancel put" and queue.size() > 0:
                with anyio.CancelScope() as inner.to_cancel:
                    got.append(await queue.get())
                inner.to_cancel = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(queue.close)
            while queue.size() > 0:
                got.append(await queue.get())
        with pytest.raises(QueueClosedError):
            await queue.get()
    assert got == put
