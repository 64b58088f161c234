"""The command ``demo``: run an example agent, and show what it recorded."""

from __future__ import annotations

import runpy
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, cast

import click

from prefactor_core.cli.terminal import run, say
from prefactor_core.cli.tree import api_url_option, print_tree
from prefactor_core.client.connection import open_api
from prefactor_core.config import PrefactorCoreConfig
from prefactor_core.exceptions import PrefactorAuthError

_PACKAGE: Final = Path(__file__).parent.parent


@click.command()
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


async def _demo(api_url: str, agent_id: str) -> None:
    instance_id = await _example()(api_url, agent_id)
    say(f"recorded at {api_url}:")
    try:
        async with open_api(PrefactorCoreConfig.from_env(api_url=api_url).http_config) as api:
            await print_tree(api, await api.get_agent_instance(instance_id))
    except PrefactorAuthError:
        # A deployment token may record but not read: GET agent_instance/{id} is answered 401.
        say(f"agent instance {instance_id}; this token may not read it back")


def _example() -> Callable[[str, str], Awaitable[str]]:
    """``run_agent`` of examples/agent_e2e.py: inside a wheel, or beside the package."""
    for folder in (_PACKAGE, _PACKAGE.parent):
        path = folder / "examples" / "agent_e2e.py"
        if path.exists():
            return cast(
                Callable[[str, str], Awaitable[str]], runpy.run_path(str(path))["run_agent"]
            )
    raise click.ClickException("examples/agent_e2e.py is not part of this installation")
