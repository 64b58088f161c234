"""The command ``view``: the pages of a database file, without writing to it."""

from __future__ import annotations

import click

from prefactor_core.cli.finding import find_run
from prefactor_core.cli.terminal import run, say
from prefactor_core.client.connection import open_api
from prefactor_core.config.http import LOCAL_PREFIX, HttpClientConfig
from prefactor_core.local import open_local_prefactor


@click.command()
@click.argument("file", type=click.Path(dir_okay=False))
@click.argument("words", metavar="[RUN]", default="")
@click.option("--open/--no-open", "opens", default=True, help="Open the page in a browser.")
def view(file: str, words: str, *, opens: bool) -> None:
    """Show the runs in the database file FILE in a browser, and change nothing in it.

    RUN is the id of a run or its beginning, or the id or name of an agent: its newest run. Without
    it the list of all runs opens. Ctrl-C ends the command.
    """
    run(_view, file, words, opens)


async def _view(file: str, words: str, opens: bool) -> None:
    from prefactor_core.local import server  # its imports are slow: no other command pays for them

    page = f"runs/{await _run_id(file, words)}" if words else ""
    async with server.open_site(file, port=None, read_only=True) as site:
        say(f"{file}: {site.url}{page}  (Ctrl-C ends this)")
        if opens:
            click.launch(f"{site.url}{page}")
        await server.serve(site)


async def _run_id(file: str, words: str) -> str:
    config = HttpClientConfig(f"{LOCAL_PREFIX}{file}")
    async with (
        open_local_prefactor(file, read_only=True) as app,
        open_api(config, app) as api,
    ):
        return (await find_run(api, words)).id
