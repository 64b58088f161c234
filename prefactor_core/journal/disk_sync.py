"""DiskSync: brings the files of a journal to the disk, in a thread."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Final

import anyio

from prefactor_core.journal.files import close_file

_WAIT: Final = 0.02
"""Seconds from the first append that is not on the disk to its synchronisation."""


class DiskSync:
    """Synchronises the newest file 20 ms after an append, and with it the appends of these 20 ms.

    ``soon`` calls a function in the event loop. ``failed(error, number)`` is called there if a
    synchronisation fails: what was appended to that file may not be on the disk, and no later
    success says that it is. ``synchronise``: the system's call for one descriptor.

    ``files``: the descriptors that are not closed yet, each with the number of its file, the newest
    last. Who writes appends the next one; from then on nothing is written to those before it. The
    thread closes them. ``through``: the number of the last file that was synchronised once.

    The thread is a daemon: no exit waits for a slow disk.
    """

    def __init__(
        self,
        folder: Path,
        soon: Callable[[Callable[[], object]], object],
        failed: Callable[[OSError, int], object],
        synchronise: Callable[[int], None] = os.fdatasync,
    ) -> None:
        self.files: deque[tuple[int, int]] = deque()
        self.through = 0
        self._folder = folder
        self._soon = soon
        self._failed = failed
        self._synchronise = synchronise
        # No lock: a finaliser may close the journal in the middle of any of these calls.
        self._wake = SimpleQueue[None]()
        self._is_idle = self._is_closing = False
        self._appended = self._synced = 0
        self._number_failed = 0
        self._progress: anyio.Event | None = None

    def start(self) -> None:
        """Start the thread. Raises RuntimeError if the system has none to give."""
        Thread(target=self._serve, name="prefactor-journal", daemon=True).start()

    def appended(self) -> None:
        """Note an append to the newest file, after it; the caller holds the lock of recording."""
        self._appended += 1
        # Read after the count is written, as the thread reads the count after it has become idle:
        # one of the two sees the other.
        if self._is_idle:
            self._wake.put(None)

    async def synced(self) -> None:
        """Return when all that is appended so far is on the disk, or is known not to be; in the
        thread of the event loop."""
        goal = self._appended
        if self._synced < goal:
            self._wake.put(None)  # an append that was interrupted has not done it
        while self._synced < goal:
            if self._progress is None:
                self._progress = anyio.Event()
            await self._progress.wait()

    def close(self) -> None:
        """Have the thread synchronise once more, close the files, and end. Waits for nothing."""
        self._is_closing = True
        self._wake.put(None)

    def _serve(self) -> None:
        is_last = False
        while not is_last:
            self._is_idle = True
            while self._appended == self._synced and not self._is_closing:
                self._wake.get()
            self._is_idle = False
            if not self._is_closing:
                time.sleep(_WAIT)
            # In this order: whatever is appended before the first is on the disk after the second.
            is_last, appended = self._is_closing, self._appended
            self._synchronise_all()
            self._synced = appended
            self._soon(self._notify)
        while self.files:
            close_file(self.files.popleft()[0])

    def _synchronise_all(self) -> None:
        while self.files:
            is_newest = len(self.files) == 1
            file, number = self.files[0]
            if number != self._number_failed:
                try:
                    if number > self.through:
                        self._synchronise_folder()
                    self._synchronise(file)
                    self.through = max(self.through, number)
                except OSError as error:
                    self._number_failed = number
                    self._soon(partial(self._failed, error, number))
            if is_newest:
                break
            # Only now: it was the last time for this file.
            close_file(self.files.popleft()[0])

    def _synchronise_folder(self) -> None:
        """Bring the name of a new file to the disk."""
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _notify(self) -> None:
        if self._progress is not None:
            self._progress.set()
            self._progress = None
