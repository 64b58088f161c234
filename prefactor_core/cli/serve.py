"""The command ``serve``: the local Prefactor and its pages, for a browser and for agents."""

from __future__ import annotations

import click

from prefactor_core.cli.terminal import run, say


@click.command()
@click.option(
    "--db",
    type=click.Path(dir_okay=False),
    default="prefactor.db",
    show_default=True,
    help="The database file; it is created if missing.",
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="The address to listen on; one that other machines reach needs a token.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8787,
    show_default=True,
    help="The port to listen on; 0 for any free one.",
)
@click.option(
    "--token",
    envvar="PREFACTOR_SERVE_TOKEN",
    show_envvar=True,
    help="A secret that API and pages ask for. Other users of this machine see what is on a "
    "command line: prefer the variable.",
)
@click.option(
    "--keep",
    "keep_days",
    type=click.FloatRange(min=0, min_open=True),
    metavar="DAYS",
    help="Delete runs that ended so many days ago; by default all are kept.",
)
@click.option("--open", "opens", is_flag=True, help="Open the page in a browser.")
def serve(
    db: str, host: str, port: int, token: str | None, keep_days: float | None, *, opens: bool
) -> None:
    """Serve the API on a database file, and the pages that show what agents do.

    Agents record through the server with PREFACTOR_API_URL=http://127.0.0.1:8787, or beside it
    into the same file with PREFACTOR_API_URL=local:prefactor.db. Neither needs a token, and nothing
    leaves this machine. Ctrl-C ends the server.

    The pages show each run as a waterfall, with a search, its errors, idle gaps and critical path,
    each step with its input and result, and a button that stops the run. The key ? lists the keys
    of a page.
    """
    run(_serve, db, host, port, token, keep_days, opens)


async def _serve(
    db: str, host: str, port: int, token: str | None, keep_days: float | None, opens: bool
) -> None:
    from prefactor_core.local import server  # its imports are slow: no other command pays for them

    async with server.open_site(db, host=host, port=port, token=token, keep_days=keep_days) as site:
        say(f"Prefactor on {db}: {site.url}  (Ctrl-C ends it)")
        if token is not None:
            say("The page asks for the token, or takes it from the end of its link: #token=…")
        if opens:
            click.launch(site.url)
        await server.serve(site)
