"""The commands about journals: ``journal ls | show | replay | discard DIR``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import click
import msgspec

from prefactor_core.cli import journal_contents as contents
from prefactor_core.cli.journal_contents import Contents
from prefactor_core.cli.journal_tables import show_contents, show_list
from prefactor_core.cli.terminal import progress, say
from prefactor_core.exceptions import PrefactorCoreError, PrefactorValueError
from prefactor_core.journal.directory import Hold, JournalDirectory, hold
from prefactor_core.journal.reader import REFUSED_NAME, JournalReader


@click.group()
def journal() -> None:
    """Look at journals, deliver what they hold, or remove them.

    DIR is the folder that open_prefactor(journal=DIR) or PREFACTOR_JOURNAL names. It has a journal
    for each process that recorded there. NAME is the name of one of them, or its beginning.
    """


_directory = click.argument("directory", metavar="DIR")
_name = click.argument("name", metavar="[NAME]", default="")
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for a program.")


@journal.command("ls")
@_directory
@_json
def list_journals(directory: str, as_json: bool) -> None:
    """List the journals in DIR: who wrote them, and what they hold."""
    found = [contents for contents, _ in _read(_journals(directory))]
    if as_json:
        _print_json(found)
    elif found:
        show_list(found)
    else:
        say(f"there is no journal in {directory}")


@journal.command("show")
@_directory
@_name
@_json
@click.option("--payloads", is_flag=True, help="Show payloads and results, too.")
def show_journals(directory: str, name: str, as_json: bool, payloads: bool) -> None:
    """Show what the journals in DIR hold: what is pending, refused and open."""
    documents: list[dict[str, object]] = []
    for found, reader in _read(_journals(directory, name)):
        document = contents.document(found, reader, payloads)
        if as_json:
            documents.append(document)
        else:
            show_contents(found, document)
    if as_json:
        _print_json(documents)


@journal.command()
@_directory
@_name
@click.option("--refused", "only_refused", is_flag=True, help="Remove only what was refused.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def discard(directory: str, name: str, only_refused: bool, yes: bool) -> None:
    """Remove the journals of dead processes in DIR, with all that they hold; asks before."""
    with ExitStack() as stack:
        holds: dict[str, Hold] = {}
        for path in _journals(directory, name):
            held = _hold(path, must=bool(name))
            if held is not None:
                stack.callback(held.release)
                holds[path.stem] = held
        found = [
            contents
            for contents, _ in _read([held.path for held in holds.values()], in_use=False)
            if contents.refused or not only_refused
        ]
        if not found:
            say(f"there is nothing to discard in {directory}")
            return
        show_list(found)
        _confirm(found, only_refused, yes)
        for contents in found:
            held = holds[contents.name]
            if not only_refused:
                held.remove()
            else:
                (held.path / REFUSED_NAME).unlink()


def _journals(directory: str, name: str = "") -> list[Path]:
    """The journals in ``directory``, oldest first; only the one whose name begins with ``name``."""
    folder = Path(directory)
    if not folder.is_dir():
        what = "a file" if folder.exists() else "not there"
        raise click.ClickException(
            f"{directory!r} is {what}: give the folder that open_prefactor(journal=...) or "
            "PREFACTOR_JOURNAL names"
        )
    if folder.suffix == ".journal":
        raise click.ClickException(
            f"{directory!r} is one journal: give its folder, {str(folder.parent)!r}, and its name"
        )
    try:
        found = JournalDirectory(folder).journals()
    except OSError as error:
        raise click.ClickException(f"{directory!r} cannot be read: {error.strerror}") from None
    if not name:
        return found
    named = [path for path in found if path.name.startswith(name)]
    if len(named) != 1:
        count = f"{len(named)} journals" if named else "no journal"
        raise click.ClickException(
            f"{count} in {directory!r} begin with {name!r}: 'journal ls {directory}' has the names"
        )
    return named
