"""TaskExecutor: workers inside one scope, on virtual time."""

from __future__ import annotations

import logging
from contextvars import ContextVar
from itertools import pairwise

import anyio
import anyio.lowlevel
import pytest

from prefactor_core import InMemoryQueue, PrefactorValueError, Queue, TaskExecutor

pytestmark = pytest.mark.virtual_time


def filled(*items: int) -> InMemoryQueue[int]:
    queue = InMemoryQueue[int]()
    for item in items:
        queue.put_nowait(item)
    return queue


class Handler:
    """Takes ``seconds`` for each item, and fails as often as ``failures`` says for it."""

    def __init__(self, seconds: float = 0.0, failures: dict[int, float] | None = None) -> None:
        self.seconds = seconds
        self.failures = failures or {}
        self.attempts: list[tuple[float, int]] = []
        self.done: list[int] = []

    async def __call__(self, item: int) -> None:
        self.attempts.append((anyio.current_time(), item))
        await anyio.sleep(self.seconds)
        if self.failures.get(item, 0) > 0:
            self.failures[item] -= 1
            raise RuntimeError(f"item {item}")
        self.done.append(item)

    def waits(self) -> list[float]:
        times = [time for time, _ in self.attempts]
        return [after - before for before, after in pairwise(times)]


async def test_what_is_queued_when_the_block_is_left_is_still_handled() -> None:
    handler = Handler(seconds=1)
    async with TaskExecutor(filled(1, 2, 3), handler, num_workers=1):
        pass
    assert handler.done == [1, 2, 3]


async def test_workers_of_one_queue_work_in_parallel() -> None:
    handler = Handler(seconds=1)
    before = anyio.current_time()
    async with TaskExecutor(filled(1, 2, 3), handler):
        pass
    assert anyio.current_time() - before == pytest.approx(1)


async def test_one_worker_keeps_the_order_also_if_an_item_fails() -> None:
    handler = Handler(seconds=1, failures={1: 1, 2: 2})
    async with TaskExecutor(filled(1, 2, 3), handler, num_workers=1, drain_timeout=60):
        pass
    assert handler.done == [1, 2, 3]
    assert [item for _, item in handler.attempts] == [1, 1, 2, 2, 2, 3]


@pytest.mark.parametrize("max_retries", [0, 1, 3])
async def test_an_item_is_tried_once_and_then_as_often_as_max_retries_says(
    max_retries: int, caplog: pytest.LogCaptureFixture
) -> None:
    handler = Handler(failures={1: float("inf")})
    async with TaskExecutor(
        filled(1), handler, num_workers=1, max_retries=max_retries, drain_timeout=60
    ):
        pass
    assert len(handler.attempts) == max_retries + 1
    assert handler.done == []
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert f"given up after {max_retries + 1} attempts: RuntimeError: item 1" in caplog.text


async def test_the_waits_between_attempts_double() -> None:
    handler = Handler(failures={1: 3})
    async with TaskExecutor(filled(1), handler, drain_timeout=60):
        pass
    for wait, base in zip(handler.waits(), [1, 2, 4], strict=True):
        assert 0.75 * base <= wait <= 1.25 * base
    assert handler.done == [1]


async def test_leaving_is_bounded_by_the_drain_timeout() -> None:
    queue = filled(1, 2)
    before = anyio.current_time()
    async with TaskExecutor(queue, Handler(seconds=100), num_workers=1, drain_timeout=5):
        pass
    assert anyio.current_time() - before == pytest.approx(5)
    assert queue.size() == 1


async def test_the_drain_goes_on_under_a_cancellation_from_outside() -> None:
    handler = Handler(seconds=1)
    with anyio.CancelScope() as scope:
        async with TaskExecutor(filled(1, 2, 3), handler, num_workers=1):
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert handler.done == [1, 2, 3]


@pytest.mark.parametrize("cancelled", [False, True])
async def test_the_blocks_exception_leaves_as_the_same_object(cancelled: bool) -> None:
    error = ValueError("mine")
    with pytest.raises(ValueError, match="mine") as caught, anyio.CancelScope() as scope:
        async with TaskExecutor(filled(1), Handler(seconds=1)):
            if cancelled:
                scope.cancel()
            raise error
    assert caught.value is error
    assert error.__context__ is None


class BrokenQueue(InMemoryQueue[int]):
    """Raises as often as it is asked."""

    asked = 0

    async def get(self) -> int:
        self.asked += 1
        raise OSError("the disk is gone")


async def test_a_queue_that_raises_for_ever_lets_the_loop_and_the_clock_go_on() -> None:
    queue = BrokenQueue()
    async with TaskExecutor(queue, Handler(), num_workers=1, drain_timeout=30):
        # On virtual time this ends only if the worker waits and does not spin.
        await anyio.sleep(10)
    assert 2 <= queue.asked <= 10


async def test_workers_do_not_inherit_the_context_of_the_block() -> None:
    variable = ContextVar("variable", default="outside")
    variable.set("inside the block")
    seen: list[str] = []

    async def handle(item: int) -> None:
        seen.append(variable.get())

    async with TaskExecutor(filled(1), handle):
        pass
    assert seen == ["outside"]


async def test_an_executor_is_entered_once_and_needs_a_worker() -> None:
    queue: Queue[int] = filled()
    executor = TaskExecutor(queue, Handler())
    async with executor:
        pass
    with pytest.raises(RuntimeError, match="once"):
        await executor.__aenter__()
    with pytest.raises(PrefactorValueError, match="num_workers must be at least 1, got 0"):
        TaskExecutor(queue, Handler(), num_workers=0)
