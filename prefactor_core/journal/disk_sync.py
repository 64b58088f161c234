"""DiskSync: brings the files of a journal to the disk, in a thread."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Final

import anyio

_WAIT: Final = 0.02
"""Seconds from the first append that is not on the disk to its synchronisation."""


class DiskSync:
    """Synchronises the newest file 20 ms after an append, and with it the appends of these 20 ms.

    Its methods, but :meth:`synced`, are for any thread that holds the lock of recording; it closes
    the files. ``soon`` calls a function in the event loop. ``failed`` is called there if a
    synchronisation fails: what was appended to the file may not be on the disk, and no later
    success says that it is. ``synchronise``: the system's call for one descriptor.

    The thread begins with the first append, and is a daemon: no exit waits for a slow disk.
    """

    def __init__(
        self,
        folder: Path,
        soon: Callable[[Callable[[], object]], object],
        failed: Callable[[OSError], object],
        synchronise: Callable[[int], None] = os.fdatasync,
    ) -> None:
        self._folder = folder
        self._soon = soon
        self._failed = failed
        self._synchronise = synchronise
        self._wake, self._closing = Event(), Event()
        self._is_due = False
        self._file = -1
        self._is_new = False
        # Files that are followed by others: synchronised once more, then closed.
        self._followed: list[int] = []
        self._appended = self._synced = 0
        self._progress: anyio.Event | None = None
        self._thread: Thread | None = None

    def appended(self) -> None:
        """Note an append to the newest file."""
        self._appended += 1
        if not self._is_due:
            self._is_due = True
            if self._thread is None:
                self._thread = Thread(target=self._serve, name="prefactor-journal", daemon=True)
                self._thread.start()
            self._wake.set()

    def began(self, file: int, before: int) -> None:
        """Take over a new file, which follows the file ``before``, if that is one."""
        if before >= 0:
            self._followed.append(before)
        self._file, self._is_new = file, True
        self.appended()

    async def synced(self) -> None:
        """Return when all that is appended so far is on the disk, or is known not to be."""
        goal = self._appended
        while self._synced < goal and not self._closing.is_set():
            if self._progress is None:
                self._progress = anyio.Event()
            await self._progress.wait()

    def close(self) -> None:
        """Synchronise once more, close the files, and end the thread. Waits for nothing."""
        self._closing.set()
        self._wake.set()
        self._notify()

    def _serve(self) -> None:
        while True:
            self._wake.wait()
            is_closing = self._closing.wait(_WAIT)
            self._wake.clear()
            # In this order: what is appended from now on makes it due again.
            self._is_due = False
            appended = self._appended
            try:
                self._synchronise_all()
            except OSError as error:
                self._soon(partial(self._failed, error))
            self._synced = appended
            self._soon(self._notify)
            if is_closing:
                return

    def _synchronise_all(self) -> None:
        if self._is_new:
            self._is_new = False
            folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        while self._followed:
            file = self._followed.pop()
            try:
                self._synchronise(file)
            finally:
                os.close(file)
        self._synchronise(self._file)

    def _notify(self) -> None:
        if self._progress is not None:
            self._progress.set()
            self._progress = None
