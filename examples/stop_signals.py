"""Signals: a container that is told to stop delivers what it has, and ends.

    python examples/stop_signals.py            # or with: trio

SIGTERM, by which a container is stopped, kills a Python program on the spot. With
``cancel_on_signals=(signal.SIGTERM,)`` it cancels the block of the client instead: ``finally``
blocks run, open runs end as ``cancelled``, what was recorded is delivered within
``drain_timeout`` seconds, and the block is left without an error. ``client.stopped_by`` is the
signal then. Give the container more time than ``drain_timeout`` before it is killed.

* By default no handler is touched. Ctrl-C cancels the block on asyncio and interrupts it on trio,
  and is recorded as a cancellation.
* The program's own handlers are back when the block is left.
* A signal that comes during the drain, when nothing is left to cancel, is raised again after the
  drain, once.
* It works with ``async with`` in the main thread, where Python handles signals; not with
  ``initialize()``, in another thread or with ``open_prefactor_sync``.

It leaves this tree::

    cancelled
    agent:job complete
    agent:job cancelled
"""

from __future__ import annotations

import os
import signal
import sys

import anyio

from prefactor_core import AgentInstanceHandle, SchemaRegistry, open_prefactor

API_URL = os.environ.get("PREFACTOR_API_URL") or "local::memory:"

registry = SchemaRegistry()
registry.register("agent:job", {"type": "object"})


async def work(instance: AgentInstanceHandle) -> None:
    async with instance.span("agent:job", payload={"job": 1}):
        await anyio.sleep(0.01)
    async with instance.span("agent:job", payload={"job": 2}):
        try:
            os.kill(os.getpid(), signal.SIGTERM)  # stands for the container's manager
            await anyio.sleep_forever()
        finally:
            print("job 2 puts its work back")


async def main() -> None:
    async with open_prefactor(
        api_url=API_URL, schema_registry=registry, cancel_on_signals=(signal.SIGTERM,)
    ) as client:
        async with client.agent_instance("stop-signals", {"name": "Worker"}) as instance:
            await work(instance)
    assert client.stopped_by is not None
    print(f"stopped by {client.stopped_by.name}; lost operations: {client.statistics().lost}")


if __name__ == "__main__":
    anyio.run(main, backend=sys.argv[1] if len(sys.argv) > 1 else "asyncio")
