"""A relay in a process of its own, with the options that the command lacks, on either backend.

``python -m support.relay_process BACKEND OPTIONS``; SIGTERM ends it in order.
"""

from __future__ import annotations

import logging
import signal
import sys
from typing import Any

import anyio
import msgspec
from support.relays import a_relay


async def main(options: dict[str, Any]) -> None:
    async with a_relay(**options) as relay, anyio.create_task_group() as tasks:
        with anyio.open_signal_receiver(signal.SIGTERM) as signals:

            async def stop_by_signal() -> None:
                async for _ in signals:
                    relay.stop()

            tasks.start_soon(stop_by_signal)
            await relay.run()
            tasks.cancel_scope.cancel()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    anyio.run(main, msgspec.json.decode(sys.argv[2]), backend=sys.argv[1])
