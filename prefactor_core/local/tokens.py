"""API tokens: the account's, and those of deployments. Pure."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from prefactor_core.exceptions import PrefactorValueError, in_message, type_in_message
from prefactor_core.local.errors import ApiError

TOKEN_PREFIX: Final = "pflocal_"
"""How each token that a server makes begins."""


class Deployment(Struct, frozen=True, kw_only=True):
    """One agent in one environment; ``environment_id``: None for the default one.

    Raises :class:`PrefactorValueError` for an id that is not a text, or empty.
    """

    agent_id: str
    environment_id: str | None = None

    def __post_init__(self) -> None:
        _check_id("agent_id", self.agent_id)
        if self.environment_id is not None:
            _check_id("environment_id", self.environment_id)


class Tokens:
    """The tokens that a server takes.

    The token ``account`` may do everything. Each of ``deployments`` stands for one deployment and
    may only record. Without any token, every caller is the account.

    Raises :class:`PrefactorValueError` for a token that is not a text, or empty.
    """

    def __init__(self, account: str | None, deployments: Mapping[str, Deployment] | None) -> None:
        self._account = account
        self._deployments = _checked(deployments)
        # No message shows a token.
        for token in (account, *self._deployments):
            if token is not None and not (isinstance(token, str) and token.strip()):
                kind = "an empty one" if isinstance(token, str) else type_in_message(token)
                raise PrefactorValueError(f"every token must be a text, got {kind}")
        if account in self._deployments:
            raise PrefactorValueError("api_token is one of deployment_tokens, too")

    def caller(self, authorization: str) -> Deployment | None:
        """The deployment of an ``Authorization`` header, or None for the account.

        Raises :class:`ApiError` (401) for a header without a known token.
        """
        given = authorization.encode()
        found: Deployment | None = None
        known = False
        # Compare with every token, so that the time it takes reveals nothing.
        for token, deployment in [(self._account, None), *self._deployments.items()]:
            if token is not None and hmac.compare_digest(given, f"Bearer {token}".encode()):
                known, found = True, deployment
        if not known and (self._account is not None or self._deployments):
            raise ApiError(401, "bad_authtoken", "the token is wrong or has expired")
        return found


def check_account(caller: Deployment | None) -> None:
    """Raise :class:`ApiError` (401) for the token of a deployment, which may only record.

    This includes GET agent_instance/{id}, the one read that recorders make. The service answers
    401 there, so a client must learn of a termination from the answers to its spans.
    """
    if caller is not None:
        raise ApiError(401, "unauthorized", "the token of a deployment may record, not read")


def _checked(deployments: Mapping[str, Deployment] | None) -> dict[str, Deployment]:
    if not isinstance(deployments, Mapping | None):
        raise PrefactorValueError(
            f"deployment_tokens must map tokens to deployments, got {type_in_message(deployments)}"
        )
    for deployment in (deployments or {}).values():
        if not isinstance(deployment, Deployment):
            raise PrefactorValueError(
                f"each of deployment_tokens must be a Deployment, got {in_message(deployment)}"
            )
    return dict(deployments or {})


def _check_id(name: str, id: object) -> None:
    if not isinstance(id, str) or not id:
        raise PrefactorValueError(f"{name} of a deployment must be a text, got {in_message(id)}")
