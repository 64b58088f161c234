"""Tests of an agent, with any plugin for asynchronous tests or none.

    python examples/test_with_pytest.py        # or: pytest examples/test_with_pytest.py

It needs pytest (``pip install pytest``).

The extra ``local`` brings a pytest fixture, ``prefactor``: a Prefactor in memory, a new one for
each test. It is a ``prefactor_core.testing.Recording``. Nothing has to be patched, and no test
needs a network or an account.

* ``prefactor.open(...)`` takes the options of ``open_prefactor``, and needs no address.
  ``prefactor.open_sync(...)`` is the same for agents that write ``with``.
* ``prefactor.runs`` is what was delivered: everything, once the block of the client is left or
  ``await client.flush()`` has returned. ``prefactor.run`` is the only run.
* ``run.outline`` is the status of the run and, indented below it, a line for each span.
  ``run.named(name)`` is its only span of that name, ``run.spans_named(name)`` all of them.
* ``run.flags`` says what does not fit the agent's ``schema_registry``, by default the standard
  types: misspelled span types and payloads that break their schemas. With an empty
  ``SchemaRegistry()`` every name is taken, and all fits. ``run.quality`` has the quality payloads
  by name.
* ``prefactor.terminate(instance.id, reason)`` stops a run, as Prefactor would.
* The kit reads nothing of the environment. ``PREFACTOR_ENABLED=0`` switches off what your agent
  opens by itself, and nothing here.

The fixture is synchronous, and so is everything that is read from it. It goes with every plugin:

==================  ==============================================================================
plugin              how an asynchronous test is marked
==================  ==============================================================================
anyio               ``@pytest.mark.anyio``: comes with anyio, and runs the test on asyncio and, if
                    it is installed, on trio; or ``anyio_mode = "auto"`` and no mark
pytest-asyncio      ``@pytest.mark.asyncio``, or ``asyncio_mode = "auto"`` and no mark
pytest-trio         ``@pytest.mark.trio``, or ``trio_mode = true`` and no mark
none                ``def test_...(): anyio.run(main, prefactor)``, as below
==================  ==============================================================================

An asynchronous fixture of your own may hold a client open across its ``yield`` if its plugin
enters and leaves the fixture in one task: anyio's does. Elsewhere use ``initialize()`` and
``close()``. Without pytest, write ``with open_recording() as recording:``.
"""

from __future__ import annotations

import subprocess
import sys

import anyio
import pytest

from prefactor_core import PrefactorCoreClient, PrefactorTerminatedError
from prefactor_core.span_types import LLMCall, LLMResult, ToolCall
from prefactor_core.testing import Recording


async def agent(client: PrefactorCoreClient, question: str) -> str:
    """The agent that is tested."""
    async with client.agent_instance("my-agent", {"name": "My agent"}) as instance:
        async with instance.span(LLMCall(model="small-1", prompt=question)) as span:
            span.set_result(LLMResult(response="Hi there"))
        async with instance.span(ToolCall(tool="search")):
            if not question:
                raise ValueError("nothing to search for")
            await anyio.sleep(0.01)
        instance.check()
    return "Hi there"


@pytest.mark.anyio
async def test_it_asks_its_model_and_then_searches(prefactor: Recording) -> None:
    async with prefactor.open() as client:
        assert await agent(client, "Hello") == "Hi there"
    run = prefactor.run
    assert run.outline == "complete\nagent:llm_call complete\nagent:tool_call complete"
    assert run.named("agent:llm_call").payload["prompt"] == "Hello"
    assert run.flags == []


@pytest.mark.anyio
async def test_an_empty_question_is_recorded_as_a_failure(prefactor: Recording) -> None:
    async with prefactor.open() as client:
        with pytest.raises(ValueError, match="nothing to search for"):
            await agent(client, "")
    failed = prefactor.run.named("agent:tool_call")
    assert (prefactor.run.status, failed.status) == ("failed", "failed")
    assert failed.result is not None
    assert failed.result["error"]["type"] == "ValueError"


def test_it_stops_when_the_run_is_terminated(prefactor: Recording) -> None:
    """Without a plugin: a synchronous test runs its own event loop."""

    async def stopped(client: PrefactorCoreClient) -> None:
        async with client.agent_instance("my-agent", {"name": "My agent"}) as instance:
            await client.flush()  # only a run that Prefactor knows as active can be stopped
            prefactor.terminate(instance.id, "over budget")
            async with instance.span("agent:tool") as span:
                await span.start()  # reported now: the answer says that the run is to stop
                await anyio.sleep(10)  # cancelled here

    async def main() -> None:
        async with prefactor.open() as client:
            with pytest.raises(PrefactorTerminatedError, match="over budget"):
                await stopped(client)

    anyio.run(main)
    assert prefactor.run.outline == "terminated\nagent:tool cancelled"


if __name__ == "__main__":
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    sys.exit(subprocess.call(command))
