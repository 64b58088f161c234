"""Threads: tools in synchronous code, and how each kind of thread finds its parent span.

    python examples/threads.py            # or: python examples/threads.py trio

Any thread may open and end spans, and so may a task of another event loop. Recording never waits
for the API or for the client's event loop. What differs is how a thread learns the current run
and span. These are context variables, and a thread has them only if it got a copy:

============================================  ===================================================
thread                                        parent of its spans
============================================  ===================================================
``to_thread`` of anyio, asyncio and trio      the span of the calling task: the context is copied
a pool, with ``copy_context().run``           the span around ``copy_context()``
your own ``Thread``, a pool, an executor      none, unless you give ``parent_span_id=``
============================================  ===================================================

A thread may also have a run of its own: ``with client.agent_instance(...)`` waits, in the thread,
until the client's event loop has registered it. Three more things wait, and belong to that loop:
``create_agent_instance()``, ``flush()`` and closing. A worker thread asks the loop for them by
``anyio.from_thread.run()``.

A client may close while threads still record. It ends the spans that they have open. A span that
they open later raises ``ClientNotInitializedError``.

A forked process has no part in the client of its parent. It sends nothing that the parent
recorded, and leaving the parent's blocks does nothing there. Opening a span or a run raises
``ClientScopeError``; a function under ``@traced`` runs unrecorded and logs that once. The child
opens a client of its own, in an event loop of its own.

It leaves this tree::

    complete
    agent:run complete
      agent:tool complete
      agent:tool complete
      agent:tool complete
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from threading import Thread

import anyio
import anyio.from_thread
import anyio.to_thread

from prefactor_core import AgentInstanceHandle, SchemaRegistry, open_prefactor

API_URL = os.environ.get("PREFACTOR_API_URL") or "local::memory:"

registry = SchemaRegistry()
registry.register("agent:run", {"type": "object"})
registry.register("agent:tool", {"type": "object"})


def search(instance: AgentInstanceHandle, where: str, parent_span_id: str | None = None) -> int:
    """A tool that blocks its thread."""
    with instance.span("agent:tool", parent_span_id, payload={"where": where}) as span:
        hits = len(where)
        span.set_result({"hits": hits})
    return hits


async def main() -> None:
    async with open_prefactor(api_url=API_URL, schema_registry=registry) as client:
        async with client.agent_instance("threads", {"name": "Agent with threads"}) as instance:
            async with instance.span("agent:run") as run:
                # 1. A worker thread gets the context of this task.
                await anyio.to_thread.run_sync(search, instance, "to_thread")

                # 2. A pool does not: hand it a copy.
                with ThreadPoolExecutor() as pool:
                    future = pool.submit(copy_context().run, search, instance, "pool")
                    await anyio.to_thread.run_sync(future.result)

                # 3. A thread of your own: name the parent.
                thread = Thread(target=search, args=[instance, "Thread", run.id])
                thread.start()
                await anyio.to_thread.run_sync(thread.join)

            # 4. A worker thread that must wait asks the loop.
            await anyio.to_thread.run_sync(anyio.from_thread.run, client.flush)
        statistics = client.statistics()
    print(f"{statistics.delivered} operations delivered while the client was open")


if __name__ == "__main__":
    anyio.run(main, backend=sys.argv[1] if len(sys.argv) > 1 else "asyncio")
