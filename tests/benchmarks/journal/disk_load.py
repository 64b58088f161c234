"""``python -m benchmarks.journal.disk_load FOLDER``: fill the disk's queue.

Writes files of 64 MB and brings each to the disk, one after another, until the standard input
ends; then prints how many megabytes it has written in how many seconds. There are never more than
two files, and never more than 16 GB are written.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

_MEGABYTES = 64
_FILES = 256
_BLOCK = os.urandom(1 << 20)


def main(folder: Path) -> None:
    """Write until the standard input ends."""
    stopped = threading.Event()

    def wait_for_parent() -> None:
        # Without a buffer, whose lock would be missing at the end of the interpreter.
        while os.read(0, 1):
            pass
        stopped.set()

    threading.Thread(target=wait_for_parent, daemon=True).start()
    began, written = time.monotonic(), 0
    for number in range(_FILES):
        with (folder / f"load-{number % 2}").open("wb", buffering=0) as file:
            for _ in range(_MEGABYTES):
                if stopped.is_set():
                    break
                written += file.write(_BLOCK)
            os.fsync(file)
        if stopped.is_set():
            break
    sys.stdout.write(f"{written / 1e6} {time.monotonic() - began}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
