"""The cost of a span, measured in rounds on the runner's command; standard library only.

The runner's commands interleave the rounds of two drivers, so that both meet the same machine.
"""

from __future__ import annotations

import cProfile
import gc
import inspect
import json
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import TypeAlias

from job import Cost

SPANS = 240
"""Spans of a round, of two operations at most. Below 500, neither exporter begins by itself."""

DEPTH = 10
"""Levels of the nested form."""

Form: TypeAlias = Callable[[int], Awaitable[None] | None]
"""Records so many spans; the forms that wait are coroutine functions."""

_DRIVERS = Path(__file__).parent


async def measure_rounds(
    forms: dict[str, Form], flush: Callable[[], Awaitable[object]], package: Path
) -> None:
    """For each line of standard input, the name of a form, record a round and write its cost.

    Each round is flushed after its clock has stopped: the cost is that of recording alone.
    ``package``: the folder of the package whose files are counted.
    """
    counted: dict[str, tuple[float, int] | tuple[None, None]] = {}
    for name, form in forms.items():
        await _record(form)
        await flush()
        # The loop's turns in a form that waits would be counted, too.
        waits = inspect.iscoroutinefunction(form)
        counted[name] = (None, None) if waits else _count(form, package)
        await flush()
    for line in sys.stdin:
        name = line.strip()
        cpu, wall = time.process_time(), time.perf_counter()
        await _record(forms[name])
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        await flush()
        calls, files = counted[name]
        cost = Cost(cpu / SPANS * 1e6, wall / SPANS * 1e6, calls, files)
        sys.stdout.write(json.dumps(asdict(cost)) + "\n")
        sys.stdout.flush()


async def _record(form: Form) -> None:
    waiting = form(SPANS)
    if waiting is not None:
        await waiting


def _count(form: Form, package: Path) -> tuple[float, int]:
    """Python and builtin calls of a span, without the driver's own; files of the package."""
    profile = cProfile.Profile()
    gc.disable()  # collecting calls the finalizers of other objects
    try:
        profile.enable()
        form(SPANS)
        profile.disable()
    finally:
        gc.enable()
    calls = 0
    files: set[Path] = set()
    for function in profile.getstats():
        if isinstance(function.code, str):  # a builtin
            calls += 0 if "_lsprof.Profiler" in function.code else function.callcount
            continue
        file = Path(function.code.co_filename)
        if not file.is_relative_to(_DRIVERS):
            calls += function.callcount
        if file.is_relative_to(package):
            files.add(file)
    return calls / SPANS, len(files)
