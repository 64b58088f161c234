"""Steps of recording: one at a time, and none is lost."""

from __future__ import annotations

import pytest

from prefactor_core.queue.event_loop import EventLoop


def test_a_step_inside_of_a_step_follows_right_after_it() -> None:
    event_loop, done = EventLoop(None), list[str]()

    def outer() -> None:
        event_loop.step(done.append, "inner")
        done.append("outer")

    event_loop.step(outer)
    assert done == ["outer", "inner"]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, RecursionError, MemoryError])
def test_a_step_that_waited_and_was_interrupted_comes_with_the_next(
    interruption: type[BaseException],
) -> None:
    event_loop, done = EventLoop(None), list[str]()

    def inner() -> None:
        if "tried" not in done:
            done.append("tried")
            raise interruption
        done.append("inner")

    with pytest.raises(interruption):
        event_loop.step(lambda: event_loop.step(inner))
    event_loop.step(done.append, "next")
    assert done == ["tried", "inner", "next"]
