"""Something else in the middle of what the package does: a signal's handler, a finaliser."""

from __future__ import annotations

import dis
import gc
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import prefactor_core

PACKAGE = str(Path(prefactor_core.__file__).parent)


@cache
def _after_calls(code: CodeType) -> frozenset[int]:
    """What is done next after a call, or a jump back."""
    found: set[int] = set()
    called = False
    for instruction in dis.get_instructions(code):
        if called:
            found.add(instruction.offset)
        called = instruction.opname.startswith(("CALL", "JUMP_BACKWARD"))
    return frozenset(found)


@contextmanager
def in_the_middle(at: int, action: Callable[[], object]) -> Generator[None]:
    """Call ``action`` at the place of this number, in code of the package. It may raise.

    The places are those where CPython looks whether a signal has come: where a function begins,
    after the call of one that is written in C, and at a jump back.
    """
    left = at
    has_called: set[FrameType | None] = set()

    def arrive() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            sys.settrace(None)
            action()
            sys.settrace(on_call)

    def tracer_of(places: frozenset[int]) -> Any:
        def in_frame(frame: FrameType, event: str, argument: object) -> Any:
            if event == "opcode" and frame.f_lasti in places:
                if frame not in has_called:
                    arrive()
                has_called.discard(frame)
            return in_frame

        return in_frame

    def on_call(frame: FrameType, event: str, argument: object) -> Any:
        has_called.add(frame.f_back)
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        # Python itself cannot say whether it has entered a block or left it then.
        if frame.f_code.co_qualname not in ("SpanContext.__exit__", "SpanContext.__aexit__"):
            arrive()
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        # Looked up once for a call: the hash of code is computed anew each time.
        return tracer_of(_after_calls(frame.f_code))

    before = sys.gettrace()
    # A finaliser that is interrupted raises nothing to anybody, and closes nothing.
    gc.disable()
    sys.settrace(on_call)
    try:
        yield
    finally:
        sys.settrace(before)
        gc.enable()
