"""open_api: the API that a configuration names, wherever it is."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from prefactor_core.api.client import ApiClient, AsgiApp
from prefactor_core.client.runtime_environment import SDK
from prefactor_core.config.http import LOCAL_PREFIX, HttpClientConfig
from prefactor_core.exceptions import PrefactorValueError
from prefactor_core.queue.importing import import_in_thread


@asynccontextmanager
async def open_api(
    config: HttpClientConfig,
    asgi_app: AsgiApp | None = None,
    sdk_header_entry: str | None = None,
    opening_timeout: float = 10.0,
) -> AsyncGenerator[ApiClient]:
    """The calls of the service at ``config.api_url``, of the local Prefactor on a file
    (``local:PATH``), or of ``asgi_app`` in place of either. No request is sent.
    ``sdk_header_entry`` names what records by this package (API.md section 1).
    ``opening_timeout``: seconds to wait for a local file that another process has locked.

    Raises :class:`PrefactorValueError` if a local one cannot be opened, or if the environment
    names a proxy or certificates that cannot be used.
    """
    sdk_header = SDK if sdk_header_entry is None else f"{sdk_header_entry} {SDK}"
    if asgi_app is None and config.is_local:
        await _import_local(config.api_url)
        async with (
            _local_app(config.api_url.removeprefix(LOCAL_PREFIX), opening_timeout) as local_app,
            ApiClient(config, sdk_header, local_app) as api,
        ):
            yield api
    else:
        async with ApiClient(config, sdk_header, asgi_app) as api:
            yield api


async def _import_local(api_url: str) -> None:
    try:
        await import_in_thread("prefactor_core.local")
    except ImportError as error:
        raise PrefactorValueError(
            f"api_url {api_url!r} needs the extra 'local' of this package ({error}): "
            "pip install '.[local]' in its folder"
        ) from None


def _local_app(path: str, opening_timeout: float) -> AbstractAsyncContextManager[AsgiApp]:
    from prefactor_core.local import open_local_prefactor

    return open_local_prefactor(path, opening_timeout=opening_timeout)
