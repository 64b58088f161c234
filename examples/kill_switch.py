"""Kill switch: an agent that another process stops.

    python examples/kill_switch.py            # or: --backend trio

The agent calls one tool after the other, and records into the database file prefactor.db. After a
moment ``python -m prefactor_core terminate`` stops its run from another process. The program shows
what happened, as ``python -m prefactor_core tree`` does, and ends with exit code 1.

Somebody at Prefactor can stop a run in the same way. The client learns of it from the next answer
about the run, or by asking every ``termination_poll_interval`` seconds (30 by default;
``math.inf`` never asks). Then:

* The block of ``agent_instance()`` is cancelled, as by a time-out: ``finally`` blocks run, and a
  shield is respected. Spans that are open end as ``cancelled``. What the run does while it unwinds
  is recorded.
* One ``PrefactorTerminatedError`` with the ``reason`` leaves the block, also if the block swallowed
  the cancellation, or raised another error meanwhile, which is its context then. Only a
  cancellation from outside, Ctrl-C and ``SystemExit`` go before it. Other runs go on.
* Code that neither awaits nor opens spans for long calls ``instance.check()``, which raises.
  ``instance.on_terminate(callback)`` calls you with the reason; ``instance.terminated`` is the
  reason, or None.
* A run of ``create_agent_instance()`` has no block, and synchronous code cannot be cancelled: the
  next ``span()`` raises there, and so does ``check()``.

Only a run that Prefactor knows as active can be stopped.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from itertools import count

import anyio

from prefactor_core import (
    AgentInstanceHandle,
    PrefactorCoreClient,
    PrefactorCoreError,
    PrefactorTerminatedError,
    SchemaRegistry,
    open_prefactor,
)

REASON = "it searches in circles"

registry = SchemaRegistry()
registry.register_type(
    name="agent:tool",
    params_schema={"type": "object", "properties": {"tool": {"type": "string"}}},
    title="Tool call",
    template="{{tool}}",
)


def prefactor(*arguments: str) -> list[str]:
    """The command line of this package."""
    return [sys.executable, "-m", "prefactor_core", *arguments]


async def work(instance: AgentInstanceHandle) -> None:
    """Search for something that is not there: without end."""
    try:
        for page in count(1):
            async with instance.span("agent:tool", payload={"tool": "search", "page": page}):
                await anyio.sleep(0.25)
    finally:
        # The agent has the last word, and it is recorded.
        with instance.span("agent:tool", payload={"tool": "put everything back"}):
            print("the agent cleans up")


async def stop(client: PrefactorCoreClient, instance_id: str, api_url: str) -> None:
    """Stop the run from another process, as somebody who watches the agent would."""
    await anyio.sleep(0.3)
    await client.flush()  # now Prefactor knows the run as active
    command = prefactor("terminate", instance_id, "--reason", REASON, "--api-url", api_url)
    # The other process does not belong to the agent: do not cancel it with the agent.
    with anyio.CancelScope(shield=True):
        await anyio.run_process(command, stderr=None)


async def run_agent(api_url: str, agent_id: str) -> str:
    """Run the agent until it is stopped, and give the reason."""
    async with open_prefactor(api_url=api_url, schema_registry=registry) as client:
        try:
            async with client.agent_instance(
                agent_id=agent_id,
                agent_version={"name": "Searching agent", "external_identifier": "v1.0.0"},
            ) as instance:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(stop, client, instance.id, api_url)
                    await work(instance)
        except PrefactorTerminatedError as error:
            return str(error)
    return "nobody stopped the agent"


def main() -> None:
    parser = argparse.ArgumentParser(description="An agent that somebody stops.")
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    parser.add_argument(
        "--api-url", default=os.environ.get("PREFACTOR_API_URL") or "local:prefactor.db"
    )
    parser.add_argument("--agent-id", default=os.environ.get("PREFACTOR_AGENT_ID", "search"))
    options = parser.parse_args()
    try:
        why = anyio.run(run_agent, options.api_url, options.agent_id, backend=options.backend)
    except PrefactorCoreError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    sys.stdout.flush()
    subprocess.run(prefactor("tree", options.agent_id, "--api-url", options.api_url), check=True)
    sys.exit(why)


if __name__ == "__main__":
    main()
