"""Time that jumps to the next timer instead of waiting for it, on asyncio and on trio.

Nothing outside of the loop may be waited for: while a thread or a socket is busy, the time
would run away.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable
from typing import Any

AtTurn = Callable[[], object]
"""Called at each turn of the loop, between two steps of its tasks."""


def virtual_time(backend: str, at_turn: AtTurn | None = None) -> dict[str, Any]:
    """The options with which ``anyio.run`` on this backend has virtual time."""
    if backend == "asyncio":
        return {"loop_factory": lambda: VirtualTimeLoop(at_turn)}

    from trio.abc import Instrument
    from trio.testing import MockClock

    class Turns(Instrument):
        def after_io_wait(self, timeout: float) -> None:
            if at_turn is not None:
                at_turn()

    return {"clock": MockClock(autojump_threshold=0), "instruments": [Turns()]}


class _JumpingSelector(selectors.DefaultSelector):
    """Adds to a virtual clock what it is asked to wait."""

    def __init__(self, at_turn: AtTurn | None) -> None:
        super().__init__()
        self.time = 0.0
        self._at_turn = at_turn

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("every task waits, and no timer is set: the test hangs")
        self.time += max(0.0, timeout)
        if self._at_turn is not None:
            self._at_turn()
        return super().select(0)


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop on virtual time; read it with ``anyio.current_time()``."""

    def __init__(self, at_turn: AtTurn | None = None) -> None:
        self._jumping = _JumpingSelector(at_turn)
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.time
