"""The command ``tree``: a run and its spans."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import click
from rich.console import Console, Group
from rich.live import Live

from prefactor_core.api.answers import AgentInstanceAnswer, AgentSpanAnswer
from prefactor_core.api.client import ApiClient
from prefactor_core.cli.finding import find_run
from prefactor_core.cli.lines import fitted, print_lines, terminal_width
from prefactor_core.cli.options import api_url_option, follow_option, json_option
from prefactor_core.cli.reading import changes_of, is_ended, open_stored, spans_of
from prefactor_core.cli.run_lines import Line, instance_parts, span_parts, tree_lines
from prefactor_core.cli.terminal import is_terminal, print_json, progress, run

Changes = AsyncIterator[tuple[AgentInstanceAnswer, list[AgentSpanAnswer]]]


@click.command()
@click.argument("word", metavar="RUN_OR_AGENT")
@follow_option
@json_option
@api_url_option
def tree(word: str, api_url: str, *, follow: bool, as_json: bool) -> None:
    """Show a run and the spans in it, and where they do not fit their schemas.

    RUN_OR_AGENT is a run's id or its beginning, or an agent's id or name: its newest run.

    A failed step shows its error before its input. With --follow, a terminal shows the tree as it
    grows, and a pipe gets a line for each new or changed span, until the run ends.

    --json prints {"agent_instance": RUN, "agent_spans": [SPAN, ...]}, with the fields of the API,
    the spans in the order of the tree; with --follow, a line {"agent_instance": RUN} or
    {"agent_span": SPAN} for each that is new or changed.
    """
    run(_tree, word, api_url, follow, as_json)


async def _tree(word: str, api_url: str, follow: bool, as_json: bool) -> None:
    async with open_stored(api_url) as api:
        with progress("looking for the run") as on_progress:
            instance = await find_run(api, word, on_progress)
        if not follow:
            await print_tree(api, instance, as_json=as_json)
        elif is_terminal() and not as_json:
            await _redraw(changes_of(api, instance))
        else:
            await _print_changes(changes_of(api, instance), as_json)


async def print_tree(
    api: ApiClient, instance: AgentInstanceAnswer, *, as_json: bool = False
) -> None:
    """Print the tree of ``instance``: on a terminal each line cut at its width."""
    with progress("reading spans") as on_progress:
        spans = await spans_of(api, instance, on_progress)
    if as_json:
        print_json({"agent_instance": instance, "agent_spans": iter(spans)})
    else:
        print_lines(tree_lines(instance, spans, terminal_width()))


async def _redraw(changes: Changes) -> None:
    """Draw the tree anew at each change, and whole at the end."""
    console = Console()
    lines: Sequence[Line] = ()
    # What is drawn anew must fit on the screen: a tall tree shows its head and its end.
    with Live(console=console, transient=True, auto_refresh=False, redirect_stdout=False) as live:
        async for instance, spans in changes:
            lines = list(tree_lines(instance, spans, console.width))
            rows = max(console.height - 1, 2)
            shown = lines if len(lines) <= rows else [lines[0], *lines[1 - rows :]]
            live.update(Group(*(fitted(line, console.width) for line in shown)), refresh=True)
    print_lines(lines)


async def _print_changes(changes: Changes, as_json: bool) -> None:
    """Print a line for the run and for each span, whenever it is new or has changed; the end of
    the run comes last."""
    printed: dict[str, object] = {}

    def is_news(id: str, state: object) -> bool:
        is_known = printed.get(id) == state
        printed[id] = state
        return not is_known

    def print_run(instance: AgentInstanceAnswer) -> None:
        if is_news(instance.id, instance.status):
            print_one("agent_instance", instance, Line("", instance_parts(instance, None)))

    def print_one(kind: str, stored: object, line: Line) -> None:
        if as_json:
            print_json({kind: stored})
        else:
            print_lines([line])

    async for instance, spans in changes:
        if not is_ended(instance):
            print_run(instance)
        for span in spans:
            if is_news(span.id, (span.status, span.flags)):
                line = Line(f"{span.id}  ", span_parts(span, None))
                print_one("agent_span", span, line)
        print_run(instance)
