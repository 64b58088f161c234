"""``python -m benchmarks.journal.dying URL FOLDER OPERATIONS``: an agent that dies.

It records so many operations into a journal, and ends without closing its client. Trees of ten
spans: the outer one takes two operations, a create and a finish; each inner one takes one.
"""

from __future__ import annotations

import asyncio
import os
import sys

from benchmarks.client import open_client
from benchmarks.drivers.job import Bodies
from prefactor_core.config import QueueConfig

_INNER = 9
_OF_TREE = _INNER + 2


async def main(url: str, folder: str, operations: int) -> None:
    """Record, and end this process. No turn of the loop: nothing is sent."""
    bodies = Bodies(400)
    queue = QueueConfig(max_pending_operations=10**9, max_pending_bytes=1 << 40)
    client = open_client(url, journal=folder, journal_max_bytes=1 << 40, queue_config=queue)
    async with client:
        async with client.agent_instance("benchmarks", {"name": "Benchmarks"}) as instance:
            for _ in range(operations // _OF_TREE):
                with instance.span("agent:llm", payload=bodies.payload) as outer:
                    for _ in range(_INNER):
                        with instance.span("agent:llm", payload=bodies.payload) as inner:
                            inner.set_result(bodies.result)
                    outer.set_result(bodies.result)
            os._exit(0)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
