"""Callbacks of a framework: a step starts in one call and ends in another.

    python examples/framework_callbacks.py            # or with: trio

Frameworks for agents report their steps by callbacks: ``on_start(step_id, parent_id, ...)``, then
``on_end(step_id, ...)`` or ``on_error(step_id, ...)``, each perhaps in another task or thread.
There is no block to put a ``with`` around. Three rules make an adapter:

1. Keep the span objects by the framework's ids, and remove each when it ends. The client keeps
   nothing of a span that has ended.
2. Name the parent: ``instance.span(name, parent_span_id=...)``. The framework knows it; the
   context of a callback does not. ``detached()`` keeps a span out of that context, so that it
   does not become the parent of unrelated spans.
3. Use the ``_nowait`` methods. They only record: they never wait, and never raise because of the
   API. The first end of a span counts.

A span that nobody ends is ended with its run, as ``cancelled``, or as ``failed`` if the block of
the run raised.

Where an id is all you can keep, ``client.create_span()`` gives the id of a started span and
``client.finish_span()`` ends it as ``complete``.

To record what happened at another time, pass a datetime with a time zone: ``started_at=`` for a
start, ``timestamp=`` for an end. A datetime without one, and an end before the start, raise
``PrefactorValueError``; nothing is recorded then, and the span stays open.

It leaves this tree::

    complete
    agent:run complete
      agent:llm_call complete
      agent:tool_call failed
      agent:tool_call cancelled
"""

from __future__ import annotations

import os
import sys
from typing import Any

import anyio
import anyio.to_thread

from prefactor_core import AgentInstanceHandle, SpanContext, open_prefactor

API_URL = os.environ.get("PREFACTOR_API_URL") or "local::memory:"


class Recorder:
    """The adapter: callbacks of a framework come in, spans go out."""

    def __init__(self, instance: AgentInstanceHandle) -> None:
        self._instance = instance
        self._open: dict[str, SpanContext] = {}

    def on_start(
        self, step_id: str, parent_id: str | None, kind: str, inputs: dict[str, Any]
    ) -> None:
        parent = None if parent_id is None else self._open.get(parent_id)
        parent_span_id = None if parent is None else parent.id
        span = self._instance.span(f"agent:{kind}", parent_span_id).detached()
        span.start_nowait(inputs)
        self._open[step_id] = span

    def on_end(self, step_id: str, outputs: dict[str, Any]) -> None:
        span = self._open.pop(step_id, None)
        if span is not None:
            span.complete_nowait(outputs)

    def on_error(self, step_id: str, error: BaseException) -> None:
        span = self._open.pop(step_id, None)
        if span is None:
            return
        if isinstance(error, Exception):
            # As a block that raises records it.
            span.fail_nowait({"error": {"type": type(error).__name__, "message": str(error)}})
        else:
            span.cancel_nowait()  # a cancellation, or Ctrl-C


async def framework(callbacks: Recorder) -> None:
    """Stands for a framework. It calls back from whichever task it is in."""
    callbacks.on_start("1", None, "run", {"input": "Which mountain is higher?"})
    callbacks.on_start("2", "1", "llm_call", {"model": "small-1", "prompt": "Plan"})
    callbacks.on_end("2", {"response": "search"})
    callbacks.on_start("3", "1", "tool_call", {"tool": "search"})

    error = TimeoutError("no answer within 5 s")
    await anyio.to_thread.run_sync(callbacks.on_error, "3", error)  # in another thread
    callbacks.on_start("4", "1", "tool_call", {"tool": "lost"})  # its end is never reported
    callbacks.on_end("1", {"output": "Olympus Mons"})


async def main() -> None:
    async with open_prefactor(api_url=API_URL) as client:
        async with client.agent_instance("callbacks", {"name": "Framework"}) as instance:
            await framework(Recorder(instance))
    statistics = client.statistics()
    print(f"lost operations: {statistics.lost}; bytes still held: {statistics.open_bytes}")


if __name__ == "__main__":
    anyio.run(main, backend=sys.argv[1] if len(sys.argv) > 1 else "asyncio")
