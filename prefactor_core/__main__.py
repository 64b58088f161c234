"""The command line: ``python -m prefactor_core``."""

from __future__ import annotations

import codecs
import io
import runpy
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, TextIO, TypeVarTuple, cast

import anyio

from prefactor_core.api.answers import AgentInstanceAnswer
from prefactor_core.api.client import ApiClient
from prefactor_core.client.connection import open_api
from prefactor_core.config import PrefactorCoreConfig
from prefactor_core.config._version import __version__
from prefactor_core.config.http import LOCAL_PREFIX
from prefactor_core.exceptions import (
    PrefactorAuthError,
    PrefactorCoreError,
    PrefactorNotFoundError,
    PrefactorValueError,
)
from prefactor_core.operations.identifiers import is_pfid

try:
    import click
    from rich.console import Console

    from prefactor_core.local.run_tree import one_line, run_tree, tree_lines
except ImportError as error:
    sys.exit(
        f"the command line needs the extra 'local' of this package ({error}): "
        "pip install '.[local]' in its folder"
    )

Arguments = TypeVarTuple("Arguments")

_PACKAGE: Final = Path(__file__).parent

_LEAST_COLUMNS: Final = 40
"""Columns for the text of a line, however deep in the tree it stands."""

# Replacements for terminals whose encoding lacks these characters.
_PLAIN: Final = {"→": "->", "…": "...", "⚠": "!", "├": "|", "└": "`", "│": "|", "─": "-"}


@click.group()
@click.version_option(__version__, prog_name="prefactor-core")
def main() -> None:
    """Prefactor for agents: record runs, and look at recorded runs."""
    # A recorded text may have characters that the encoding of the terminal lacks.
    codecs.register_error("prefactor", _in_plain)
    stdout: TextIO = sys.stdout
    if isinstance(stdout, io.TextIOWrapper):
        stdout.reconfigure(errors="prefactor")


def _in_plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    plain = (_PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in text)
    return "".join(plain), error.end


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
    _run(_demo, api_url, agent_id, backend=backend)


@main.command()
@click.argument("agent_id")
@api_url_option
def show(agent_id: str, api_url: str) -> None:
    """Show the tree of the newest run of AGENT_ID, and where it does not fit its schemas."""
    _check_exists(api_url)
    _run(_show, api_url, agent_id)


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
    _run(_terminate, api_url, instance_id, reason)


def _check_exists(api_url: str) -> None:
    """Raise for a missing database file: its name may be mistyped, and opening would create it."""
    path = api_url.removeprefix(LOCAL_PREFIX)
    if path != api_url and not Path(path).exists():
        raise click.ClickException(f"there is no database {path!r}: nothing was recorded there")


def _run(
    command: Callable[[*Arguments], Awaitable[None]],
    *arguments: *Arguments,
    backend: str = "asyncio",
) -> None:
    try:
        anyio.run(command, *arguments, backend=backend)
    except PrefactorCoreError as error:
        raise click.ClickException(str(error)) from None
    except LookupError:
        raise click.ClickException(f"{backend} is not installed: pip install {backend}") from None


async def _demo(api_url: str, agent_id: str) -> None:
    instance_id = await _example()(api_url, agent_id)
    _say(f"recorded at {api_url}:")
    try:
        async with open_api(PrefactorCoreConfig.from_env(api_url=api_url).http_config) as api:
            await _print_tree(api, await api.get_agent_instance(instance_id))
    except PrefactorAuthError:
        # A deployment token may record but not read: GET agent_instance/{id} is answered 401.
        _say(f"agent instance {instance_id}; this token may not read it back")


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
    _say(one_line(said))


def _say(text: str) -> None:
    # Without file=, click writes UTF-8 to a terminal whose encoding is ASCII.
    click.echo(text, file=sys.stdout)


async def _print_tree(api: ApiClient, instance: AgentInstanceAnswer) -> None:
    spans = [span async for span in api.list_agent_spans(instance.id)]
    if sys.stdout is None or not sys.stdout.isatty():  # None: closed when the process started
        for line, _ in tree_lines(run_tree(instance, spans, most=None)):
            _say(line.plain)
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


if __name__ == "__main__":
    main(prog_name="python -m prefactor_core")
