"""Clients whose process dies: only the files of their journal are left."""

from __future__ import annotations

import shutil
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from support.harness import make_config

from prefactor_core import PrefactorCoreClient, open_prefactor
from prefactor_core.api.client import AsgiApp, AsgiMessage


class Line:
    """An ASGI application: the connection of one process to ``app``; nobody has it when it is
    ``cut``."""

    def __init__(self, app: AsgiApp) -> None:
        self._app = app
        self.cut = False

    async def __call__(self, scope: AsgiMessage, receive: Any, send: Any) -> None:
        if self.cut:
            raise ConnectionRefusedError("the process is dead")
        await self._app(scope, receive, send)
        if self.cut:
            raise ConnectionResetError("the process is dead")


@asynccontextmanager
async def dying(folder: Path, app: AsgiApp, **options: Any) -> AsyncGenerator[PrefactorCoreClient]:
    """A client whose process dies, by a SIGKILL, when the block is left: its journals are in
    ``folder`` then, as they were at that moment, and unlocked.

    The client has a folder of its own, of which a copy is made. What it does after that, to end its
    tasks, is seen by nobody.
    """
    alive = folder.with_name(f"{folder.name} of the living")
    line = Line(app)
    options.setdefault("drain_timeout", 0.0)
    async with open_prefactor(make_config(journal=alive, **options), asgi_app=line) as client:
        yield client
        line.cut = True
        bury(alive, folder)
    shutil.rmtree(alive)


def bury(alive: Path, folder: Path) -> None:
    """Copy all journals in ``alive`` to ``folder``: there they belong to no process."""
    folder.mkdir(0o700, exist_ok=True)
    folder.chmod(0o700)
    for journal in alive.glob("*.journal"):
        shutil.copytree(journal, folder / journal.name)
