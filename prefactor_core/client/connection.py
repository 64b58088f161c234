"""open_api: a connection to the API that a configuration names."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

from prefactor_core.api.client import ApiClient, AsgiApp
from prefactor_core.client.runtime_environment import SDK
from prefactor_core.config.http import LOCAL_PREFIX, HttpClientConfig
from prefactor_core.exceptions import PrefactorValueError
from prefactor_core.queue.importing import import_in_thread


@asynccontextmanager
async def open_api(
    config: HttpClientConfig,
    asgi_app: AsgiApp | None = None,
    sdk_header_entry: Callable[[], str | None] = lambda: None,
    opening_timeout: float = 10.0,
    is_agent: bool = True,
) -> AsyncGenerator[ApiClient]:
    """Open the API that ``config`` names: the service at ``config.api_url``, or the local Prefactor
    on a file (``local:PATH``). ``asgi_app`` answers in place of either. No request is sent.

    ``sdk_header_entry``: returns the package that records by this one; asked for every request,
    which names it.
    ``opening_timeout``: seconds to wait for a local file that another process has locked.
    ``is_agent``: False for a reader, whose requests name no package.

    Raises :class:`PrefactorValueError` if a local file cannot be opened, if the environment names a
    proxy or certificates that cannot be used, or if ``config`` names a Redis server.
    """
    if asgi_app is None and config.redis is not None:
        raise PrefactorValueError("a relay's Redis holds no runs to read: give the API's address")

    def sdk_header() -> str:
        return " ".join(filter(None, (sdk_header_entry(), SDK)))

    async with AsyncExitStack() as stack:
        if asgi_app is None and config.is_local:
            local = await _local_app(config.api_url, opening_timeout)
            asgi_app = await stack.enter_async_context(local)
        yield await stack.enter_async_context(
            ApiClient(config, sdk_header if is_agent else None, asgi_app)
        )


async def _local_app(api_url: str, opening_timeout: float) -> AbstractAsyncContextManager[AsgiApp]:
    try:
        await import_in_thread("prefactor_core.local")
    except ImportError as error:
        raise PrefactorValueError(
            f"api_url {api_url!r} needs the extra 'local' of this package ({error}): "
            "pip install '.[local]' in its folder"
        ) from None
    from prefactor_core.local import open_local_prefactor

    path = api_url.removeprefix(LOCAL_PREFIX)
    return open_local_prefactor(path, opening_timeout=opening_timeout)
