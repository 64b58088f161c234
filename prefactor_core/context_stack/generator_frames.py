"""Frames of generators: which one holds what is entered in it, and whether it is at a yield. Pure.

A generator's own objects are not at hand where a span is entered; its frame is, and says enough.
"""

from __future__ import annotations

from contextlib import AsyncExitStack, ExitStack
from dis import opmap
from inspect import CO_ASYNC_GENERATOR, CO_GENERATOR, CO_ITERABLE_COROUTINE
from types import FrameType
from typing import Final

GENERATOR: Final = CO_GENERATOR | CO_ASYNC_GENERATOR
"""The flags of code whose frame may hold what is entered in it across a yield."""

ENTER_CONTEXT: Final = ExitStack.enter_context.__code__
ENTER_ASYNC_CONTEXT: Final = AsyncExitStack.enter_async_context.__code__

_BLOCK_PACKAGES: Final = frozenset(
    {"anyio", "contextlib", "pluggy", "pytest_asyncio", "pytest_trio", "_pytest"}
)
"""Packages that take a generator for a block: what it enters before its one yield is meant for
those who run during that (context managers, fixtures, wrappers of hooks)."""

# None where Python has other instructions: CPython since 3.11 has it after each yield and await.
_RESUME: Final = opmap.get("RESUME")
_AFTER_YIELD: Final = 1


def holder_of(frame: FrameType | None) -> FrameType | None:
    """The generator that holds across its yields what is entered in ``frame``, that a generator's
    or of an exit stack; None if none does."""
    while frame is not None:
        if _package(frame) not in _BLOCK_PACKAGES:
            flags = frame.f_code.co_flags
            if not flags & GENERATOR or flags & CO_ITERABLE_COROUTINE:
                return None
            # A thread of anyio's may ask a plain generator for an item.
            taker = None if frame.f_back is None else _package(frame.f_back)
            if taker not in _BLOCK_PACKAGES or (taker == "anyio" and flags & CO_GENERATOR):
                return frame
            # It stands for a block, in the frame that has the ``with``: maybe a generator's, too.
        frame = frame.f_back
    return None


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__")).partition(".")[0]


def is_at_yield(frame: FrameType) -> bool:
    """Whether a generator has yielded, and waits to be asked for more."""
    if frame.f_back is not None:
        return False  # it runs, in whichever thread
    code = frame.f_code
    if code.co_flags & CO_GENERATOR:
        return True
    # An asynchronous one may also wait for something. It has stopped before the instruction that
    # says what it goes on after.
    steps = code.co_code[frame.f_lasti : frame.f_lasti + 4]
    for step, argument in zip(steps[::2], steps[1::2], strict=True):
        if step == _RESUME:
            return argument & 3 == _AFTER_YIELD
    return False
