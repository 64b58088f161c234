"""The code of others runs with a budget, in a thread beside; no caller waits longer. Pure.

A ``__repr__`` may ask a database, or wait for ever. Python cannot break such a call off, so
helper threads make them. One that does not answer in time is left to itself: it is a daemon, and
ends when its call does.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import Context, copy_context
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Final, TypeVar, cast

T = TypeVar("T")

_LOOK_SECONDS: Final = 0.002
_MAX_LOOKS: Final = 3
_MAX_WAITS: Final = 10
_CALL_SECONDS: Final = 0.05
_TOTAL_SECONDS: Final = 0.25
_HELD_UP_SECONDS: Final = 0.25
_WAITING: Final = 0.0005
# Of what a call computes between two looks so much counts: more is what others cannot interrupt,
# such as a collection of garbage.
_MOST_A_LOOK: Final = 0.01
_IDLE_SECONDS: Final = 1.0
_MAX_STUCK: Final = 8


class TooSlowError(Exception):
    """The call was not made, or has not returned in time."""


class Timebox:
    """What one capture may spend on the code of others.

    A call is given up when it has waited for 6 ms (for a database, a lock), or computed for
    50 ms; all calls together may compute for 250 ms. That is time of their own: on a busy
    machine, or while another thread does not let go of the interpreter, the caller may wait for
    longer. So a call is looked at every 2 ms, and what counts is the processor time that it used,
    and the looks that found it waiting. While other threads of the process compute, or there is no
    processor for it, it may be that what it waits for, and it has 0.25 s. Where the system does
    not tell the processor time of a thread, the clock has to do.

    Each call is judged by itself: one that waits does not hold up the others, for which another
    thread is taken. Where many wait for less than a look each, all together may for 20 ms. While
    eight calls of the process have not returned, none is made.
    """

    def __init__(self) -> None:
        self._left = _TOTAL_SECONDS
        self._looks = _MAX_LOOKS
        self._waits = _MAX_WAITS

    def call(self, function: Callable[[], T]) -> T:
        """``function()``, in a copy of the caller's context.

        Raises what it raises, :class:`TooSlowError`, or :class:`RuntimeError` where no thread
        can be started.
        """
        ((result, error),) = self.call_all([function])
        if error is not None:
            raise error
        return cast("T", result)

    def call_all(
        self, functions: Sequence[Callable[[], object]]
    ) -> list[tuple[object, Exception | None]]:
        """What each of the functions returned or raised, a :class:`TooSlowError` for some, in
        their order. They are called in a copy of the caller's context, by one thread after the
        other as long as none waits. Raises what is no :class:`Exception`, as Ctrl-C.
        """
        batch = _Batch(functions)
        try:
            self._left, self._looks, self._waits = batch.run(self._left, self._looks, self._waits)
        finally:
            # Also on Ctrl-C.
            batch.give_up()
        outcomes: list[tuple[object, Exception | None]] = []
        for outcome in batch.outcomes:
            result, error = (None, TooSlowError()) if outcome is None else outcome
            if error is not None and not isinstance(error, Exception):
                raise error
            outcomes.append((result, error))
        return outcomes


class _Batch:
    """Calls that helpers make, one after the other, each call by whoever is free."""

    def __init__(self, functions: Sequence[Callable[[], object]]) -> None:
        self.outcomes: list[tuple[object, BaseException | None] | None] = [None] * len(functions)
        self._functions = functions
        self._numbers = deque(range(len(functions)))
        self._is_over = False
        self._ended: SimpleQueue[_Helper] = SimpleQueue()
        self._helpers: list[_Helper] = []

    def run(self, seconds: float, looks: int, waits: int) -> tuple[float, int, int]:
        """Wait for the calls, which may compute for so long in all, and be found so often with
        none that does: all the same ones, or others; what is left of each."""
        if seconds > 0 and waits > 0:
            self._take_helper()
        last, last_used = time.monotonic(), time.process_time()
        while self._helpers:
            try:
                helper = self._ended.get(timeout=_LOOK_SECONDS)
            except Empty:
                pass
            else:
                if helper not in self._helpers:
                    continue  # it was given up, and has ended all the same
                self._helpers.remove(helper)
                helper.look(0.0, busy=True)
                seconds -= helper.computed
                _idle.append(helper)
                continue
            now, used = time.monotonic(), time.process_time()
            # Others of the process compute, and may hold the interpreter.
            busy = used - last_used > (now - last) / 8
            idle = [helper.look(now - last, busy=busy) for helper in self._helpers]
            waits -= all(idle)
            last, last_used = now, used
            waiting = [helper for helper in self._helpers if helper.looks]
            if len(waiting) == len(self._helpers):
                looks -= 1
                # What is left to be called must not wait for these: at each look there are twice
                # as many to call it.
                for _ in waiting:
                    self._take_helper()
            for helper in self._helpers.copy():
                if (
                    waits <= 0
                    or (helper.looks and looks <= 0)
                    or helper.is_slow
                    or helper.computed > seconds
                ):
                    seconds -= helper.computed
                    self._leave(helper)
            if not self._helpers and seconds > 0 and waits > 0:
                self._take_helper()
        return seconds, looks, waits

    def _take_helper(self) -> None:
        if self._numbers and (helper := _lease(len(self._helpers))) is not None:
            self._helpers.append(helper)
            helper.begin(self._work)

    def give_up(self) -> None:
        """Nobody waits any more."""
        self._is_over = True
        for helper in tuple(self._helpers):
            self._leave(helper)

    def _leave(self, helper: _Helper) -> None:
        helper.is_abandoned = True
        self._helpers.remove(helper)
        _stuck.append(helper)

    def _work(self, helper: _Helper) -> None:
        while not (self._is_over or helper.is_abandoned):
            try:
                number = self._numbers.popleft()
            except IndexError:
                break
            helper.calls += 1
            try:
                self.outcomes[number] = self._functions[number](), None
            except BaseException as error:
                self.outcomes[number] = None, error
        self._ended.put(helper)


class _Helper:
    """A thread that works at one batch at a time, for who has leased it.

    ``calls``: how many it has made. ``looks``: how many times in a row it was found to wait
    in the same one. ``computed``: for how many seconds it has computed at this batch, as far as
    that was looked at.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.looks = 0
        self.computed = 0.0
        self._held_up = 0.0
        self.is_abandoned = False
        self._batches: SimpleQueue[tuple[Context, Callable[[_Helper], None]]] = SimpleQueue()
        self._clock: int | None = None
        self._computed_before = self._looked_at = 0.0
        self._calls_looked_at = 0
        self._thread = Thread(target=self._serve, name="prefactor_core timebox", daemon=True)
        self._thread.start()
        if hasattr(time, "pthread_getcpuclockid"):
            self._clock = time.pthread_getcpuclockid(cast("int", self._thread.ident))

    def is_alive(self) -> bool:
        # Not so in the child of a fork, which has only the thread that forked.
        return self._thread.is_alive()

    def begin(self, work: Callable[[_Helper], None]) -> None:
        """Have it do ``work``, in a copy of the caller's context."""
        self.looks, self._held_up = 0, 0.0
        self._calls_looked_at = self.calls
        self.computed = self._computed_before = 0.0
        self._looked_at = self._now()
        self._batches.put((copy_context(), work))

    def look(self, elapsed: float, *, busy: bool) -> bool:
        """See what has become of its call in the seconds since the last time. ``busy``: whether
        others may have held it up. Whether it only waited, at this call or at several."""
        now = self._now()
        computed = min(now - self._looked_at, _MOST_A_LOOK)
        self._looked_at = now
        self.computed += computed
        waited = computed < _WAITING and not busy and not self._waits_for_processor()
        if self.calls != self._calls_looked_at:
            self._calls_looked_at, self._computed_before = self.calls, self.computed - computed
        elif computed < _WAITING:
            if waited:
                self.looks += 1
            else:
                self._held_up += elapsed
            return waited
        self.looks, self._held_up = 0, 0.0
        return waited

    def _waits_for_processor(self) -> bool:
        """Whether other processes hold it up, where the system tells that (Linux does)."""
        try:
            with open(f"/proc/self/task/{self._thread.native_id}/stat", "rb") as file:  # noqa: PTH123
                return file.read(256).rpartition(b")")[2].startswith(b" R")
        except OSError:
            return False

    @property
    def is_slow(self) -> bool:
        """Whether its call has had what one call may take."""
        return (
            self.looks >= _MAX_LOOKS
            or self._held_up > _HELD_UP_SECONDS
            or self.computed - self._computed_before > _CALL_SECONDS
        )

    def _now(self) -> float:
        """The processor time of its thread; the time, where the system does not tell that."""
        if self._clock is None:
            return time.monotonic()
        try:
            return time.clock_gettime(self._clock)
        except OSError:  # it has ended
            return self._looked_at

    def _serve(self) -> None:
        lost = False
        while not self.is_abandoned:
            try:
                context, work = self._batches.get(timeout=_IDLE_SECONDS)
            except Empty:
                try:
                    _idle.remove(self)
                except ValueError:
                    # Leased: a moment ago, or by a caller who never got to its calls, for want
                    # of stack or because of Ctrl-C.
                    if not lost:
                        lost = True
                        continue
                return
            lost = False
            context.run(work, self)
            del context, work


_idle: list[_Helper] = []
_stuck: list[_Helper] = []


def _lease(waiting: int) -> _Helper | None:
    """A helper, for who has so many that wait; None if too many do."""
    while _idle and len(_stuck) + waiting < _MAX_STUCK:
        with suppress(IndexError):  # another thread was faster
            helper = _idle.pop()
            if helper.is_alive():
                return helper
    if len(_stuck) + waiting >= _MAX_STUCK:
        _stuck[:] = [helper for helper in _stuck if helper.is_alive()]
    return _Helper() if len(_stuck) + waiting < _MAX_STUCK else None
