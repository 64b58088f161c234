"""Preconditions: what a relay asks of a server before it reads there."""

from __future__ import annotations

import logging
from typing import Final, cast

from prefactor_core.exceptions import PrefactorValueError
from prefactor_core.exceptions.log import log
from prefactor_core.operations import identifiers
from prefactor_core.relay.keys import Keys
from prefactor_core.relay.scripts import CONFIGURE
from prefactor_core.relay.server import RedisServer

SAFE_POLICY: Final = "noeviction"

logger = logging.getLogger("prefactor_core.relay")


async def unsafe_policy(server: RedisServer) -> str | None:
    """The ``maxmemory-policy`` of a server that could throw away what agents recorded; None if it
    could not: its memory has no bound, or it refuses what is new when that is full."""
    facts = await _facts(server, "memory")
    policy = facts.get("maxmemory_policy", SAFE_POLICY)
    is_bounded = facts.get("maxmemory", "0") != "0"
    return policy if is_bounded and policy != SAFE_POLICY else None


async def _facts(server: RedisServer, section: str) -> dict[str, str]:
    text = cast("bytes", await server.run("INFO", section)).decode()
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)


async def check_policy(server: RedisServer) -> None:
    """Raise :class:`PrefactorValueError` if the server could throw away what agents recorded."""
    policy = await unsafe_policy(server)
    if policy is not None:
        raise PrefactorValueError(
            f"{server.address} has maxmemory-policy {policy}: with a full memory it would throw "
            f"away what agents have recorded. Set it to {SAFE_POLICY}"
        )


async def check_persistence(server: RedisServer) -> None:
    """Log a warning if the server loses what agents have recorded when it stops."""
    facts = await _facts(server, "persistence")
    if facts.get("aof_enabled", "1") == "0":
        message = (
            "%s has appendonly no: what agents have recorded since its last snapshot is lost when "
            "it crashes. Set it to yes"
        )
        log(logger, logging.WARNING, message, server.address)


async def check_account(server: RedisServer, keys: Keys, api_url: str) -> None:
    """Take the keys for the API at ``api_url``, if they are no other's yet.

    Raises :class:`PrefactorValueError` if they are, or if their partition is none.
    """
    known = cast("bytes", await server.call(CONFIGURE, [keys.config], "api", api_url))
    if known != api_url.encode():
        raise PrefactorValueError(
            f"the relays with the prefix {keys.prefix!r} at {server.address} deliver to "
            f"{known.decode(errors='replace')}, and this one is for {api_url}: give it a prefix of "
            f"its own; or, if that API has moved here, or that was a mistake, end all relays, and "
            f"delete the key {keys.config}"
        )
    partition = await server.run("HGET", keys.config, "partition")
    if not is_partition(cast("bytes | None", partition)):
        raise PrefactorValueError(
            f"the field partition of {keys.config} at {server.address} is no partition: delete "
            "it, and a relay finds it out"
        )


def is_partition(text: bytes | None) -> bool:
    """Whether the field ``partition`` of the config may have this value."""
    return text is None or (text.isdigit() and int(text) <= identifiers.MAX_PARTITION)
