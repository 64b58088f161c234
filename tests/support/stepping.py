"""An event loop on virtual time that runs only while a step of it is wanted, for rule machines."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

import anyio
from support.virtual_time import VirtualTimeLoop, virtual_time

T = TypeVar("T")


class Steps(Protocol):
    """``run(action)`` gives what ``action`` gives. Between two calls the time stands still, and all
    tasks with it. ``close()`` cancels what is left."""

    def run(self, action: Callable[[], Awaitable[T]]) -> T: ...

    def close(self) -> None: ...


class _AsyncioSteps:
    def __init__(self) -> None:
        self._runner = asyncio.Runner(loop_factory=VirtualTimeLoop)

    def run(self, action: Callable[[], Awaitable[T]]) -> T:
        async def run() -> T:
            return await action()

        return self._runner.run(run())

    def close(self) -> None:
        self._runner.close()


class _TrioSteps:
    """Trio as the guest of a loop that has nothing but the turns of trio."""

    def __init__(self) -> None:
        import trio

        self._turns: deque[Callable[[], object]] = deque()
        self._ended: list[Any] = []
        self._send, self._receive = trio.open_memory_channel[Callable[[], Awaitable[None]]](1)
        self._token: trio.lowlevel.TrioToken | None = None
        trio.lowlevel.start_guest_run(
            self._main,
            run_sync_soon_threadsafe=self._turns.append,
            done_callback=self._ended.append,
            **virtual_time("trio"),
        )
        self._turn_until(lambda: self._token is not None)

    async def _main(self) -> None:
        import trio

        self._token = trio.lowlevel.current_trio_token()
        async with self._receive:
            async for step in self._receive:
                await step()

    def _turn_until(self, is_done: Callable[[], bool]) -> None:
        while not is_done():
            assert self._turns, "a thread is waited for"
            self._turns.popleft()()

    def run(self, action: Callable[[], Awaitable[T]]) -> T:
        results: list[T] = []
        errors: list[BaseException] = []

        async def step() -> None:
            try:
                results.append(await action())
            except Exception as error:
                errors.append(error)

        assert self._token is not None
        self._token.run_sync_soon(self._send.send_nowait, step)
        self._turn_until(lambda: bool(results or errors or self._ended))
        if errors:
            raise errors[0]
        if not results:
            self._ended[0].unwrap()
        return results[0]

    def close(self) -> None:
        if not self._ended:
            assert self._token is not None
            self._token.run_sync_soon(self._send.close)
            self._turn_until(lambda: bool(self._ended))
        self._ended[0].unwrap()


def open_steps(backend: str) -> Steps:
    """A loop of this backend that stands still."""
    return _AsyncioSteps() if backend == "asyncio" else _TrioSteps()


class Task:
    """A task of its own for ``main``, which goes on during later steps, and can be cancelled.

    Make it within a step.
    """

    def __init__(self, main: Callable[[], Awaitable[None]]) -> None:
        self._main = main
        self._scope = anyio.CancelScope()
        self.error: Exception | None = None
        self.ended = anyio.Event()
        self._keep: object
        if anyio.get_current_task().id and _is_trio():
            import trio

            self._keep = trio.lowlevel.spawn_system_task(self._run)
        else:
            self._keep = asyncio.create_task(self._run())

    async def _run(self) -> None:
        try:
            with self._scope:
                await self._main()
        except Exception as error:
            self.error = error
        self.ended.set()

    async def cancel(self) -> None:
        """Cancel it, and return when it has ended."""
        self._scope.cancel()
        await self.ended.wait()


def _is_trio() -> bool:
    import sniffio

    return sniffio.current_async_library() == "trio"
