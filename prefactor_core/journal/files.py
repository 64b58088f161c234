"""open_file: a file that nobody but its owner reads or writes."""

from __future__ import annotations

import os
from pathlib import Path


def open_file(path: Path, flags: int = os.O_WRONLY | os.O_APPEND | os.O_CREAT) -> int:
    """Open a file and return its descriptor, which no program that is started inherits.

    A new file has the mode 0600, whatever the umask. A symbolic link is not followed, and raises
    an OSError.
    """
    file = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    if flags & os.O_CREAT:
        try:
            os.fchmod(file, 0o600)
        except BaseException:
            os.close(file)
            raise
    return file
