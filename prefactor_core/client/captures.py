"""Captures: an application answers, in place of the API, every client that is opened meanwhile."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from prefactor_core.config.lazy_module import LazyModule

if TYPE_CHECKING:
    from prefactor_core.api import client as api_client
    from prefactor_core.config import PrefactorCoreConfig
else:
    api_client = LazyModule("prefactor_core.api.client")

NOWHERE: Final = "local::memory:"
"""The address of a captured client: nothing is sent there, and no journal is kept for it."""

# Not a context variable: threads of the program open clients, too.
_captures: list[api_client.AsgiApp] = []


@contextmanager
def capturing(app: api_client.AsgiApp) -> Generator[None]:
    """Let ``app`` answer the clients that are opened in the block, in any task and thread.

    Of several open blocks, the one that was entered last captures.
    """
    _captures.append(app)
    try:
        yield
    finally:
        _captures.remove(app)


def is_capturing() -> bool:
    """Whether a client that is opened now is captured."""
    return bool(_captures)


def captured(
    config: PrefactorCoreConfig, asgi_app: api_client.AsgiApp | None
) -> tuple[PrefactorCoreConfig, api_client.AsgiApp | None]:
    """The configuration and the application for a client that is opened now.

    A client with an application of its own is not captured.
    """
    if asgi_app is not None or not _captures:
        return config, asgi_app
    http = replace(config.http_config, api_url=NOWHERE, api_token="")
    return config.replace(http_config=http), _captures[-1]
