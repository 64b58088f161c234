"""The group of all commands, and two about runs: ``show``, ``terminate``."""

from __future__ import annotations

from pathlib import Path

import click

from prefactor_core.cli.demo import demo
from prefactor_core.cli.journal import journal
from prefactor_core.cli.serve import serve
from prefactor_core.cli.terminal import run, say, write_any_text
from prefactor_core.cli.tree import api_url_option, print_tree
from prefactor_core.cli.view import view
from prefactor_core.client.connection import open_api
from prefactor_core.config import PrefactorCoreConfig
from prefactor_core.config._version import __version__
from prefactor_core.config.http import LOCAL_PREFIX
from prefactor_core.exceptions import PrefactorNotFoundError, PrefactorValueError
from prefactor_core.local.run_tree import one_line
from prefactor_core.operations.identifiers import is_pfid


@click.group()
@click.version_option(__version__, prog_name="prefactor-core")
def main() -> None:
    """Prefactor for agents: record runs, and look at recorded runs."""
    write_any_text()


main.add_command(demo)
main.add_command(journal)
main.add_command(serve)
main.add_command(view)


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


async def _show(api_url: str, agent_id: str) -> None:
    async with open_api(PrefactorCoreConfig.from_env(api_url=api_url).http_config) as api:
        newest = await api.newest_agent_instance(agent_id)
        if newest is None:
            raise PrefactorNotFoundError(f"agent {agent_id!r} has no run at {api_url}")
        await print_tree(api, newest)


async def _terminate(api_url: str, instance_id: str, reason: str) -> None:
    # The id becomes a part of a path: a mistyped id must not make another call.
    if not is_pfid(instance_id):
        raise PrefactorValueError(f"{instance_id!r} is not the id of an agent instance")
    async with open_api(PrefactorCoreConfig.from_env(api_url=api_url).http_config) as api:
        instance = await api.terminate_agent_instance(instance_id, reason)
    said = f"agent instance {instance.id} is {instance.status}: {instance.termination_reason}"
    say(one_line(said))
