"""Across processes: a service gives work to a worker, and both runs are one trace.

    python examples/across_processes.py            # or with: trio

The worker is a process of its own. It records a run of its own, because a run belongs to one
client. What joins the two are headers, as of an HTTP request or a message in a queue:

1. The sender calls ``client.inject(headers)`` in the step that asks for the work. That writes the
   step into ``traceparent`` and ``baggage``, which the W3C defines, and keeps what others have
   written into the baggage.
2. The receiver passes the headers to ``client.agent_instance(..., parent=headers)``: those of a
   web framework, of a message, or a mapping that you sent in a job. Headers without a step are
   fine, malformed ones are ignored.

Prefactor knows no parent in another run. So the spans of the worker's run that have no parent name
the step in their payloads, as ``prefactor_caused_by``; a span type that forbids further fields has
to allow this one. ``python -m prefactor_core tree`` shows it below the run, and the page of the
run links to it.

``python -m prefactor_core export RUN --format otlp`` writes a run as a trace of OpenTelemetry. Its
ids are those that ``inject()`` has sent. So the exports of both runs, and the spans of services
between them that know only OpenTelemetry, are one trace in any viewer. Where your program has a
current span of OpenTelemetry itself, ``inject()`` lets OpenTelemetry write the ``traceparent``.

Take headers only from senders you trust, as for any trace: a sender can name any step.

The run of the service leaves this tree::

    complete
    agent:run complete
      agent:tool_call complete

and that of the worker ``complete`` with one ``agent:retrieval``.
"""

from __future__ import annotations

import json
import os
import sys

import anyio

from prefactor_core import open_prefactor, open_prefactor_sync
from prefactor_core.span_types import (
    Document,
    Retrieval,
    RetrievalResult,
    ToolCall,
    ToolResult,
    standard_types,
)

API_URL = os.environ.get("PREFACTOR_API_URL") or "local::memory:"


async def service() -> None:
    """Asks a worker, as a service asks another one."""
    async with open_prefactor(api_url=API_URL, schema_registry=standard_types()) as client:
        async with client.agent_instance("across-processes", {"name": "Service"}) as instance:
            with instance.span("agent:run", payload={"input": "Which mountain is higher?"}):
                with instance.span(ToolCall(tool="atlas")) as call:
                    headers: dict[str, str] = {}
                    client.inject(headers)
                    job = json.dumps({"headers": headers, "query": "mountains"})
                    done = await anyio.run_process(
                        [sys.executable, __file__, "worker"], input=job.encode()
                    )
                    answer = json.loads(done.stdout)
                    call.set_result(ToolResult(output=answer["found"]))
    # The second part of a traceparent is the trace.
    same = answer["traceparent"].split("-")[1] == headers["traceparent"].split("-")[1]
    print(f"the worker has found: {answer['found']}; one trace: {same}")


def worker() -> None:
    """Takes a job with the headers of the service."""
    job = json.load(sys.stdin)
    with open_prefactor_sync(api_url=API_URL, schema_registry=standard_types()) as client:
        with client.agent_instance(
            "across-worker", {"name": "Worker"}, parent=job["headers"]
        ) as instance:
            with instance.span(Retrieval(query=job["query"], source="atlas")) as span:
                span.set_result(RetrievalResult(documents=[Document(text="Olympus Mons")]))
                # What this worker would send to a third process.
                headers: dict[str, str] = {}
                client.inject(headers)
    print(json.dumps({"found": "Olympus Mons", "traceparent": headers["traceparent"]}))


if __name__ == "__main__":
    if sys.argv[1:] == ["worker"]:
        worker()
    else:
        anyio.run(service, backend=sys.argv[1] if len(sys.argv) > 1 else "asyncio")
