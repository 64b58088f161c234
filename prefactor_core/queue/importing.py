"""import_in_thread: slow imports, beside the event loop."""

from __future__ import annotations

import os
import sys
from functools import partial
from importlib import import_module
from threading import RLock
from types import ModuleType
from typing import Final

from prefactor_core.queue.daemon_thread import DaemonThread

_thread: Final = DaemonThread("prefactor-import", idle_seconds=0)
_importing: Final = RLock()

if hasattr(os, "register_at_fork"):
    # A module that is half imported when another thread forks stays half imported in the child,
    # which would wait for it for ever.
    os.register_at_fork(
        before=_importing.acquire,
        after_in_parent=_importing.release,
        after_in_child=_importing.release,
    )


async def import_in_thread(name: str) -> None:
    """Import a module in a daemon thread, unless it is imported already.

    Raises the exceptions of the import.
    """
    module = sys.modules.get(name)
    if module is None or getattr(module.__spec__, "_initializing", False):
        await _thread.call(partial(_import, name))


def _import(name: str) -> ModuleType:
    with _importing:
        return import_module(name)
