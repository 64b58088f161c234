"""EventLoop: the loop, thread and process that own a client; its thread-safe entry points."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextvars import Context
from functools import partial
from time import monotonic_ns
from typing import TYPE_CHECKING, Final, Self, TypeAlias, TypeVar, TypeVarTuple, cast
from weakref import WeakSet, ref

import anyio.lowlevel

from prefactor_core.exceptions import ClientScopeError

if TYPE_CHECKING:
    import asyncio

    import trio

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_TRIO: Final = "run_sync_soon"
_DONE: Final = object()

_TURN: Final = 1_000_000
"""Nanoseconds of awaited calls after which the loop gets a turn."""

_MOST_CALLS: Final = 1_000

RunSoon: TypeAlias = Callable[[Callable[[], object]], bool]


class EventLoop:
    """The thread, the event loop and the process that a client was opened in.

    ``lock``: held during each step of recording, in any thread. It is never held during a wait, nor
    while user code runs to capture a payload.
    ``is_forked``: whether this process is a fork of the one that opened the client. It then has
    only the client's memory: no loop runs, and a thread that held the lock at the fork never
    releases it.

    Two methods do what anyio has no function for: ``run_soon`` calls into the loop without waiting
    for it, and :meth:`spawn` starts a task that no task group owns.
    """

    def __init__(self, loop: object) -> None:
        """``loop``: asyncio's loop or trio's token; None where a program has neither."""
        self.lock = threading.RLock()
        self._steps: deque[Callable[[], object]] = deque()
        self._stepping = False
        # The time of the last turn of the loop, and the calls of is_turn_due() since.
        self._turn_at = self._calls = 0
        self.thread_id = threading.get_ident()
        self.is_forked = False
        _event_loops.add(self)
        # One of these is right. Neither library is imported to find out.
        self._asyncio = cast("asyncio.AbstractEventLoop", loop)
        self._trio = cast("trio.lowlevel.TrioToken", loop) if hasattr(loop, _TRIO) else None
        self.run_soon: RunSoon = _run_soon_of(loop)
        """Make the loop call a function; for any thread. Returns False, having done nothing, if the
        loop has ended."""
        # asyncio keeps only weak references to its tasks.
        self._tasks: set[asyncio.Task[None]] = set()
        self._opener: ref[asyncio.Task[object]] | None = None
        if self._trio is None and loop is not None:
            import asyncio  # it runs already

            opener = asyncio.current_task(self._asyncio)
            self._opener = None if opener is None else ref(opener)

    @classmethod
    def here(cls) -> Self:
        """The running event loop, in this thread."""
        return cls(anyio.lowlevel.current_token().native_token)

    def check_process(self) -> None:
        """Raise :class:`ClientScopeError` in a fork."""
        if self.is_forked:
            raise ClientScopeError(
                "the client was opened before this process was forked: open one of your own here"
            )

    @property
    def loop_is_closed(self) -> bool:
        """Whether the loop will never run again. No client outlives a loop of trio."""
        return self._trio is None and self._asyncio.is_closed()

    @property
    def is_here(self) -> bool:
        """Whether the caller is in the loop's own thread."""
        return threading.get_ident() == self.thread_id

    def check(self, what: str) -> None:
        """Raise :class:`ClientScopeError` in another thread; ``what`` begins the message."""
        if not self.is_here:
            raise ClientScopeError(
                f"{what} in the thread of its client's event loop: from another thread, use "
                "anyio.from_thread.run()"
            )

    def is_turn_due(self) -> bool:
        """Whether an ``async`` method should yield to the loop now: none has for a millisecond.

        Always True in another thread, which may have a loop of its own.
        """
        if threading.get_ident() != self.thread_id:
            return True
        now = monotonic_ns()
        self._calls += 1
        # The count of calls, in case a library has frozen the time.
        if now - self._turn_at < _TURN and self._calls < _MOST_CALLS:
            return False
        self._turn_at, self._calls = now, 0
        return True

    def step(self, function: Callable[[*Ts], object], *args: *Ts) -> None:
        """Call ``function`` with the lock held, as one step of recording. No two steps interleave.

        A finaliser may run during a step, in the same thread, and record something: its step
        follows this one, or runs with the next one if an exception interrupts this one.
        """
        with self.lock:
            if self._stepping:
                self._steps.append(partial(function, *args))
                return
            self._stepping = True
            try:
                while self._steps:
                    self._steps[0]()
                    # Only now: an interruption must not lose it, and twice does no harm.
                    self._steps.popleft()
                function(*args)
                while self._steps:
                    self._steps[0]()
                    self._steps.popleft()
            finally:
                self._stepping = False

    async def in_turns(self, slices: Iterator[None]) -> None:
        """Exhaust ``slices``, and give other tasks a turn after each.

        A cancellation does not stop the slices. After a native cancellation of asyncio, against
        which no shield helps, other tasks get no further turns, and the cancellation is raised at
        the next ``await``.
        """
        try:
            goes_on = True
            while goes_on and next(slices, _DONE) is not _DONE:
                try:
                    await anyio.lowlevel.cancel_shielded_checkpoint()
                except anyio.get_cancelled_exc_class() as cancelled:  # noqa: ASYNC103
                    self._cancel_later(cancelled)
                    goes_on = False
        finally:
            for _ in slices:
                pass

    def _cancel_later(self, cancelled: BaseException) -> None:
        if self._trio is not None:
            raise cancelled
        import asyncio

        task = asyncio.current_task()
        assert task is not None
        # As if it had not arrived yet: time-outs count the cancellations of their task.
        task.uncancel()
        task.cancel(*cancelled.args)

    async def wait_for_end(self) -> None:
        """In a fork: wait until asyncio cancels the remaining tasks of the loop.

        Until then no wait works there, and no scope can be left, because asyncio reports that no
        loop runs. Trio cannot be forked while it runs.
        """
        if self._trio is None:
            await self._asyncio.create_future()

    def spawn(
        self,
        function: Callable[[], Coroutine[None, None, None]],
        name: str,
        on_cancelled: Callable[[], object],
    ) -> object:
        """Start a task that no task group owns, in an empty context; return it.

        ``on_cancelled`` is called when asyncio's own ``Task.cancel()`` has ended the task, perhaps
        before its first step. (A task group would treat that as a failure, and cancel its host.)
        The call is outside of any task, where most of anyio does not work.
        """
        if self._trio is not None:
            import trio

            return trio.lowlevel.spawn_system_task(function, name=name, context=Context())
        task = self._asyncio.create_task(function(), name=name, context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda task: on_cancelled() if task.cancelled() else None)
        return task

    def without_ctrl_c(self, function: Callable[[], T]) -> Callable[[], T]:
        """The same function or coroutine function, in which trio raises no Ctrl-C: it raises it in
        the main task instead, as asyncio always does."""
        if self._trio is None:
            return function
        import trio

        return trio.lowlevel.enable_ki_protection(function)

    def call_later(self, seconds: float, function: Callable[[], object]) -> None:
        """Make asyncio's loop call ``function`` after ``seconds``, unless the task that opened the
        client has ended by then."""

        def call() -> None:
            opener = None if self._opener is None else self._opener()
            if opener is not None and not opener.done():
                function()

        self._asyncio.call_later(seconds, call)

    @property
    def is_trio(self) -> bool:
        """Whether the loop is trio's, which has no native cancellation of a single task."""
        return self._trio is not None


def run_soon_here() -> RunSoon:
    """A function that makes the running event loop call another one; for any thread. It returns
    False, having done nothing, once the loop has ended."""
    return _run_soon_of(anyio.lowlevel.current_token().native_token)


def _run_soon_of(loop: object) -> RunSoon:
    soon = cast(
        "Callable[[Callable[[], object]], object]",
        getattr(loop, _TRIO, None) or getattr(loop, "call_soon_threadsafe", None),
    )

    def run_soon(function: Callable[[], object]) -> bool:
        try:
            soon(function)
        except RuntimeError:  # asyncio's loop is closed; trio's error is one of these
            return False
        return True

    return run_soon


_event_loops: WeakSet[EventLoop] = WeakSet()


def _leave_event_loops() -> None:
    for event_loop in _event_loops:
        event_loop.is_forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_event_loops)
