"""The command ``demo``: run an example agent, and show what it recorded."""

from __future__ import annotations

import asyncio
import runpy
import shlex
from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Final, cast

import anyio
import click
from anyio.from_thread import BlockingPortal, start_blocking_portal

from prefactor_core.cli.options import api_url_option
from prefactor_core.cli.terminal import is_terminal, run, say
from prefactor_core.cli.tree import print_tree
from prefactor_core.client.connection import open_api
from prefactor_core.config import PrefactorCoreConfig
from prefactor_core.config.http import LOCAL_PREFIX
from prefactor_core.exceptions import (
    PrefactorAuthError,
    PrefactorCoreError,
    PrefactorTerminatedError,
)

_PACKAGE: Final = Path(__file__).parent.parent

RunAgent = Callable[..., Awaitable[str]]


@click.command()
@api_url_option
@click.option(
    "--agent-id",
    envvar="PREFACTOR_AGENT_ID",
    help="The agent to record as; by default research, or with --slow trip-planner.",
)
@click.option(
    "--backend",
    type=click.Choice(["asyncio", "trio"]),
    default="asyncio",
    show_default=True,
    help="The event loop to run the agent on.",
)
@click.option("--slow", is_flag=True, help="Run for 20 s, to be watched on the page and stopped.")
@click.option(
    "--serve/--no-serve",
    "serves",
    default=None,
    help="Serve the page of the run until Ctrl-C. The default on a terminal, for a database file.",
)
def demo(
    api_url: str, agent_id: str | None, backend: str, *, slow: bool, serves: bool | None
) -> None:
    """Run an example agent and show what it recorded: as a tree, and as a page in a browser."""
    if find_spec(backend) is None:
        raise click.ClickException(f"{backend} is not installed: pip install {backend}")
    agent_id = agent_id or ("trip-planner" if slow else "research")
    path = api_url.removeprefix(LOCAL_PREFIX)
    is_file = path != api_url
    if serves is None:
        serves = is_file and is_terminal()
    if serves and not is_file:
        raise click.UsageError("--serve shows a database file: it needs --api-url local:PATH")
    if slow and serves:
        run(_watch, path, agent_id, backend)
        return
    run_agent = _example("slow_agent.py" if slow else "agent_e2e.py")
    instance_id = run(_record, run_agent, api_url, agent_id, backend=backend)
    if serves:
        run(_serve_run, path, instance_id)
    elif is_file:
        words = shlex.join([path, instance_id])
        say(f"\nTo see it in a browser: python -m prefactor_core view {words}")


async def _record(run_agent: RunAgent, api_url: str, agent_id: str) -> str:
    instance_id = await run_agent(api_url, agent_id)
    say(f"recorded at {api_url}:")
    try:
        async with open_api(PrefactorCoreConfig.from_env(api_url=api_url).http_config) as api:
            await print_tree(api, await api.get_agent_instance(instance_id))
    except PrefactorAuthError:
        # A deployment token may record but not read: GET agent_instance/{id} is answered 401.
        say(f"agent instance {instance_id}; this token may not read it back")
    return instance_id


async def _serve_run(path: str, instance_id: str) -> None:
    from prefactor_core.local import server  # its imports are slow: no other command pays for them

    async with server.open_site(path, port=None) as site:
        say(f"\nSee it in a browser (Ctrl-C ends this): {site.url}runs/{instance_id}")
        await server.serve(site)


async def _watch(path: str, agent_id: str, backend: str) -> None:
    """Run the slow agent, in a thread on ``backend``, beside the server that shows it."""
    from prefactor_core.local import server

    run_agent = _example("slow_agent.py")

    async def run_slowly(url: str) -> None:
        def started(instance_id: str) -> None:
            say(f"Watch the run, or stop it there (Ctrl-C ends this): {url}runs/{instance_id}")

        try:
            await run_agent(f"{LOCAL_PREFIX}{path}", agent_id, started=started)
        except PrefactorTerminatedError:
            pass  # the library has logged it
        except PrefactorCoreError as error:
            say(str(error))
        else:
            say("The run is complete.")

    async def run_in(thread: BlockingPortal, url: str) -> None:
        # An error of the agent ends the server, the end of the server cancels the agent.
        await asyncio.wrap_future(thread.start_task_soon(run_slowly, url))

    async with server.open_site(path, port=None) as site:
        # The server has the main thread, and uvicorn needs asyncio.
        with start_blocking_portal(backend) as thread:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(run_in, thread, site.url)
                await server.serve(site)
                tasks.cancel_scope.cancel()


def _example(name: str) -> RunAgent:
    """``run_agent`` of an example: inside a wheel, or beside the package."""
    for folder in (_PACKAGE, _PACKAGE.parent):
        path = folder / "examples" / name
        if path.exists():
            return cast(RunAgent, runpy.run_path(str(path))["run_agent"])
    raise click.ClickException(f"examples/{name} is not part of this installation")
