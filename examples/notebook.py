"""A notebook: ``initialize()`` in one cell, ``close()`` in another.

    python examples/notebook.py

Jupyter and IPython run each cell as a task of one event loop, and a block cannot span cells. The
scope of a client must be left by the task that entered it, so ``async with open_prefactor(...)``
fits into one cell only. ``await client.initialize()`` and ``await client.close()`` take its
place: each may be called in any task of the loop, since the client lives in a task of its own.
Web frameworks that start and stop in different tasks use the same two calls.

Each function below stands for a cell, and ``main`` for the kernel that runs them.

* Cells do not share context variables: name the run (``instance.span()``, ``@instance.traced``)
  and, across cells, the parent (``parent_span_id=``).
* A run opened by ``create_agent_instance()`` has no block. ``finish()`` ends it. Without
  ``start()`` it begins with its first span, and is the current run only inside of its spans.
* ``close()`` delivers as leaving the block does. It cannot see how your work ended: an open run
  ends as ``complete``, or as ``cancelled`` if nothing was done in it.
* A client that is never closed does the same when ``asyncio.run`` or ``trio.run`` ends. If the
  loop is only stopped, one warning says how much was lost: when the next client opens, or when
  the program ends.

It leaves this tree::

    complete
    agent:run complete
      agent:tool complete
      agent:tool failed
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine

from prefactor_core import AgentInstanceHandle, SchemaRegistry, SpanContext, open_prefactor

# Cell 1
registry = SchemaRegistry()
registry.register("agent:run", {"type": "object"})
registry.register("agent:tool", {"type": "object"})
API_URL = os.environ.get("PREFACTOR_API_URL") or "local::memory:"
client = open_prefactor(api_url=API_URL, schema_registry=registry)  # this opens nothing yet
instance: AgentInstanceHandle
session: SpanContext


async def cell_2() -> None:
    global instance, session
    await client.initialize()
    instance = await client.create_agent_instance("notebook", {"name": "Notebook"})
    session = instance.span("agent:run").detached()
    await session.start({"goal": "explore"})


async def cell_3() -> None:
    async with instance.span("agent:tool", session.id, payload={"query": "peaks"}) as span:
        span.set_result({"hits": 3})


async def cell_4() -> None:
    with instance.span("agent:tool", session.id, payload={"query": "valleys"}):
        raise LookupError("nothing there")  # the notebook shows it, and goes on


async def cell_5() -> None:
    await session.complete()
    await instance.finish()
    await client.close()
    print(f"{client.statistics().delivered} operations delivered")


async def main() -> None:
    cells: list[Callable[[], Coroutine[None, None, None]]] = [cell_2, cell_3, cell_4, cell_5]
    for cell in cells:
        try:
            task = asyncio.create_task(cell())
            await task
        except LookupError as error:
            print(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    asyncio.run(main())
