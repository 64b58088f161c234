"""The command ``runs``: the newest runs."""

from __future__ import annotations

import anyio
import click
from rich.console import Console, Group
from rich.live import Live

from prefactor_core.api.answers import AgentInstanceAnswer
from prefactor_core.cli.lines import fitted, print_lines, terminal_width
from prefactor_core.cli.options import api_url_option, follow_option, json_option
from prefactor_core.cli.reading import INTERVAL, NewestRuns, open_stored, patiently
from prefactor_core.cli.run_lines import list_lines, list_of
from prefactor_core.cli.terminal import is_terminal, print_json, progress, run, say
from prefactor_core.models.lifecycle import InstanceStatus


@click.command()
@click.option("--agent", help="Only the runs of this agent: its id or name.")
@click.option(
    "--status",
    "statuses",
    type=click.Choice([status.value for status in InstanceStatus]),
    multiple=True,
    help="Only runs of this status; may be given several times.",
)
@click.option(
    "--limit",
    type=click.IntRange(1, 1_000),
    default=20,
    show_default=True,
    help="The most runs to show.",
)
@follow_option
@json_option
@api_url_option
def runs(
    agent: str | None,
    statuses: tuple[str, ...],
    limit: int,
    api_url: str,
    *,
    follow: bool,
    as_json: bool,
) -> None:
    """List the newest runs of all agents, newest first.

    The API cannot list by status: --status looks through the newest 1,000 runs of each agent.

    With --follow, a terminal shows the list as it changes, and a pipe gets a line for each run
    that is new or has another status, oldest first.

    --json prints a list of runs with the fields of the API; with --follow, a run on each line.
    """
    run(_runs, api_url, agent, statuses, limit, follow, as_json)


async def _runs(
    api_url: str,
    agent: str | None,
    statuses: tuple[str, ...],
    limit: int,
    follow: bool,
    as_json: bool,
) -> None:
    async with open_stored(api_url) as api:
        newest = NewestRuns(api, agent, statuses, limit)
        if follow:
            await (_redraw(newest) if is_terminal() and not as_json else _print(newest, as_json))
            return
        with progress("reading runs") as on_progress:
            found = await newest.read(on_progress)
        if as_json:
            print_json(iter(found))
        elif found:
            print_lines(list_of(found, newest.names, terminal_width()))
        else:
            say(f"there is no such run at {api_url}")
        if newest.note:
            click.echo(newest.note, err=True)


async def _redraw(newest: NewestRuns) -> None:
    console = Console()
    with Live(console=console, auto_refresh=False, redirect_stdout=False) as live:
        while True:
            found = await patiently(newest.read)
            width, rows = console.width, max(console.height - 1, 1)
            lines = list(list_of(found, newest.names, width))[:rows]
            live.update(Group(*(fitted(line, width) for line in lines)), refresh=True)
            await anyio.sleep(INTERVAL)


async def _print(newest: NewestRuns, as_json: bool) -> None:
    printed: dict[str, str] = {}
    while True:
        for each in reversed(await patiently(newest.read)):
            if printed.get(each.id) != each.status:
                printed[each.id] = each.status
                _print_one(each, newest, as_json)
        await anyio.sleep(INTERVAL)


def _print_one(each: AgentInstanceAnswer, newest: NewestRuns, as_json: bool) -> None:
    if as_json:
        print_json(each)
    else:
        print_lines(list_lines(each, newest.names))
