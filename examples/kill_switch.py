"""An agent that somebody stops: the kill switch, from another process.

    python examples/kill_switch.py --backend trio

The agent calls one tool after the other, into the database file prefactor.db. After a moment,
``python -m prefactor_core terminate`` stops its run from outside: the next answer of the API
says so, the agent is cancelled at its next checkpoint, cleans up, and ends. What happened is
shown as ``python -m prefactor_core show`` does it.
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
    """Looks for something that is not there, and would never stop."""
    try:
        for page in count(1):
            async with instance.span("agent:tool", payload={"tool": "search", "page": page}):
                await anyio.sleep(0.25)
    finally:
        # The agent has the last word: what it does while it unwinds is recorded as well.
        with instance.span("agent:tool", payload={"tool": "put everything back"}):
            print("the agent cleans up")


async def stop(client: PrefactorCoreClient, instance_id: str, api_url: str) -> None:
    """What somebody who watches the agent does, in another process."""
    await anyio.sleep(0.3)
    await client.flush()  # only a run that the API knows as active can be terminated
    command = prefactor("terminate", instance_id, "--reason", REASON, "--api-url", api_url)
    # It is not the agent's, and is not cancelled with it.
    with anyio.CancelScope(shield=True):
        await anyio.run_process(command, stderr=None)


async def run_agent(api_url: str, agent_id: str) -> str:
    """Run the agent until it is stopped; why it was."""
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
    subprocess.run(prefactor("show", options.agent_id, "--api-url", options.api_url), check=True)
    sys.exit(why)


if __name__ == "__main__":
    main()
