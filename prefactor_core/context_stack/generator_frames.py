"""Frames of generators: which one holds a span across its yields, and whether it has yielded. Pure.

The entering of a span has no access to the generator object, but to its frame.
"""

from __future__ import annotations

from contextlib import AsyncExitStack, ExitStack
from dis import opmap
from inspect import CO_ASYNC_GENERATOR, CO_GENERATOR, CO_ITERABLE_COROUTINE
from types import FrameType
from typing import Final

GENERATOR: Final = CO_GENERATOR | CO_ASYNC_GENERATOR
"""The flags of code whose frame may hold a span across a yield."""

ENTER_CONTEXT: Final = ExitStack.enter_context.__code__
ENTER_ASYNC_CONTEXT: Final = AsyncExitStack.enter_async_context.__code__

_BLOCK_PACKAGES: Final = frozenset(
    {"anyio", "contextlib", "pluggy", "pytest_asyncio", "pytest_trio", "_pytest"}
)
"""Packages that use a generator as a block (context managers, fixtures, wrappers of hooks): a span
that it enters before its one yield is meant for the code that runs during that yield."""

# CPython since 3.11 has this instruction after each yield and await. None for other Pythons.
_RESUME: Final = opmap.get("RESUME")
_AFTER_YIELD: Final = 1

# The globals of code that ``exec`` runs may have a ``get`` of their own.
_GET: Final = dict[str, object].get


def holder_of(frame: FrameType | None) -> FrameType | None:
    """The frame of the generator that holds a span, entered in ``frame``, across its yields; None
    if none does. ``frame`` is that of a generator or of an exit stack."""
    while frame is not None:
        if _package(frame) not in _BLOCK_PACKAGES:
            flags = frame.f_code.co_flags
            if not flags & GENERATOR or flags & CO_ITERABLE_COROUTINE:
                return None
            # A worker thread of anyio may ask a plain generator for an item: that is no block.
            consumer = None if frame.f_back is None else _package(frame.f_back)
            if consumer not in _BLOCK_PACKAGES or (consumer == "anyio" and flags & CO_GENERATOR):
                return frame
            # A block: go on with the frame that has the ``with``, perhaps of a generator, too.
        frame = frame.f_back
    return None


def _package(frame: FrameType) -> str:
    return str(_GET(frame.f_globals, "__name__")).partition(".")[0]


def is_at_yield(frame: FrameType) -> bool:
    """Whether a generator has yielded, and its consumer has not asked for the next item."""
    if frame.f_back is not None:
        return False  # it runs, in this or another thread
    code = frame.f_code
    if code.co_flags & CO_GENERATOR:
        return True
    # An asynchronous one may also have stopped at an await. The next instruction says which.
    steps = code.co_code[frame.f_lasti : frame.f_lasti + 4]
    for step, argument in zip(steps[::2], steps[1::2], strict=True):
        if step == _RESUME:
            return argument & 3 == _AFTER_YIELD
    return False
