"""StatusPoll: asks the API whether it has stopped a run that is open."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

import anyio

from prefactor_core.delivery.identity import Identities, RunIdentity
from prefactor_core.delivery.ledger import Ledger
from prefactor_core.delivery.outage import Outage
from prefactor_core.exceptions import PrefactorAuthError, PrefactorCoreError
from prefactor_core.home import Home
from prefactor_core.lifecycle import InstanceStatus
from prefactor_core.log import log

if TYPE_CHECKING:
    from prefactor_core.api.client import ApiClient

logger = logging.getLogger("prefactor_core.delivery.status_poll")


class StatusPoll:
    """Looks at the status of every open run, each ``interval`` seconds; run by one worker.

    The answers to spans tell that a run is terminated as well (API.md section 7). This is for
    a run that records nothing for a while, and for an API whose answers do not tell.
    """

    def __init__(
        self,
        api: ApiClient,
        identities: Identities,
        outage: Outage,
        ledger: Ledger,
        home: Home,
        interval: float,
    ) -> None:
        self._api = api
        self._identities = identities
        self._outage = outage
        self._ledger = ledger
        self._home = home
        self._interval = interval
        self._ended = False
        self._scope: anyio.CancelScope | None = None

    async def serve(self) -> None:
        """Poll until :meth:`close`, or until the API says that this token may not."""
        if self._ended or self._interval == math.inf:
            return
        with anyio.CancelScope() as self._scope:
            while not self._ended:
                await anyio.sleep(self._interval)
                for run in self._identities.open_runs():
                    # An outage is the couriers' business: they see when it ends.
                    if not (self._ended or self._outage.told or self._home.is_left):
                        await self._ask(run)

    def close(self) -> None:
        """Ask no more; a request that is on its way is broken off."""
        self._ended = True
        if self._scope is not None:
            self._scope.cancel()

    async def _ask(self, run: RunIdentity) -> None:
        self._ledger.request()
        try:
            instance = await self._api.get_agent_instance(run.id)
        except PrefactorAuthError:
            # The token of a deployment may write and not read (API.md section 1).
            self._ended = True
            message = "this token may not read runs: only answers to spans tell of a termination"
            log(logger, logging.INFO, message)
        except PrefactorCoreError:
            pass  # the next time, perhaps
        else:
            if instance.status == InstanceStatus.TERMINATED:
                run.terminate(instance.termination_reason)
