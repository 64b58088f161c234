"""Account: the partition of the account's ids, which agents and relays find on the server."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, cast

import anyio

from prefactor_core.exceptions import (
    PrefactorApiError,
    PrefactorAuthError,
    PrefactorValueError,
)
from prefactor_core.exceptions.log import log
from prefactor_core.export.failures import is_of_the_api, lacks_call
from prefactor_core.operations import identifiers
from prefactor_core.queue.retry_policy import Backoff
from prefactor_core.relay.keys import Keys
from prefactor_core.relay.preconditions import is_partition
from prefactor_core.relay.scripts import CONFIGURE
from prefactor_core.relay.server import RedisServer

if TYPE_CHECKING:
    from prefactor_core.api.client import ApiClient

logger = logging.getLogger("prefactor_core.relay")


class Account:
    """Finds out the partition: from Redis, where another relay has written it down, or from the API
    (``POST pfid/generate``); then it is written down.

    An API without that call is asked again, after longer and longer waits: a later version may have
    it. Until then runs get their ids from the answers to their registrations.

    ``related_id``: a PFID of the partition; None while the partition is unknown. ``answered``: set
    as soon as the API, or another relay, has given an answer. ``waits_since``: the time of the
    first error of the API before that; None without one, and after it. ``error``: the last one.
    ``facts``: the known fields of ``pf:config``, alternating names and values.
    """

    def __init__(self, server: RedisServer, keys: Keys, api: ApiClient, backoff: Backoff) -> None:
        self._server = server
        self._keys = keys
        self._api = api
        self._backoff = backoff
        self.related_id: str | None = None
        self.answered = anyio.Event()
        self.waits_since: datetime | None = None
        self.error: PrefactorApiError | None = None
        self.facts = ["api", api.api_url]

    async def serve(self) -> None:
        """Ask until the partition is known."""
        attempts, was_lacking, was_denied = 0, False, False
        while self.related_id is None:
            try:
                await self._learn()
            except (PrefactorApiError, PrefactorValueError) as error:
                attempts += 1
                if lacks_call(error) and is_of_the_api(error):
                    if not was_lacking:
                        message = "the API tells no partition, and is asked again later (%s)"
                        log(logger, logging.WARNING, message, error)
                    was_lacking = True
                    self._answered()
                elif isinstance(error, PrefactorAuthError) and not was_denied:
                    was_denied = True
                    message = "the relay is refused, and delivers nothing until that ends (%s)"
                    log(logger, logging.ERROR, message, error)
                elif attempts == 1:
                    message = "the relay delivers nothing until it has a first answer (%s)"
                    log(logger, logging.WARNING, message, error)
                await anyio.sleep(self._backoff.delay(attempts))
        if was_lacking:
            log(logger, logging.INFO, "the partition of the account is known now")
        self._answered()

    def _answered(self) -> None:
        self.waits_since = self.error = None
        self.answered.set()

    async def _learn(self) -> None:
        partition = await self._server.run("HGET", self._keys.config, "partition")
        if partition is None:
            of_api = identifiers.partition_of(await self._ask())
            # Another relay may have been faster.
            partition = await self._server.call(CONFIGURE, [self._keys.config], "partition", of_api)
        self.found(cast("bytes", partition))
        if self.related_id is None:
            raise PrefactorValueError(f"the field partition of {self._keys.config} is none")

    async def _ask(self) -> str:
        try:
            return await self._api.generate_pfid()
        except PrefactorApiError as error:
            if not self.answered.is_set():
                self.waits_since, self.error = self.waits_since or datetime.now(UTC), error
            raise

    def found(self, partition: bytes | None) -> None:
        """Note the field ``partition`` of ``pf:config``. A relay reads it with each entry: agents
        may know it, and another relay may have registered runs with ids of it."""
        if self.related_id is None and partition is not None and is_partition(partition):
            self.related_id = identifiers.generate(int(partition))
            self.facts += ["partition", partition.decode()]
