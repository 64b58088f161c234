"""The tree of a run, as the standard output shows it."""

from __future__ import annotations

from typing import Final

import click
from rich.console import Console

from prefactor_core.api.answers import AgentInstanceAnswer
from prefactor_core.api.client import ApiClient
from prefactor_core.cli.terminal import is_terminal, say
from prefactor_core.local.run_tree import run_tree, tree_lines

_LEAST_COLUMNS: Final = 40
"""Columns for the text of a line, however deep in the tree it stands."""

api_url_option = click.option(
    "--api-url",
    envvar="PREFACTOR_API_URL",
    default="local:prefactor.db",
    show_default=True,
    help="Where the runs are: a URL, or local:PATH for a database file.",
)


async def print_tree(api: ApiClient, instance: AgentInstanceAnswer) -> None:
    """Print the tree of ``instance``: on a terminal each line cut at its width."""
    spans = [span async for span in api.list_agent_spans(instance.id)]
    if not is_terminal():
        for line, _ in tree_lines(run_tree(instance, spans, most=None)):
            say(line.plain)
        return
    console = Console()
    for line, branches in tree_lines(run_tree(instance, spans, most=console.width)):
        line.truncate(max(console.width, branches + _LEAST_COLUMNS), overflow="ellipsis")
        console.print(line, soft_wrap=True)
