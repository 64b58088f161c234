"""The command ``span``: all of one span."""

from __future__ import annotations

import click

from prefactor_core.cli.finding import find_span
from prefactor_core.cli.lines import print_lines
from prefactor_core.cli.options import api_url_option, json_option
from prefactor_core.cli.reading import open_stored
from prefactor_core.cli.span_lines import span_lines
from prefactor_core.cli.terminal import print_json, progress, run


@click.command()
@click.argument("span_id")
@click.option("--run", "run_word", metavar="RUN", help="The run, or its agent: makes it quick.")
@json_option
@api_url_option
def span(span_id: str, run_word: str | None, api_url: str, *, as_json: bool) -> None:
    """Show a span: its error first, then its input and its result, whole.

    SPAN_ID is its id or the beginning of it, or RUN/SPAN_ID. Values that are marked as sensitive
    are shown as their labels.

    --json prints the span with the fields of the API, its payloads as they are stored.
    """
    run(_span, span_id, run_word, api_url, as_json)


async def _span(span_id: str, run_word: str | None, api_url: str, as_json: bool) -> None:
    async with open_stored(api_url) as api:
        with progress("looking for the span") as on_progress:
            found = await find_span(api, span_id, run_word, on_progress)
    if as_json:
        print_json(found)
    else:
        print_lines(span_lines(found), is_cut=False)
