"""Foreign code runs with a budget of time, in helper threads; no caller waits longer.

A ``__repr__`` may query a database, or wait for ever. Python cannot interrupt such a call, so
helper threads make the calls. A helper that does not answer in time is abandoned: it is a daemon
thread, and ends with its call.
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
# Of the time that a call computes between two looks at most so much counts: more is due to code
# that nobody can interrupt, such as a garbage collection.
_MOST_A_LOOK: Final = 0.01
_IDLE_SECONDS: Final = 1.0
_MAX_STUCK: Final = 8


class TooSlowError(Exception):
    """The call was not made, or did not return in time."""


class Timebox:
    """The time that one capture may spend on foreign code.

    A call is given up after 6 ms of waiting (for a database, a lock) or 50 ms of computing; all
    calls together may compute for 250 ms. Only their own time counts: on a busy machine, or while
    another thread keeps the interpreter, the caller may wait longer. The caller looks at a call
    every 2 ms, and counts the processor time that it used and the looks that found it waiting.
    While other threads of the process compute, or no processor is free, the call may be waiting
    for these: it gets 0.25 s of the process's computing. On systems that do not report the
    processor time of a thread, the clock counts.

    Each call is judged alone: another thread makes the remaining calls while one waits. Calls that
    each wait for less than one look may together wait for 20 ms. While eight calls of the process
    have not returned, no further call is made.
    """

    def __init__(self) -> None:
        self._left = _TOTAL_SECONDS
        self._looks = _MAX_LOOKS
        self._waits = _MAX_WAITS

    def call(self, function: Callable[[], T]) -> T:
        """Return ``function()``, called in a copy of the caller's context.

        Raises the function's error, :class:`TooSlowError`, or :class:`RuntimeError` if no thread
        can be started.
        """
        ((result, error),) = self.call_all([function])
        if error is not None:
            raise error
        return cast("T", result)

    def call_all(
        self, functions: Sequence[Callable[[], object]]
    ) -> list[tuple[object, Exception | None]]:
        """Return the result or error of each function, in their order; the error of a slow one is
        a :class:`TooSlowError`.

        They are called in a copy of the caller's context, one after the other while none waits.
        Raises a ``BaseException`` that is no :class:`Exception`, such as Ctrl-C.
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
    """Calls that helpers take one after the other."""

    def __init__(self, functions: Sequence[Callable[[], object]]) -> None:
        self.outcomes: list[tuple[object, BaseException | None] | None] = [None] * len(functions)
        self._functions = functions
        self._numbers = deque(range(len(functions)))
        self._is_over = False
        self._ended: SimpleQueue[_Helper] = SimpleQueue()
        self._helpers: list[_Helper] = []

    def run(self, seconds: float, looks: int, waits: int) -> tuple[float, int, int]:
        """Wait for the calls; return how much is left of each of the three budgets.

        ``seconds``: of computing, in all. ``looks``: that find the same calls waiting.
        ``waits``: looks that find no call computing.
        """
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
                    continue  # it was abandoned, and has ended since
                self._helpers.remove(helper)
                helper.look(0.0, busy=True)
                seconds -= helper.computed
                _idle.append(helper)
                continue
            now, used = time.monotonic(), time.process_time()
            # Other threads compute, and may keep the interpreter.
            busy = used - last_used > (now - last) / 8
            idle = [helper.look(used - last_used, busy=busy) for helper in self._helpers]
            waits -= all(idle)
            last, last_used = now, used
            waiting = [helper for helper in self._helpers if helper.looks]
            if len(waiting) == len(self._helpers):
                looks -= 1
                # The remaining calls must not wait for these: double the helpers at each look.
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
        """Abandon the calls that have not returned."""
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
    """A thread that works at one batch at a time, leased by a caller.

    ``calls``: the number of calls made. ``looks``: how many looks in a row found it waiting in the
    same call. ``computed``: the seconds that it has computed for this batch, as of the last look.
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
        # False in a forked child, which has only the thread that forked.
        return self._thread.is_alive()

    def begin(self, work: Callable[[_Helper], None]) -> None:
        """Start ``work`` in a copy of the caller's context."""
        self.looks, self._held_up = 0, 0.0
        self._calls_looked_at = self.calls
        self.computed = self._computed_before = 0.0
        self._looked_at = self._now()
        self._batches.put((copy_context(), work))

    def look(self, used: float, *, busy: bool) -> bool:
        """Update its times; return whether it only waited, in one call or several.

        ``used``: the processor time of the process since the last look. ``busy``: whether other
        threads may have held it up.
        """
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
                self._held_up += used
            return waited
        self.looks, self._held_up = 0, 0.0
        return waited

    def _waits_for_processor(self) -> bool:
        """Whether it waits for a free processor, where the system reports that (Linux does)."""
        try:
            with open(f"/proc/self/task/{self._thread.native_id}/stat", "rb") as file:  # noqa: PTH123
                return file.read(256).rpartition(b")")[2].startswith(b" R")
        except OSError:
            return False

    @property
    def is_slow(self) -> bool:
        """Whether its call has used up the time of one call."""
        return (
            self.looks >= _MAX_LOOKS
            or self._held_up > _HELD_UP_SECONDS
            or self.computed - self._computed_before > _CALL_SECONDS
        )

    def _now(self) -> float:
        """Return the processor time of its thread, or the clock's time if that is not known."""
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
                    # Leased: a moment ago, or by a caller that never began its calls, because of a
                    # full stack or Ctrl-C.
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
    """Return a helper for a caller that has ``waiting`` others; None if too many are busy."""
    while _idle and len(_stuck) + waiting < _MAX_STUCK:
        with suppress(IndexError):  # another thread was faster
            helper = _idle.pop()
            if helper.is_alive():
                return helper
    if len(_stuck) + waiting >= _MAX_STUCK:
        _stuck[:] = [helper for helper in _stuck if helper.is_alive()]
    return _Helper() if len(_stuck) + waiting < _MAX_STUCK else None
