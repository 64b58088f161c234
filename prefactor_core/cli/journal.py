"""The commands about journals: ``journal ls | show | replay | discard DIR``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from prefactor_core.cli.terminal import say
from prefactor_core.journal.directory import JournalDirectory


@click.group()
def journal() -> None:
    """Look at journals, deliver what they hold, or remove them.

    DIR is the directory that open_prefactor(journal=DIR) or PREFACTOR_JOURNAL names. It has a
    journal for each process that recorded there.
    """


_directory = click.argument("directory", metavar="DIR")
_name = click.argument("name", metavar="[NAME]", default="")
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for a program.")


def journals_in(directory: str, name: str = "") -> list[Path]:
    """The journals in ``directory``, oldest first; only the one whose name begins with ``name``."""
    folder = Path(directory)
    if not folder.is_dir():
        what = "a file" if folder.exists() else "not there"
        raise click.ClickException(
            f"{directory!r} is {what}: give the directory that open_prefactor(journal=...) or "
            "PREFACTOR_JOURNAL names"
        )
    if folder.suffix == ".journal":
        raise click.ClickException(
            f"{directory!r} is one journal: give its directory, {str(folder.parent)!r}, and its "
            f"name, {folder.stem}"
        )
    found = JournalDirectory(folder).journals()
    if not name:
        return found
    named = [path for path in found if path.name.startswith(name)]
    if len(named) != 1:
        raise click.ClickException(
            f"{len(named) or 'no'} journals in {directory!r} begin with {name!r}: see 'journal ls "
            f"{directory}' for their names"
        )
    return named
