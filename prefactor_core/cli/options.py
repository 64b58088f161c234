"""The options that several commands share."""

from __future__ import annotations

import click

api_url_option = click.option(
    "--api-url",
    envvar="PREFACTOR_API_URL",
    default="local:prefactor.db",
    show_default=True,
    help="Where the runs are: a URL, or local:PATH for a database file.",
)

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for a program.")

follow_option = click.option(
    "--follow", is_flag=True, help="Go on, and show changes each second; Ctrl-C ends it."
)
