"""The journals that a command is about; and which of them it may touch."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

import click

from prefactor_core.exceptions import PrefactorValueError
from prefactor_core.journal.directory import Hold, JournalDirectory, hold
from prefactor_core.journal.locks import locks_work

IN_USE: Final = "a process has it"
GONE: Final = "it is gone"
"""Reasons to leave a journal alone that are none to worry: another process delivers it."""

_QUIET: Final = 90.0
"""Seconds: a living process appends to its journal every 30 seconds at least."""


def journals(directory: str, name: str = "") -> list[Path]:
    """The journals in ``directory``, oldest first; only the one whose name begins with ``name``."""
    if not directory:
        raise click.ClickException(
            "there is no DIR: give the folder that open_prefactor(journal=...) names, or set "
            "PREFACTOR_JOURNAL"
        )
    folder = Path(directory)
    if folder.suffix == ".journal":
        raise click.ClickException(
            f"{directory!r} is one journal: give its folder, {str(folder.parent)!r}, and its name"
        )
    if not folder.is_dir():
        what = "no folder" if folder.exists() else "not there"
        raise click.ClickException(
            f"{directory!r} is {what}: give the folder that open_prefactor(journal=...) or "
            "PREFACTOR_JOURNAL names"
        )
    try:
        next(folder.iterdir(), None)  # glob() takes a folder that may not be read for an empty one
        found = JournalDirectory(folder).journals()
    except OSError as error:
        raise click.ClickException(f"{directory!r} cannot be read: {error.strerror}") from None
    if not name:
        return found
    named = [path for path in found if path.name.startswith(name)]
    if len(named) != 1:
        raise click.ClickException(
            f"{len(named)} journals in {directory!r} have a name that begins with {name!r}: "
            f"'journal ls {directory}' has the names"
        )
    return named


def take(journal: Path) -> Hold | str:
    """Hold a journal whose process is dead; or return why it must be left alone."""
    try:
        held = hold(journal)
    except PrefactorValueError as error:
        return str(error)
    except OSError as error:
        return f"it cannot be locked ({error.strerror}): copy it to a disk that can be written"
    if held is None:
        return IN_USE if journal.exists() else GONE
    if not locks_work(journal.parent) and was_written_lately(journal, time.time()):
        held.release()
        return (
            "a process on another machine may have it, as it was written in the last "
            f"{_QUIET:.0f} s, and the locks of this file system do not tell; try again later"
        )
    return held


def is_in_use(journal: Path) -> bool | str:
    """Whether a process has a journal; or why that cannot be told."""
    try:
        held = hold(journal)
    except PrefactorValueError as error:
        return str(error)
    except OSError as error:
        return f"it cannot be locked ({error.strerror})"
    if held is None:
        return True
    held.release()
    return False if locks_work(journal.parent) else "the locks of this file system do not tell"


def was_written_lately(journal: Path, now: float) -> bool:
    """Whether a file of the journal was written so lately that its process may live.

    ``now``: seconds since 1970.
    """
    return any(now - file.stat().st_mtime < _QUIET for file in journal.glob("*.log"))
