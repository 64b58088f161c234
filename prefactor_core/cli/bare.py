"""The command line of the bare package: it reads runs of a service, and says what to install.

Tables, colours, progress bars, --follow and the other commands need the extra ``local``.
"""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, NoReturn

import anyio

from prefactor_core.api.client import ApiClient
from prefactor_core.cli.export_formats import to_json, write
from prefactor_core.cli.finding import find_run, find_span
from prefactor_core.cli.reading import NewestRuns, open_stored, spans_of
from prefactor_core.cli.run_lines import Line, list_of, tree_lines
from prefactor_core.cli.span_lines import span_lines
from prefactor_core.cli.terminal import print_json, say, write_any_text
from prefactor_core.exceptions import PrefactorCoreError
from prefactor_core.models.lifecycle import InstanceStatus

_HELP: Final = """\
The command line needs the extra 'local' of this package ({missing}):

    pip install '.[local]'      in its folder; '.[local,redis]' for the command relay

Without it, four commands show what a service has stored, as plain text or JSON:

    runs [--agent AGENT] [--status STATUS] [--limit N] [--json]
    tree RUN_OR_AGENT [--json]
    span SPAN_ID [--run RUN] [--json]
    export RUN_OR_AGENT [--json] [-o FILE]

They ask the API at PREFACTOR_API_URL, or --api-url, with PREFACTOR_API_TOKEN; http://127.0.0.1
needs no token. RUN_OR_AGENT is a run's id or its beginning, or an agent's id or name: its newest
run.
"""


def main(missing: ImportError) -> NoReturn:
    """Run the command of this process and end it. ``missing``: why the whole command line is not
    there."""
    write_any_text()
    words = sys.argv[1:]
    if not words or words[0] not in _COMMANDS:
        sys.exit(_HELP.format(missing=missing))
    options = _options(words)
    try:
        anyio.run(_run, options)
    except PrefactorCoreError as error:
        sys.exit(f"Error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader has enough. Python must not flush into the pipe at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(0)


def _options(words: list[str]) -> Namespace:
    name = words[0]
    parser = ArgumentParser(prog=f"python -m prefactor_core {name}")
    parser.set_defaults(command=_COMMANDS[name])
    parser.add_argument("--api-url", default=os.environ.get("PREFACTOR_API_URL", ""))
    if name == "span":
        parser.add_argument("word", metavar="SPAN_ID")
        parser.add_argument("--run")
    elif name == "runs":
        parser.add_argument("--agent")
        parser.add_argument("--status", action="append", choices=[*InstanceStatus], default=[])
        parser.add_argument("--limit", type=int, default=20)
    else:
        parser.add_argument("word", metavar="RUN_OR_AGENT")
    if name == "export":
        parser.add_argument("--format", choices=["json"], default="json")
        parser.add_argument("-o", "--output")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(words[1:])
    if not options.api_url:
        parser.error("set PREFACTOR_API_URL, or give --api-url")
    return options


async def _run(options: Namespace) -> None:
    async with open_stored(options.api_url) as api:
        await options.command(api, options)


async def _runs(api: ApiClient, options: Namespace) -> None:
    newest = NewestRuns(api, options.agent, options.status, options.limit)
    found = await newest.read()
    if options.json:
        print_json(iter(found))
    else:
        _say(list_of(found, newest.names))
    if newest.note:
        sys.stderr.write(f"{newest.note}\n")


async def _tree(api: ApiClient, options: Namespace) -> None:
    instance = await find_run(api, options.word)
    spans = await spans_of(api, instance)
    if options.json:
        print_json({"agent_instance": instance, "agent_spans": iter(spans)})
    else:
        _say(tree_lines(instance, spans, None))


async def _span(api: ApiClient, options: Namespace) -> None:
    found = await find_span(api, options.word, options.run)
    if options.json:
        print_json(found)
    else:
        _say(span_lines(found))


async def _export(api: ApiClient, options: Namespace) -> None:
    instance = await find_run(api, options.word)
    spans = await spans_of(api, instance)
    write(to_json(instance, spans, api.api_url), options.output)


def _say(lines: Iterable[Line]) -> None:
    for line in lines:
        say(line.plain)


_COMMANDS: Final[dict[str, Callable[[ApiClient, Namespace], Awaitable[None]]]] = {
    "runs": _runs,
    "tree": _tree,
    "span": _span,
    "export": _export,
}
