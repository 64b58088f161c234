"""A client on a loop in another thread, for rule machines, which are synchronous."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import ExitStack
from typing import Any, TypeVar

import anyio
from anyio.from_thread import start_blocking_portal
from support.harness import StoredRun, make_config, stored_quality, stored_runs

from prefactor_core import PrefactorCoreClient, Statistics, open_prefactor
from prefactor_core.local import Faults, open_local_prefactor

T = TypeVar("T")


class Host:
    """One task that has a client open, before a strict API in memory, and executes commands.

    All is done in one context, so that open spans stand around what comes later. ``faults``
    are those of the API, and may be changed. ``quality``: what is stored of that in the end, by
    run.
    """

    client: PrefactorCoreClient

    def __init__(self, backend: str, **options: Any) -> None:
        self.faults = Faults()
        self.refusals: dict[str, int] = {}
        self._options = options
        self._stack = ExitStack()
        self._portal = self._stack.enter_context(start_blocking_portal(backend))
        self._send, self._receive = anyio.create_memory_object_stream[Any](0)
        ready: Future[None] = Future()
        self._ended = self._portal.start_task_soon(self._serve, ready)
        ready.result(10)

    async def _serve(self, ready: Future[None]) -> tuple[Statistics, list[StoredRun]]:
        async with open_local_prefactor(":memory:", faults=self.faults) as app:
            async with open_prefactor(make_config(**self._options), asgi_app=app) as self.client:
                ready.set_result(None)
                async with self._receive:
                    async for action, done in self._receive:
                        try:
                            done.set_result(await action())
                        except Exception as error:
                            done.set_exception(error)
            for name in Faults.__struct_fields__:
                setattr(self.faults, name, getattr(Faults(), name))
            self.refusals = dict(app.refusals)
            runs = await stored_runs(app)
            self.quality = {run.id: await stored_quality(app, run.id) for run in runs}
            return self.client.statistics(), runs

    def do(self, action: Callable[[], Awaitable[T]]) -> T:
        """What ``action`` gives, done by the task."""
        done: Future[T] = Future()
        self._portal.call(self._send.send, (action, done))
        return done.result(20)

    def end(self) -> tuple[Statistics, list[StoredRun]]:
        """Leave the client; the balance, and what the API has stored."""
        with self._stack:
            self._portal.call(self._send.aclose)
            return self._ended.result(20)
