"""SignalCancellation: a signal that the program names cancels the body of the client."""

from __future__ import annotations

import signal
import threading
from collections import deque
from collections.abc import Callable, Sequence
from types import FrameType
from typing import TypeAlias

import anyio

from prefactor_core.agent.cancellation import leave_scope
from prefactor_core.exceptions import PrefactorValueError
from prefactor_core.queue.event_loop import EventLoop

Handler: TypeAlias = Callable[[int, FrameType | None], object] | int | None


class SignalCancellation:
    """While a client is open, each of ``signals`` cancels what is between
    :meth:`body_begins` and :meth:`body_ends`.

    ``received``: the one that did; None if none did. The program's own handlers are back after
    :meth:`restore`.

    Raises :class:`PrefactorValueError` outside of the main thread, where Python handles none.
    """

    def __init__(self, signals: Sequence[signal.Signals]) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise PrefactorValueError(
                "cancel_on_signals works in the main thread only: leave it out elsewhere"
            )
        self.received: signal.Signals | None = None
        self._signals = signals
        self._event_loop: EventLoop | None = None
        self._previous: dict[signal.Signals, Handler] = {}
        self._scope: anyio.CancelScope | None = None
        self._restored = False
        self._waiting: deque[signal.Signals] = deque()
        # Those that came when there was nothing left to cancel.
        self._late: list[signal.Signals] = []

    def body_begins(self, event_loop: EventLoop) -> None:
        """From here on the signals cancel."""
        self._event_loop = event_loop
        self._scope = anyio.CancelScope()
        self._scope.__enter__()
        for number in self._signals:
            self._previous[number] = signal.signal(number, self._handle)

    def body_ends(self, error: BaseException | None) -> BaseException | None:
        """What is left of ``error`` when the cancellation by a signal is taken off."""
        scope, self._scope = self._scope, None
        return error if scope is None else leave_scope(scope, error)

    def restore(self) -> None:
        """Put back the handlers that were there before; a second call does nothing.

        Who was told to stop only during the drain is told again: there was no body any more
        that could have heard it.
        """
        self._restored = True
        for number in self._previous:
            # What the program has put in place since is its own.
            if signal.getsignal(number) == self._handle:
                self._put_back(number)
        self._heed()
        late, self._late = self._late, []
        for number in late:
            signal.raise_signal(number)

    def _put_back(self, number: int) -> None:
        handler = self._previous[signal.Signals(number)]
        signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # This runs in the middle of anything: only what is safe there.
        assert self._event_loop is not None
        if self._restored or self._event_loop.is_forked:
            # Who came after this one has put it back too late; or a fork has its own way to go.
            self._put_back(number)
            signal.raise_signal(number)
            return
        self._waiting.append(signal.Signals(number))
        self._event_loop.run_soon(self._heed)

    def _heed(self) -> None:
        while self._waiting:
            number = self._waiting.popleft()
            if self._scope is not None and self.received is None:
                self.received = number
                self._scope.cancel()
            elif self.received is None and number not in self._late:
                self._late.append(number)
