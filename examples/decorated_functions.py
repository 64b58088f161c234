"""Decorated functions: ``@traced`` makes each call of a function a span of the current run.

    python examples/decorated_functions.py            # or with: trio

============================  ====================================================================
decorator                     what a call records
============================  ====================================================================
``@traced``                   an ``agent:tool_call``: the name of the function as ``tool``, its
                              arguments by name as ``arguments``, its return value as ``output``
``@traced(LLMCall, ...)``,    the span type of that class: each argument fills the field of the
or with ``ToolCall``,         same name, and the return value the result. Fields that no argument
``Retrieval``, ``AgentRun``   gives can be given here, as ``model="small-1"`` is. What is recorded
                              fits the schema of the type
``@traced("agent:mine")``     a span type of your own: the arguments by name as the payload; the
                              return value if it is a mapping, else ``{"result": ...}``
============================  ====================================================================

* It takes functions, methods and generators, asynchronous or not. If a function returns a stream, a
  task or another awaitable, the span lasts until that is done (``streaming_generators.py``).
* ``exclude=("api_key",)`` leaves arguments out, ``capture_result=False`` the result. The ``self``
  and ``cls`` of methods are always left out.
* The current run is that of the calling task or thread. ``@instance.traced`` records to that run
  instead.
* Without a run the function works as ever, and one ``INFO`` line of the log says that it is not
  recorded.

``prefactor_core.span(...)`` is the same for a block: a span of the current run, which does nothing
outside of one. ``current_instance()`` and ``current_span()`` give the run and the span of the
running code; both are None without one.

It leaves this tree::

    complete
    agent:run complete
      agent:retrieval complete
      agent:check complete
        agent:tool_call complete
      agent:llm_call complete
"""

from __future__ import annotations

import os
import sys

import anyio

from prefactor_core import current_span, open_prefactor, span, traced
from prefactor_core.span_types import AgentRun, AgentRunResult, LLMCall, Retrieval, standard_types

API_URL = os.environ.get("PREFACTOR_API_URL") or "local::memory:"

registry = standard_types()  # the usual steps, to add others to
registry.register("agent:check", {"type": "object"})


@traced  # tool "to_metres", arguments {"kilometres": 21.9}, output 21900.0
def to_metres(kilometres: float) -> float:
    return kilometres * 1000


@traced(Retrieval, source="atlas", exclude=("api_key",))  # query, source; documents
async def look_up(query: str, api_key: str) -> list[str]:
    await anyio.sleep(0.01)
    return [f"{query} is 21.9 km high"]


@traced("agent:check")  # payload {"kilometres": 21.9}, result {"result": True}
async def is_plausible(kilometres: float) -> bool:
    await anyio.sleep(0.01)
    return 0 < to_metres(kilometres) < 100_000  # its span is below this one


class Model:
    """Stands for the client of a model."""

    @traced(LLMCall, model="small-1")  # model, prompt, temperature; response
    async def ask(self, prompt: str, temperature: float = 0.5) -> str:
        await anyio.sleep(0.01)
        return prompt.split(" is ")[1]


async def answer(question: str) -> str:
    async with span(AgentRun(input=question)) as step:
        found = await look_up("Olympus Mons", api_key="k-3141")
        assert await is_plausible(21.9)
        text = await Model().ask(f"Shorten: {found[0]}")
        step.set_result(AgentRunResult(output=text))
    return text


async def main() -> None:
    await answer("How high is Olympus Mons?")  # outside of a run: it works, and records nothing
    assert current_span() is None
    async with open_prefactor(api_url=API_URL, schema_registry=registry) as client:
        async with client.agent_instance("decorated-functions", {"name": "Decorated functions"}):
            print(await answer("How high is Olympus Mons?"))
    print(f"lost operations: {client.statistics().lost}")


if __name__ == "__main__":
    anyio.run(main, backend=sys.argv[1] if len(sys.argv) > 1 else "asyncio")
