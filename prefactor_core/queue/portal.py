"""The portal: a thread waits for a coroutine of a client's event loop."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from threading import Event
from typing import Any, Final, TypeVar, cast

import anyio

from prefactor_core.exceptions import ClientNotInitializedError
from prefactor_core.queue.event_loop import EventLoop

T = TypeVar("T")

_LOOK: Final = 1.0
"""Seconds after which the waiting thread looks whether the loop has ended."""


def call_in_loop(event_loop: EventLoop, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run ``function`` in the loop while this thread waits; return its result, or raise its error.

    It runs in an empty context, in a task that no task group owns. (``anyio.from_thread.run()``
    puts it into the cancel scope of the thread's own task, which may belong to another loop.) An
    exception from outside that ends the wait, Ctrl-C for one, cancels it.

    Do not call this in the thread of the loop: it would wait for itself.

    Raises :class:`ClientNotInitializedError` if the loop ends first.
    """
    done = Event()
    outcome: list[tuple[T | None, Exception | None]] = []
    scope: anyio.CancelScope | None = None
    abandoned = False

    async def run() -> None:
        nonlocal scope
        try:
            with anyio.CancelScope() as scope:
                if not abandoned:
                    outcome.append((await function(), None))
        except Exception as error:
            outcome.append((None, error))
        finally:
            done.set()

    def start() -> None:
        try:
            event_loop.spawn(run, "prefactor-core-call", done.set)
        except RuntimeError:  # trio ends, and starts no task any more
            done.set()

    def give_up() -> None:
        nonlocal abandoned
        abandoned = True
        if scope is not None:
            scope.cancel()

    try:
        runs = event_loop.run_soon(start)
        while runs and not done.wait(_LOOK):
            runs = event_loop.run_soon(_nothing)  # False if the loop ended without a call of start
    except BaseException:
        event_loop.run_soon(give_up)
        raise
    if not outcome:
        raise ClientNotInitializedError("the client's event loop has ended in the meantime")
    # Popped: an error that this frame kept would keep the frame, and so itself, alive.
    value, error = outcome.pop()
    if error is None:
        return cast("T", value)
    try:
        raise error
    finally:
        del error


def _nothing() -> None:
    """A call that only the end of the loop refuses."""
