"""The group of all commands."""

from __future__ import annotations

import click

from prefactor_core.cli.demo import demo
from prefactor_core.cli.export import export
from prefactor_core.cli.journal import journal
from prefactor_core.cli.relay import relay
from prefactor_core.cli.runs import runs
from prefactor_core.cli.serve import serve
from prefactor_core.cli.span import span
from prefactor_core.cli.terminal import write_any_text
from prefactor_core.cli.terminate import terminate
from prefactor_core.cli.tree import tree
from prefactor_core.cli.view import view
from prefactor_core.config._version import __version__


@click.group()
@click.version_option(__version__, prog_name="prefactor-core")
def main() -> None:
    """Prefactor for agents: record runs, and look at recorded runs."""
    write_any_text()


for _command in (demo, export, journal, relay, runs, serve, span, terminate, tree, view):
    main.add_command(_command)
main.add_command(tree, "show")  # its name in earlier versions
