"""The code of others runs with a time budget, in a thread beside; no caller waits longer. Pure.

A ``__repr__`` may ask a database, or wait for ever. Python cannot break such a call off, so a
helper thread makes it. One that does not answer in time is left to itself: it is a daemon, and
ends when its call does.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from contextvars import Context, copy_context
from queue import Empty, SimpleQueue
from threading import Thread
from time import monotonic
from typing import Final, TypeVar, cast
from weakref import ref

T = TypeVar("T")

_CALL_SECONDS: Final = 0.05
_TOTAL_SECONDS: Final = 0.1
_SLOW_SECONDS: Final = 60.0
_IDLE_SECONDS: Final = 1.0
_MAX_STUCK: Final = 8


class TooSlowError(Exception):
    """The call was not made, or has not returned in time."""


class Timebox:
    """The time that one capture may spend on the code of others: 0.1 s, 0.05 s for one call.

    When a call took too long, no value of the same type is asked for a minute: a type that is
    always slow then costs less than a thousandth of the time, and one that was slow once, on a
    busy machine, comes back. While eight calls of the process have not returned, none is made.
    """

    def __init__(self) -> None:
        self._left = _TOTAL_SECONDS

    def call(self, owner: type, function: Callable[[], T]) -> T:
        """``function()``, which runs code of ``owner``, in a copy of the caller's context.

        Raises what it raises, :class:`TooSlowError`, or :class:`RuntimeError` where no thread
        can be started.
        """
        seconds = min(self._left, _CALL_SECONDS)
        if seconds <= 0 or _is_slow(owner):
            raise TooSlowError
        started = monotonic()
        try:
            return _lease().call(function, seconds)
        except TooSlowError:
            if seconds == _CALL_SECONDS:
                _remember_slow(owner)
            raise
        finally:
            self._left -= monotonic() - started


# By id, and not by the type itself: to hash it may run code of its metaclass.
_slow: dict[int, tuple[ref[type], float]] = {}


def _is_slow(owner: type) -> bool:
    known = _slow.get(id(owner))
    return known is not None and known[0]() is owner and monotonic() < known[1]


def _remember_slow(owner: type) -> None:
    key = id(owner)
    _slow[key] = ref(owner, lambda _: _slow.pop(key, None)), monotonic() + _SLOW_SECONDS


class _Helper:
    """A thread that makes one call at a time, for who has leased it."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[tuple[Context, Callable[[], object]]] = SimpleQueue()
        self._answers: SimpleQueue[tuple[object, BaseException | None]] = SimpleQueue()
        self._abandoned = False
        self._thread = Thread(target=self._serve, name="prefactor_core timebox", daemon=True)
        self._thread.start()

    def is_alive(self) -> bool:
        # Not so in the child of a fork, which has only the thread that forked.
        return self._thread.is_alive()

    def call(self, function: Callable[[], T], seconds: float) -> T:
        self._calls.put((copy_context(), function))
        try:
            result, error = self._answers.get(timeout=seconds)
        except BaseException as why:  # also Ctrl-C
            self._abandoned = True
            _stuck.append(self)
            if isinstance(why, Empty):
                raise TooSlowError from None
            raise
        _idle.append(self)
        if error is not None:
            raise error
        return cast("T", result)

    def _serve(self) -> None:
        lost = False
        while not self._abandoned:
            try:
                context, function = self._calls.get(timeout=_IDLE_SECONDS)
            except Empty:
                try:
                    _idle.remove(self)
                except ValueError:
                    # Leased: a moment ago, or by a caller who never got to its call, for want
                    # of stack or because of Ctrl-C.
                    if not lost:
                        lost = True
                        continue
                return
            lost = False
            try:
                self._answers.put((context.run(function), None))
            except BaseException as error:
                self._answers.put((None, error))
            del context, function


_idle: list[_Helper] = []
_stuck: list[_Helper] = []


def _lease() -> _Helper:
    while _idle:
        with suppress(IndexError):  # another thread was faster
            helper = _idle.pop()
            if helper.is_alive():
                return helper
    if len(_stuck) >= _MAX_STUCK:
        _stuck[:] = [helper for helper in _stuck if helper.is_alive()]
        if len(_stuck) >= _MAX_STUCK:
            raise TooSlowError
    return _Helper()
