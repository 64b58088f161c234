"""DaemonThread: calls that may block, beside the event loop, which no exit waits for.

A loop or the interpreter waits at its end for the threads of ``anyio.to_thread`` and of asyncio's
default executor: a resolver that hangs, or a slow disk, would outlast every time-out of ours.
Nothing waits for a daemon thread.
"""

from __future__ import annotations

from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import TypeVar, cast

import anyio

from prefactor_core.queue.event_loop import run_soon_here

T = TypeVar("T")


class DaemonThread:
    """Makes one call after another, in the order of the requests.

    The thread begins with the first call and ends with :meth:`end`, or when there was no call for
    ``idle_seconds``. It begins again with the next call, also in the child of a fork. Any number
    of tasks, of any event loop, may call.
    """

    def __init__(self, name: str, *, idle_seconds: float = 5.0) -> None:
        self._name = name
        self._idle_seconds = idle_seconds
        self._lock = Lock()
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: Thread | None = None

    async def call(self, function: Callable[[], T]) -> T:
        """Call ``function`` in the thread; return its result, or raise its exception.

        When the waiting task is cancelled, the call is made all the same, and its outcome is
        dropped.

        Raises :class:`RuntimeError` where no thread can be started.
        """
        done = anyio.Event()
        run_soon = run_soon_here()
        outcome: list[tuple[T | None, BaseException | None]] = []

        def make() -> None:
            try:
                outcome.append((function(), None))
            except BaseException as error:
                outcome.append((None, error))
            run_soon(done.set)

        self._ask(make)
        await done.wait()
        value, error = outcome.pop()
        if error is None:
            return cast("T", value)
        try:
            raise error
        finally:
            del error  # it has this frame

    def end(self) -> None:
        """End the thread after the calls that are queued. Waits for nothing."""
        with self._lock:
            if self._thread is not None:
                self._calls.put(None)

    def _ask(self, make: Callable[[], None]) -> None:
        with self._lock:
            self._calls.put(make)
            if self._thread is None or not self._thread.is_alive():
                self._thread = Thread(target=self._serve, name=self._name, daemon=True)
                self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                make = self._calls.get(timeout=self._idle_seconds)
            except Empty:
                make = None
            if make is None:
                # Under the lock: a call that is queued now finds this thread, or a new one.
                with self._lock:
                    if self._calls.empty():
                        self._thread = None
                        return
                continue
            make()
            del make  # and what it refers to
