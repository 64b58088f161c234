"""Points at which a process is killed: around each step of its journal, and of each request.

No code of the package is changed: the profiler of Python says where the process is.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import threading
from collections import Counter
from types import CodeType, FrameType
from typing import Any

from support.crash_scripts import Kill

from prefactor_core.api.client import AsgiApp, AsgiMessage
from prefactor_core.export.replay import Replay
from prefactor_core.journal.adopted import AdoptedJournal
from prefactor_core.journal.directory import Hold, JournalDirectory
from prefactor_core.journal.reader import JournalReader
from prefactor_core.journal.segments import Segments
from prefactor_core.journal.writer import JournalWriter

# By name: the hash of code is computed anew each time, which takes longer than the call.
_WATCHED: dict[str, CodeType] = {
    function.__qualname__: function.__code__
    for function in (
        JournalDirectory.open,
        JournalDirectory.create,
        JournalWriter.append,
        JournalWriter.opened,
        JournalWriter.discarded,
        JournalWriter.identified,
        JournalWriter.sending,
        JournalWriter.settled,
        JournalWriter.set_aside,
        JournalWriter.withdrawn,
        JournalWriter.close,
        Segments.begin,
        Hold.remove,
        Hold.release,
        JournalReader.scan,
        JournalReader.entries_in_turns,
        AdoptedJournal.read,
        AdoptedJournal.take_over,
        Replay.run,
    )
}
_SYSTEM: dict[object, str] = {
    os.write: "write",
    os.unlink: "unlink",
    os.rename: "rename",
    os.mkdir: "mkdir",
    os.rmdir: "rmdir",
    os.ftruncate: "ftruncate",
    fcntl.flock: "flock",
}
"""The calls that change a folder."""


class Points:
    """Counts the points of this process, and kills it at one.

    Names: ``JournalWriter.append call``, ``... return`` for the functions above, ``write before``,
    ``... after`` for calls of the system; ``sent`` when the API has done a request and its answer
    is not there yet, ``answered`` when it is. ``note``: gets the name of the point of death.
    """

    def __init__(self, kill: Kill | None, note: str) -> None:
        self._counts: Counter[str] = Counter()
        self._kill = kill
        self._note = note
        self._total = 0
        self._own: set[CodeType] = set()

    def watch(self, *own: CodeType) -> None:
        """Begin, in all threads that are started from now on. ``own``: code that is no point."""
        if self._kill is None:
            return
        self._own = {*own, Points._die.__code__}
        threading.setprofile(self._profile)
        sys.setprofile(self._profile)

    def reach(self, name: str) -> None:
        """Count a point, and die if it is the one."""
        self._total += 1
        self._counts[name] += 1
        kill = self._kill
        if kill is not None:
            number = self._total if kill.point is None else self._counts[name]
            if kill.number == number and kill.point in (None, name):
                self._die(name)

    def _die(self, name: str) -> None:
        file = os.open(self._note, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(file, name.encode())
        os.kill(os.getpid(), signal.SIGKILL)

    def _profile(self, frame: FrameType, event: str, argument: Any) -> None:
        if event in ("call", "return"):
            code = frame.f_code
            if _WATCHED.get(code.co_qualname) is code:
                self.reach(f"{code.co_qualname} {event}")
        elif argument.__name__ in _NAMES and frame.f_code not in self._own:
            name = _SYSTEM.get(argument)
            if name is not None:
                self.reach(f"{name} {'before' if event == 'c_call' else 'after'}")


_NAMES = {*_SYSTEM.values()}


class KillingApi:
    """An API that does what ``app`` does, and where the process may die in between."""

    def __init__(self, app: AsgiApp, points: Points) -> None:
        self._app = app
        self._points = points

    async def __call__(self, scope: AsgiMessage, receive: Any, send: Any) -> None:
        async def note(message: AsgiMessage) -> None:
            if message["type"] == "http.response.start":
                self._points.reach("sent")
            await send(message)

        await self._app(scope, receive, note)
        self._points.reach("answered")
