"""The command ``view``: the pages of a database file, without writing to it."""

from __future__ import annotations

from urllib.parse import quote

import click

from prefactor_core.cli.terminal import run, say
from prefactor_core.operations.identifiers import is_pfid


@click.command()
@click.argument("file", type=click.Path(dir_okay=False))
@click.argument("words", metavar="[RUN]", default="")
@click.option("--open/--no-open", "opens", default=True, help="Open the page in a browser.")
def view(file: str, words: str, *, opens: bool) -> None:
    """Show the runs in the database file FILE in a browser, and change nothing in it.

    RUN is the id of a run, or any text that the list of runs is searched for: the beginning of an
    id, the name of an agent, a part of a payload. Ctrl-C ends the command.
    """
    run(_view, file, words, opens)


async def _view(file: str, words: str, opens: bool) -> None:
    from prefactor_core.local import server  # its imports are slow: no other command pays for them

    page = f"runs/{words}" if is_pfid(words) else f"?q={quote(words, safe='')}" if words else ""
    async with server.open_site(file, port=None, read_only=True) as site:
        say(f"{file}: {site.url}{page}  (Ctrl-C ends this)")
        if opens:
            click.launch(f"{site.url}{page}")
        await server.serve(site)
