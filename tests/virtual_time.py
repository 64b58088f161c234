"""An asyncio event loop whose time jumps to the next timer instead of waiting for it.

Nothing outside of the loop may be waited for: while a thread or a socket is busy, the time
would run away.
"""

from __future__ import annotations

import asyncio
import selectors
from typing import Any


class _JumpingSelector(selectors.DefaultSelector):
    """Adds to a virtual clock what it is asked to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.time = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("every task waits, and no timer is set: the test hangs")
        self.time += max(0.0, timeout)
        return super().select(0)


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop on virtual time; read it with ``anyio.current_time()``."""

    def __init__(self, *args: Any) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.time
