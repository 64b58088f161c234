"""The command ``terminate``: stop a run."""

from __future__ import annotations

import click

from prefactor_core.cli.finding import find_run
from prefactor_core.cli.options import api_url_option, json_option
from prefactor_core.cli.reading import open_stored
from prefactor_core.cli.terminal import print_json, progress, run, say
from prefactor_core.cli.texts import one_line


@click.command()
@click.argument("word", metavar="RUN_OR_AGENT")
@click.option(
    "--reason",
    default="terminated from the command line",
    show_default=True,
    help="The reason, shown to the agent and in the run.",
)
@json_option
@api_url_option
def terminate(word: str, reason: str, api_url: str, *, as_json: bool) -> None:
    """Terminate a run that has not ended; this cannot be undone.

    RUN_OR_AGENT is the run's id or its beginning, or an agent's id or name: its newest run.

    --json prints the run with the fields of the API.
    """
    run(_terminate, word, reason, api_url, as_json)


async def _terminate(word: str, reason: str, api_url: str, as_json: bool) -> None:
    async with open_stored(api_url) as api:
        with progress("looking for the run") as on_progress:
            found = await find_run(api, word, on_progress)
        instance = await api.terminate_agent_instance(found.id, reason)
    if as_json:
        print_json(instance)
    else:
        said = f"agent instance {instance.id} is {instance.status}: {instance.termination_reason}"
        say(one_line(said))
