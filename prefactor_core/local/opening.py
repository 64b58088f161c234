"""open_local_prefactor: the scope that opens a database file and closes it."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Final

import anyio

from prefactor_core.exceptions import PrefactorValueError, in_message
from prefactor_core.local.app import LocalPrefactor
from prefactor_core.local.faults import Faults
from prefactor_core.local.store import LOCK_TIMEOUT, MEMORY, Store
from prefactor_core.local.tokens import Deployment
from prefactor_core.queue.daemon_thread import DaemonThread

_CLOSE_TIMEOUT: Final = 1.0
"""Seconds to wait until the file is closed; after that its thread closes it alone."""


@asynccontextmanager
async def open_local_prefactor(
    path: str,
    *,
    api_token: str | None = None,
    deployment_tokens: Mapping[str, Deployment] | None = None,
    agents: Collection[str] | None = None,
    faults: Faults | None = None,
    opening_timeout: float = 10.0,
    lock_timeout: float = LOCK_TIMEOUT,
    read_only: bool = False,
) -> AsyncGenerator[LocalPrefactor]:
    """Open the API on the database file ``path``, created if missing, as an ASGI application.

    ``path``: ``:memory:`` is a database that is gone when the block is left.
    ``api_token``: the token of the account. ``deployment_tokens``: each stands for one agent in one
    environment, and may record but not read. By default every request is the account's, with any
    token or none.
    ``agents``: the agents that exist, beside those that are created; by default every agent that
    registers a run.
    ``faults``: errors to make on purpose.
    ``opening_timeout``: seconds to wait while other processes lock a file that must be created or
    migrated; otherwise opening needs no lock.
    ``lock_timeout``: seconds that a call waits while another process locks the file; then it is
    answered 503.
    ``read_only``: change nothing in the file, which must be there; what writes is answered 503.

    The file is created for its owner alone. Other processes may have the same file open.

    Raises :class:`PrefactorValueError` for a ``path`` that is no database or cannot be opened in
    time, and for an invalid token or agent.
    """
    # SQLite takes "" for a file without a name, gone when it is closed.
    if not path:
        raise PrefactorValueError(f"path must be a file name or {MEMORY!r}, got {in_message(path)}")

    # A daemon thread: neither a thread that hangs in a lock or a disk, nor a loop that is stopped
    # in the middle, may keep the process from ending.
    thread = None if path == MEMORY else DaemonThread("prefactor local")
    stores: list[Store] = []

    def make() -> LocalPrefactor:
        store = Store(path, opening_timeout, lock_timeout, read_only=read_only)
        stores.append(store)
        return LocalPrefactor(
            store,
            api_token=api_token,
            deployment_tokens=deployment_tokens,
            agents=agents,
            faults=faults,
            thread=thread,
        )

    def close() -> None:
        for store in stores:
            store.close()

    close_timeout = 0.0  # if the opening fails, or its caller is cancelled
    try:
        app = await _opened(path, make, thread, opening_timeout)
        close_timeout = _CLOSE_TIMEOUT
        yield app
    finally:
        if thread is None:
            close()
        else:
            # The same thread closes the file, after calls whose callers have left.
            # RuntimeError: the thread cannot be started; SQLite closes a file without references.
            with (
                suppress(RuntimeError, sqlite3.Error),
                anyio.move_on_after(close_timeout, shield=True),
            ):
                try:
                    await thread.call(close)
                finally:
                    thread.end()


async def _opened(
    path: str,
    make: Callable[[], LocalPrefactor],
    thread: DaemonThread | None,
    seconds: float,
) -> LocalPrefactor:
    try:
        if thread is None:
            return make()
        # One more second: a call that waits for a lock gives up by itself, with a better message.
        with anyio.fail_after(seconds + 1.0):
            return await thread.call(make)
    except PrefactorValueError:
        raise
    except TimeoutError:
        problem = f"the disk did not answer within {seconds + 1.0:g} s"
    except FileNotFoundError as error:  # the file itself is created
        folder = os.path.dirname(path)  # noqa: PTH120 - as it was written
        problem = f"there is no folder {folder!r}" if folder else str(error)
    except (sqlite3.Error, OSError, ValueError, RuntimeError) as error:
        # RuntimeError: no thread can be started.
        problem = str(error)
    raise PrefactorValueError(f"cannot open the database {path!r}: {problem}")
