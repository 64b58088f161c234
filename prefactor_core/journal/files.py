"""The files of a journal, which nobody but their owner reads or writes."""

from __future__ import annotations

import os
from contextlib import suppress
from errno import EINVAL
from pathlib import Path
from stat import S_ISREG


class Segment:
    """One file: its number, the first sequence number in it, its bytes, and how many of its
    operations are not settled."""

    __slots__ = ("first", "number", "size", "unsettled")

    def __init__(self, number: int, first: int, size: int, unsettled: int = 0) -> None:
        self.number = number
        self.first = first
        self.size = size
        self.unsettled = unsettled


def open_file(path: Path, flags: int = os.O_WRONLY | os.O_APPEND | os.O_CREAT) -> int:
    """Open a file and return its descriptor, which no program that is started inherits.

    A new file has the mode 0600, whatever the umask. What is no file raises an OSError: a symbolic
    link, which is not followed, a folder, or a pipe, whose other end nobody waits for.
    """
    file = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    try:
        if not S_ISREG(os.fstat(file).st_mode):
            raise OSError(EINVAL, "it is no file", str(path))
        if flags & os.O_CREAT:
            os.fchmod(file, 0o600)
    except BaseException:
        os.close(file)
        raise
    return file


def close_file(file: int) -> None:
    """Close a descriptor. An error of the disk is of no use to anybody then."""
    with suppress(OSError):
        os.close(file)


def cut(file: int, written: int) -> None:
    """Cut off the last bytes, a part of a record. Not to a size that was noted: an interrupted
    write may not be in it."""
    os.ftruncate(file, os.fstat(file).st_size - written)


def file_name(number: int) -> str:
    """The name of a segment."""
    return f"{number:06}.log"
