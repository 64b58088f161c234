"""An API with its contents: one side writes them, the other reads them as the commands do."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from support.harness import make_config
from support.local_api import Api, calling

from prefactor_core.api.client import ApiClient
from prefactor_core.client.connection import open_api
from prefactor_core.local import Faults, LocalPrefactor, open_local_prefactor


@dataclass
class Stored:
    """``write`` records, ``read`` is what the commands use; ``asked`` gets the paths of its
    requests."""

    write: Api
    read: ApiClient
    asked: list[str]

    async def run(self, agent_id: str = "a1", **changes: Any) -> str:
        """Register a run; its id."""
        return await self.write.register(agent_id=agent_id, **changes)

    async def agent(self, name: str, external_identifier: str | None = None) -> str:
        """Create an agent; its id."""
        details = {"name": name, "external_identifier": external_identifier}
        return str((await self.write.done("agent", {"details": details}))["id"])


@asynccontextmanager
async def storing(
    faults: Faults | None = None, app: LocalPrefactor | None = None
) -> AsyncGenerator[Stored]:
    asked: list[str] = []
    async with AsyncExitStack() as stack:
        if app is None:
            opening = open_local_prefactor(":memory:", faults=faults)
            app = await stack.enter_async_context(opening)
        write = await stack.enter_async_context(calling(app))

        async def noting(scope: Any, receive: Any, send: Any) -> None:
            asked.append(scope["path"].removeprefix("/api/v1/"))
            await app(scope, receive, send)

        async with open_api(make_config().http_config, noting) as read:
            yield Stored(write, read, asked)
