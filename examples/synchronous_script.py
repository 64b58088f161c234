"""A synchronous script: no event loop, ``with`` all the way down.

    python examples/synchronous_script.py

``open_prefactor_sync`` delivers in a thread of its own, which ends with the block. Spans, runs and
``@traced`` are the same as in asynchronous code; methods that are awaited there end in ``_nowait``
here (``span.start_nowait()``, ``instance.finish_nowait()``). Registering a run,
``client.flush()`` and leaving the block wait for that thread. Any thread may use the client.

Nothing can cancel synchronous code. When the API terminates the run, its next ``span()``,
``instance.check()`` and the end of its block raise ``PrefactorTerminatedError``.

A client whose block is never left is closed when the program ends: open runs end as
``cancelled``, and delivery takes at most ``drain_timeout`` seconds.

It leaves this tree::

    complete
    agent:run complete
      agent:tool_call complete
      agent:tool_call complete
"""

from __future__ import annotations

import os

from prefactor_core import open_prefactor_sync, traced
from prefactor_core.span_types import AgentRun, AgentRunResult

API_URL = os.environ.get("PREFACTOR_API_URL") or "local::memory:"


@traced
def count_words(text: str) -> int:
    return len(text.split())


def main() -> None:
    with open_prefactor_sync(api_url=API_URL) as client:
        with client.agent_instance("script", {"name": "Script"}) as instance:
            with instance.span(AgentRun(input={"files": 2})) as span:
                words = count_words("a short text") + count_words("another one")
                span.set_result(AgentRunResult(output={"words": words}))
        # Seconds to wait at most; without them, as long as the API is away.
        in_time = client.flush(5)
    print(f"{words} words; delivered in time: {in_time}")


if __name__ == "__main__":
    main()
