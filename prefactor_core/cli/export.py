"""The command ``export``: a run as a file."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import click

from prefactor_core.cli.export_formats import FORMATS, write
from prefactor_core.cli.finding import find_run
from prefactor_core.cli.options import api_url_option
from prefactor_core.cli.reading import open_stored, spans_of
from prefactor_core.cli.terminal import is_terminal, progress, run
from prefactor_core.config.http import LOCAL_PREFIX


@click.command()
@click.argument("word", metavar="RUN_OR_AGENT")
@click.option(
    "--format",
    "format_",
    type=click.Choice([*FORMATS]),
    help="json, the default: as the API shows it; otlp: a trace in the JSON of OpenTelemetry; "
    "html: a page.",
)
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False),
    help="The file to write, readable for its owner alone; by default the standard output.",
)
@api_url_option
def export(
    word: str, format_: str | None, output: str | None, api_url: str, *, as_json: bool
) -> None:
    """Write a run and its spans, whole, to a file.

    RUN_OR_AGENT is a run's id or its beginning, or an agent's id or name: its newest run.

    json is the document that `tree --json` prints; otlp is for the traces endpoint of an
    OpenTelemetry collector; html is one file that shows the run in a browser, without a server.
    Payloads are as they are stored, sensitive values included.
    """
    if as_json and format_ not in (None, "json"):
        raise click.UsageError(f"--json and --format {format_} are two formats: give one")
    format_ = format_ or "json"
    if output is None and format_ == "html" and is_terminal():
        raise click.UsageError("a page is for a browser: give a file, -o FILE")
    run(_export, word, format_, output, api_url)


async def _export(word: str, format_: str, output: str | None, api_url: str) -> None:
    async with open_stored(api_url) as api:
        with progress("reading the run") as on_progress:
            instance = await find_run(api, word, on_progress)
            spans = await spans_of(api, instance, on_progress)
    write(FORMATS[format_](instance, spans, _origin(api_url)), output)


def _origin(api_url: str) -> str:
    """The name of the file or of the server where the run is stored."""
    path = api_url.removeprefix(LOCAL_PREFIX)
    return Path(path).name if path != api_url else urlsplit(api_url).hostname or api_url
