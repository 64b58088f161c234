"""Streams: a span that lasts as long as an iteration.

    python examples/streaming_generators.py            # or with: trio

``@traced`` takes generators, and functions that return a stream. The span begins with the first
item that is asked for and ends with the last. Its result is ``items``, each as it was when it was
yielded, up to ``max_payload_bytes`` in all; or the return value of ``reduce``, which gets the
list of the first 10,000 items. These are kept in memory until the stream ends.

A stream that its consumer leaves early ends as ``cancelled``. Close it: ``aclosing()`` does, and
a garbage collector may come late.

A generator may also hold a span of its own open across its ``yield``. The span is innermost while
the generator's code runs, and for the tasks and threads that this code starts and waits for. The
consumer does not get it as a parent. The same holds for a generator that is a context manager or
a pytest fixture, except that there the span is innermost in the block or the test.

Two things cannot be known from outside: to whom a task belongs that the consumer starts between
two items while the generator works on the next one; and that a function which the generator
calls, ``create_span()`` for one, has opened a span on its behalf. Write
``instance.span(...).detached()`` there. A detached span becomes the parent only of spans that
name it by ``parent_span_id=``.

Never let an asynchronous generator yield inside of ``async with client.agent_instance(...)``: a
run has a cancel scope, and a cancel scope belongs to one task. Spans have none.

It leaves this tree::

    complete
    agent:llm complete
      agent:tool complete
    agent:tool complete
    agent:tool complete
    agent:llm cancelled
      agent:tool complete
    agent:feed complete
      agent:tool complete
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing

import anyio
import anyio.lowlevel

from prefactor_core import AgentInstanceHandle, SchemaRegistry, open_prefactor, traced

API_URL = os.environ.get("PREFACTOR_API_URL") or "local::memory:"

registry = SchemaRegistry()
for name in ("agent:llm", "agent:tool", "agent:feed"):
    registry.register(name, {"type": "object"})


@traced("agent:tool")
async def tool(text: str) -> str:
    await anyio.lowlevel.checkpoint()
    return text.upper()


@traced("agent:llm", reduce="".join)
async def stream(prompt: str) -> AsyncGenerator[str]:
    """The answer of a model, word by word. Its result is the whole text."""
    await tool(prompt)  # a child of the stream
    for word in ("Olympus", " ", "Mons"):
        yield word


async def feed(instance: AgentInstanceHandle) -> AsyncGenerator[int]:
    """A generator that holds a span open by hand, and names it as the parent."""
    async with instance.span("agent:feed").detached() as span:
        for number in range(2):
            yield number  # noqa: ASYNC119 - a span may be left in any context
        async with instance.span("agent:tool", span.id):
            pass


async def main() -> None:
    async with open_prefactor(api_url=API_URL, schema_registry=registry) as client:
        async with client.agent_instance("streams", {"name": "Streaming agent"}) as instance:
            text = ""
            async for chunk in stream("Which mountain?"):
                if chunk.strip():
                    await tool(chunk)  # a sibling of the stream, not its child
                text += chunk

            async with aclosing(stream("Which one now?")) as chunks:
                async for _ in chunks:
                    break  # enough: this stream is recorded as cancelled

            numbers = [number async for number in feed(instance)]
    print(f"{text!r}, then {numbers}")


if __name__ == "__main__":
    anyio.run(main, backend=sys.argv[1] if len(sys.argv) > 1 else "asyncio")
