"""The commands about relays: ``relay``, which is one, ``relay status`` and ``relay refused``."""

from __future__ import annotations

import math
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlencode

import anyio
import click
from msgspec.structs import replace

from prefactor_core.cli.options import json_option
from prefactor_core.cli.relay_run import Listen, run_relay
from prefactor_core.cli.relay_tables import document, print_refused, print_status
from prefactor_core.cli.terminal import (
    errors_in_one_line,
    is_terminal,
    print_json,
    run,
    say,
)
from prefactor_core.config import HttpClientConfig
from prefactor_core.config.http import LOCAL_PREFIX
from prefactor_core.config.redis import SCHEMES, RedisAddress, is_redis, without_password
from prefactor_core.exceptions import PrefactorValueError
from prefactor_core.payloads.secret_str import SecretStr
from prefactor_core.relay.keys import Keys
from prefactor_core.relay.refused import drop, read_refused, retry
from prefactor_core.relay.relay import RelayConfig
from prefactor_core.relay.server import RedisServer, open_server
from prefactor_core.relay.status import read_status

_INTERVAL = 1.0


class _Seconds(click.FloatRange):
    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        seconds: float = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail(f"{value} is not a number of seconds.", param, ctx)
        return seconds


def _listen(_context: click.Context, _option: click.Parameter, text: str | None) -> Listen | None:
    if text is None:
        return None
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise click.BadParameter("it must be HOST:PORT, such as 127.0.0.1:9464")
    return Listen(host, int(port))


# Options of a command have no variable of their own: the group reads it, and gives its value on.
_redis = click.option(
    "--redis",
    "redis_url",
    metavar="URL",
    help="The Redis server, as in relay --help.",
)
_prefix = click.option("--prefix", help="The beginning of all keys, as in relay --help.")
_run = click.option("--run", "run_id", metavar="ID", help="Only the operations of this run.")


@click.group(invoke_without_command=True)
@click.option(
    "--redis",
    "redis_url",
    metavar="URL",
    envvar="PREFACTOR_REDIS_URL",
    show_envvar=True,
    help="The Redis server: redis://USER:PASSWORD@HOST:PORT/DATABASE, rediss://... with TLS, or "
    "unix:///SOCKET. Other users of this machine see what is on a command line: prefer the "
    "variable.",
)
@click.option(
    "--prefix",
    help="The beginning of all keys, one for each account of Prefactor; else ?prefix= of the URL, "
    "or pf.",
)
@click.option(
    "--api-url",
    envvar="PREFACTOR_API_URL",
    show_envvar=True,
    help="The API to deliver to. PREFACTOR_API_TOKEN is its token.",
)
@click.option(
    "--name", default="", help="The relay's name in `relay status`; by default, one of its own."
)
@click.option(
    "--bury-after",
    type=_Seconds(min=15),
    metavar="SECONDS",
    default=300.0,
    show_default=True,
    help="End a run as failed when its agent has given no sign of life for so long; at least 15, "
    "as agents give one each 5; inf: never. An agent that comes back goes on, says so in its log, "
    "and drops what it records in that run.",
)
@click.option(
    "--poll",
    "poll_interval",
    type=_Seconds(min=0, min_open=True),
    metavar="SECONDS",
    default=5.0,
    show_default=True,
    help="How often to ask whether the API has terminated a run.",
)
@click.option(
    "--listen",
    metavar="HOST:PORT",
    callback=_listen,
    help="Serve /healthz and /metrics (for Prometheus) there. They hold no payloads, and ask for "
    "no token.",
)
@click.pass_context
def relay(
    context: click.Context,
    redis_url: str | None,
    prefix: str | None,
    api_url: str | None,
    name: str,
    bury_after: float,
    poll_interval: float,
    listen: Listen | None,
) -> None:
    """Bring to the API what agents write to a Redis server.

    Agents write there with PREFACTOR_API_URL=redis://... Any number of relays share the work: when
    one goes, the others take over after a few seconds.

    The relay waits for a Redis server or an API that does not answer yet, with one line in the log.
    A wrong password, certificate, database or maxmemory-policy, and keys of another API, end it
    with exit code 1: no wait would help.

    SIGTERM and Ctrl-C let the relay finish its requests and leave, with exit code 0; a second one
    ends it at once. Nothing is lost either way.
    """
    if context.invoked_subcommand is not None:
        given = {"redis_url": redis_url, "prefix": prefix}
        context.default_map = dict.fromkeys(("status", "refused"), given)
        return
    with errors_in_one_line():
        address, password = _address(redis_url, prefix)
        api = _api(api_url)
        config = RelayConfig(
            redis=address,
            redis_password=password,
            bury_after=bury_after,
            poll_interval=poll_interval,
            name=name,
        )
    run(run_relay, api, config, listen)


@relay.command("status")
@_redis
@_prefix
@json_option
@click.option("--watch", is_flag=True, help="Go on, and show it anew each second; Ctrl-C ends it.")
def show_status(redis_url: str | None, prefix: str | None, as_json: bool, watch: bool) -> None:
    """Show what waits for relays, and which relays there are.

    A shard is one of 16 streams; all operations of a run are in one. Waiting are its entries that
    no relay has read, pending those that a relay has read and not yet delivered. Each entry is a
    batch of operations. Oldest is the age of the oldest entry.

    --json prints ages in seconds; with --watch, a line each second.
    """
    run(_status, *_address(redis_url, prefix), as_json, watch)


@relay.command("refused")
@_redis
@_prefix
@_run
@click.option("--retry", "retries", is_flag=True, help="Give them to the relays once more.")
@click.option("--drop", "drops", is_flag=True, help="Delete them.")
@json_option
def show_refused(
    redis_url: str | None,
    prefix: str | None,
    run_id: str | None,
    retries: bool,
    drops: bool,
    as_json: bool,
) -> None:
    """List the operations that the API refused, with its reasons.

    They are kept until --retry or --drop, which say how many there were. Payloads are not shown.
    """
    if retries and drops:
        raise click.UsageError("--retry and --drop exclude each other: give one")
    address = _address(redis_url, prefix)
    if retries:
        run(_retry, *address, run_id, as_json)
    elif drops:
        run(_drop, *address, run_id, as_json)
    else:
        run(_refused, *address, run_id, as_json)


async def _status(address: RedisAddress, password: str, as_json: bool, watch: bool) -> None:
    async with _opened(address, password) as (server, keys):
        while True:
            status = await read_status(server, keys)
            if as_json:
                print_json(status)
            else:
                if watch and is_terminal():
                    click.clear()
                print_status(status)
            if not watch:
                return
            await anyio.sleep(_INTERVAL)


async def _refused(address: RedisAddress, password: str, run_id: str | None, as_json: bool) -> None:
    async with _opened(address, password) as (server, keys):
        found = [document(refused) async for refused in read_refused(server, keys, run_id)]
    if as_json:
        print_json(iter(found))
    elif found:
        print_refused(found)
    else:
        say(f"no refused operation is kept{_of(run_id)}")


async def _retry(address: RedisAddress, password: str, run_id: str | None, as_json: bool) -> None:
    async with _opened(address, password) as (server, keys):
        retried = await retry(server, keys, run_id)
    if as_json:
        print_json({"retried": retried.given, "unreadable": retried.unreadable})
    else:
        say(f"{_count(retried.given)}{_of(run_id)} given to the relays once more")
    if retried.unreadable:
        raise click.ClickException(
            f"{_count(retried.unreadable)} not given to the relays, because this command "
            "cannot read all: --drop deletes what stays"
        )


async def _drop(address: RedisAddress, password: str, run_id: str | None, as_json: bool) -> None:
    async with _opened(address, password) as (server, keys):
        dropped = await drop(server, keys, run_id)
    if as_json:
        print_json({"dropped": dropped})
    else:
        say(f"{_count(dropped)}{_of(run_id)} deleted")


@asynccontextmanager
async def _opened(address: RedisAddress, password: str) -> AsyncGenerator[tuple[RedisServer, Keys]]:
    async with open_server(RedisServer(address, password)) as server:
        yield server, Keys(address.prefix)


def _address(url: str | None, prefix: str | None) -> tuple[RedisAddress, str]:
    """The Redis server that the user names, and its password."""
    if not url:
        raise click.UsageError("set PREFACTOR_REDIS_URL, or give --redis")
    if not is_redis(url):
        raise click.UsageError(f"the address of a Redis server begins with {', '.join(SCHEMES)}")
    bare, password = without_password(url)
    try:
        address = RedisAddress.parse(bare)
        if prefix is not None:
            RedisAddress.parse(f"redis://host?{urlencode({'prefix': prefix})}")
            address = replace(address, prefix=prefix)
    except PrefactorValueError as error:
        # An agent has the address in api_url.
        raise click.UsageError(str(error).replace("api_url", "--redis")) from None
    return address, password


def _api(url: str | None) -> HttpClientConfig:
    if not url:
        raise click.UsageError("set PREFACTOR_API_URL, or give --api-url")
    if is_redis(url):
        raise click.UsageError(
            "--api-url (or PREFACTOR_API_URL) names a Redis server: a relay delivers to the API, "
            "https://..."
        )
    token = "" if url.startswith(LOCAL_PREFIX) else os.environ.get("PREFACTOR_API_TOKEN", "")
    return HttpClientConfig(api_url=url, api_token=SecretStr(token.strip()))


def _count(number: int) -> str:
    return "1 operation" if number == 1 else f"{number} operations"


def _of(run_id: str | None) -> str:
    return "" if run_id is None else f" of run {run_id}"
