"""SignalCancellation: the signals of ``cancel_on_signals`` cancel the body of the client."""

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
    """Lets each of ``signals`` cancel the code between :meth:`body_begins` and :meth:`body_ends`.

    ``received``: the signal that cancelled it; None if none did. :meth:`restore` puts the
    program's own handlers back.

    Raises :class:`PrefactorValueError` outside the main thread, where Python handles no signals.
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
        self._arrived: deque[signal.Signals] = deque()
        # Signals that arrived after the body: there was nothing left to cancel.
        self._late: list[signal.Signals] = []

    def body_begins(self, event_loop: EventLoop) -> None:
        """Install the handlers: from now on, the signals cancel."""
        self._event_loop = event_loop
        self._scope = anyio.CancelScope()
        self._scope.__enter__()
        for number in self._signals:
            self._previous[number] = signal.signal(number, self._handle)

    def body_ends(self, error: BaseException | None) -> BaseException | None:
        """Leave the cancel scope. Gives ``error`` without the cancellation by a signal."""
        scope, self._scope = self._scope, None
        return error if scope is None else leave_scope(scope, error)

    def restore(self) -> None:
        """Put the previous handlers back; a second call does nothing.

        A signal that arrived during the drain only is raised again: no body could be cancelled.
        """
        self._restored = True
        for number in self._previous:
            # The program may have installed another handler since, which stays.
            if signal.getsignal(number) == self._handle:
                self._put_back(number)
        self._process_arrived()
        late, self._late = self._late, []
        for number in late:
            signal.raise_signal(number)

    def _put_back(self, number: int) -> None:
        handler = self._previous[signal.Signals(number)]
        signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # Runs between any two instructions of the main thread: only reentrant code is safe here.
        assert self._event_loop is not None
        if self._restored or self._event_loop.is_forked:
            # Another library has reinstalled this handler after restore(), or this is a fork: the
            # previous handler decides.
            self._put_back(number)
            signal.raise_signal(number)
            return
        self._arrived.append(signal.Signals(number))
        self._event_loop.run_soon(self._process_arrived)

    def _process_arrived(self) -> None:
        while self._arrived:
            number = self._arrived.popleft()
            if self._scope is not None and self.received is None:
                self.received = number
                self._scope.cancel()
            elif self.received is None and number not in self._late:
                self._late.append(number)
