"""The group of all commands, and those about runs: ``demo``, ``show``, ``terminate``."""

from __future__ import annotations

import runpy
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, cast

import click
from rich.console import Console

from prefactor_core.api.answers import AgentInstanceAnswer
from prefactor_core.api.client import ApiClient
from prefactor_core.cli.journal import journal
from prefactor_core.cli.serve import serve
from prefactor_core.cli.terminal import is_terminal, run, say, write_any_text
from prefactor_core.client.connection import open_api
from prefactor_core.config import PrefactorCoreConfig
from prefactor_core.config._version import __version__
from prefactor_core.config.http import LOCAL_PREFIX
from prefactor_core.exceptions import (
    PrefactorAuthError,
    PrefactorNotFoundError,
    PrefactorValueError,
)
from prefactor_core.local.run_tree import one_line, run_tree, tree_lines
from prefactor_core.operations.identifiers import is_pfid

_PACKAGE: Final = Path(__file__).parent.parent

_LEAST_COLUMNS: Final = 40
"""Columns for the text of a line, however deep in the tree it stands."""


@click.group()
@click.version_option(__version__, prog_name="prefactor-core")
def main() -> None:
    """Prefactor for agents: record runs, and look at recorded runs."""
    write_any_text()


main.add_command(journal)
main.add_command(serve)

api_url_option = click.option(
    "--api-url",
    envvar="PREFACTOR_API_URL",
    default="local:prefactor.db",
    show_default=True,
    help="Where the runs are: a URL, or local:PATH for a database file.",
)


@main.command()
@api_url_option
@click.option(
    "--agent-id",
    envvar="PREFACTOR_AGENT_ID",
    default="research",
    show_default=True,
    help="The agent to record as.",
)
@click.option(
    "--backend",
    type=click.Choice(["asyncio", "trio"]),
    default="asyncio",
    show_default=True,
    help="The event loop to run the agent on.",
)
def demo(api_url: str, agent_id: str, backend: str) -> None:
    """Run the example agent and show the tree that was stored."""
    run(_demo, api_url, agent_id, backend=backend)


@main.command()
@click.argument("agent_id")
@api_url_option
def show(agent_id: str, api_url: str) -> None:
    """Show the tree of the newest run of AGENT_ID, and where it does not fit its schemas."""
    _check_exists(api_url)
    run(_show, api_url, agent_id)


@main.command()
@click.argument("instance_id")
@click.option(
    "--reason",
    default="terminated from the command line",
    show_default=True,
    help="The reason, shown to the agent and in the run.",
)
@api_url_option
def terminate(instance_id: str, reason: str, api_url: str) -> None:
    """Terminate the run INSTANCE_ID, which has not ended; this cannot be undone."""
    _check_exists(api_url)
    run(_terminate, api_url, instance_id, reason)


def _check_exists(api_url: str) -> None:
    """Raise for a missing database file: its name may be mistyped, and opening would create it."""
    path = api_url.removeprefix(LOCAL_PREFIX)
    if path != api_url and not Path(path).exists():
        raise click.ClickException(f"there is no database {path!r}: nothing was recorded there")


async def _demo(api_url: str, agent_id: str) -> None:
    instance_id = await _example()(api_url, agent_id)
    say(f"recorded at {api_url}:")
    try:
        async with open_api(PrefactorCoreConfig.from_env(api_url=api_url).http_config) as api:
            await _print_tree(api, await api.get_agent_instance(instance_id))
    except PrefactorAuthError:
        # A deployment token may record but not read: GET agent_instance/{id} is answered 401.
        say(f"agent instance {instance_id}; this token may not read it back")


async def _show(api_url: str, agent_id: str) -> None:
    async with open_api(PrefactorCoreConfig.from_env(api_url=api_url).http_config) as api:
        newest = await api.newest_agent_instance(agent_id)
        if newest is None:
            raise PrefactorNotFoundError(f"agent {agent_id!r} has no run at {api_url}")
        await _print_tree(api, newest)


async def _terminate(api_url: str, instance_id: str, reason: str) -> None:
    # The id becomes a part of a path: a mistyped id must not make another call.
    if not is_pfid(instance_id):
        raise PrefactorValueError(f"{instance_id!r} is not the id of an agent instance")
    async with open_api(PrefactorCoreConfig.from_env(api_url=api_url).http_config) as api:
        instance = await api.terminate_agent_instance(instance_id, reason)
    said = f"agent instance {instance.id} is {instance.status}: {instance.termination_reason}"
    say(one_line(said))


async def _print_tree(api: ApiClient, instance: AgentInstanceAnswer) -> None:
    spans = [span async for span in api.list_agent_spans(instance.id)]
    if not is_terminal():
        for line, _ in tree_lines(run_tree(instance, spans, most=None)):
            say(line.plain)
        return
    console = Console()
    for line, branches in tree_lines(run_tree(instance, spans, most=console.width)):
        line.truncate(max(console.width, branches + _LEAST_COLUMNS), overflow="ellipsis")
        console.print(line, soft_wrap=True)


def _example() -> Callable[[str, str], Awaitable[str]]:
    """``run_agent`` of examples/agent_e2e.py: inside a wheel, or beside the package."""
    for folder in (_PACKAGE, _PACKAGE.parent):
        path = folder / "examples" / "agent_e2e.py"
        if path.exists():
            return cast(
                Callable[[str, str], Awaitable[str]], runpy.run_path(str(path))["run_agent"]
            )
    raise click.ClickException("examples/agent_e2e.py is not part of this installation")
