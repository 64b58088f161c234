"""Tokens of both scopes, and whom they stand for (API.md section 1). Pure."""

from __future__ import annotations

import hmac
from collections.abc import Mapping

from msgspec import Struct

from prefactor_core.local.refusal import Refusal


class Deployment(Struct, frozen=True, kw_only=True):
    """One agent in one environment; ``environment_id``: None for the default one."""

    agent_id: str
    environment_id: str | None = None


class Tokens:
    """``account``: the token that may do all. ``deployments``: those that stand for one
    deployment each, and may only record. Without any, all are taken, for the account."""

    def __init__(self, account: str | None, deployments: Mapping[str, Deployment] | None) -> None:
        self._account = account
        self._deployments = dict(deployments or {})

    def caller(self, authorization: str) -> Deployment | None:
        """Whom the header stands for: a deployment, or None for the account.

        Raises a :class:`Refusal` if it has none of the tokens.
        """
        given = authorization.encode()
        found: Deployment | None = None
        known = False
        # All of them, so that the time it takes tells nothing.
        for token, deployment in [(self._account, None), *self._deployments.items()]:
            if token is not None and hmac.compare_digest(given, f"Bearer {token}".encode()):
                known, found = True, deployment
        if not known and (self._account is not None or self._deployments):
            raise Refusal(401, "bad_authtoken", "the token is wrong or has expired")
        return found


def check_account(caller: Deployment | None) -> None:
    """Raises a :class:`Refusal` for the token of a deployment, which may only record.

    That goes also for the one read that recorders make, GET agent_instance/{id}: the service
    answers 401 on reads, so a client must hear of a termination from the answers to its spans.
    """
    if caller is not None:
        raise Refusal(401, "unauthorized", "the token of a deployment may record, not read")
