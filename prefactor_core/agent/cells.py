"""Cells of a notebook: the run and the span that one leaves open are current in the next.

IPython and Jupyter run the cells without ``await`` in one context. A cell with ``await`` is a task
of its own, which begins with a copy of that context, and whose changes end with it. So the current
run and span of such a task are carried over to the context of the cells when the cell ends.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from contextvars import Context
from typing import Any

from prefactor_core.agent.instance import context_runs
from prefactor_core.context_stack.entries import innermost_entry

# By thread: the subshells of Jupyter run their cells in threads of their own.
_running = threading.local()


def follow(shell: Any) -> None:
    """Carry over what the cells of ``shell`` make current, from the running one on.

    ``shell``: an ``InteractiveShell`` of IPython, or the kernel's, which is one.
    """
    # The shell calls both for every cell: the first in the task of the cell, if it is one, and the
    # second in the context of the cells. It registers no function twice.
    shell.events.register("pre_execute", _begin)
    shell.events.register("post_execute", _end)
    if not hasattr(_running, "context"):
        _begin()


def _begin() -> None:
    _running.context = _context_of_task()


def _end() -> None:
    # Kept until the next cell begins: a cell that runs another one ends after that.
    context: Context | None = getattr(_running, "context", None)
    if context is not None:
        context_runs.set(context.get(context_runs, ()))
        innermost_entry.set(context.get(innermost_entry))


def _context_of_task() -> Context | None:
    """The context of the running task itself, not a copy; None where no asyncio task runs."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        return None  # the shell of IPython runs a loop only in cells with await
    if task is None:
        return None
    if sys.version_info >= (3, 12):
        return task.get_context()
    # Python 3.11 has no other way to it.
    return next((held for held in gc.get_referents(task) if isinstance(held, Context)), None)
