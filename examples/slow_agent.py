"""A slow agent: twenty seconds to watch a run while it goes on, and to stop it.

    python examples/slow_agent.py            # or: --backend trio --pace 0.1

It plans a trip: models that think, tools side by side, one of them away at first, a search in
notes, a second agent that minds the budget, and a wait for somebody's consent.

``python -m prefactor_core demo --slow`` runs the same, and serves the page that shows it. Its
button Terminate stops the agent: the block of ``agent_instance()`` is cancelled, and one
``PrefactorTerminatedError`` leaves it. For that to be quick, the agent asks each second whether it
was stopped; ``report_after`` makes a step appear soon after its begin, not at its end.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping

import anyio

from prefactor_core import (
    AgentInstanceHandle,
    PrefactorCoreError,
    PrefactorTerminatedError,
    QueueConfig,
    open_prefactor,
)
from prefactor_core.span_types import (
    AgentRun,
    AgentRunResult,
    Document,
    LLMCall,
    LLMResult,
    Retrieval,
    RetrievalResult,
    TokenUsage,
    ToolCall,
    ToolResult,
)

QUESTION = "Plan two days in Lisbon for two, from Porto, for 400 euros"

NOTES = {
    "notes/lisbon-2023.md": "The 28 tram is full after nine. Alfama is best before breakfast.",
    "notes/food.md": "Cervejaria in Rua das Flores: no table without a call the day before.",
    "notes/trains.md": "Sit on the right, southbound: the sea comes after Espinho.",
}

ANSWER = """\
## Two days in Lisbon

| | Saturday | Sunday |
|---|---|---|
| morning | train 07:40 from Porto, on the right | Alfama before breakfast |
| midday | Baixa, lunch in Rua das Flores (**call today**) | Belém by boat |
| evening | fado, 21:00 | train 19:10 |

Together **386 euros**: trains 126, hotel 148, meals 92, boat 20.
"""


class Agent:
    """The steps of one run. All seconds are multiplied by ``pace``."""

    def __init__(self, instance: AgentInstanceHandle, pace: float) -> None:
        self.instance = instance
        self.pace = pace

    async def wait(self, seconds: float) -> None:
        """Stands for the work."""
        await anyio.sleep(seconds * self.pace)

    async def think(
        self,
        seconds: float,
        prompt: str,
        response: str = "",
        *,
        tools: tuple[str, ...] = (),
        model: str = "large-2",
    ) -> None:
        """A call of a model, which answers or asks for tools."""
        messages = [
            {"role": "system", "content": "You plan trips. Ask before you spend."},
            {"role": "user", "content": prompt},
        ]
        call = LLMCall(model=model, messages=messages, temperature=0.2)
        async with self.instance.span(call) as span:
            await span.start()  # show the call while the model thinks
            await self.wait(seconds)
            asked, said = 40 + len(prompt), 12 + len(response) // 3 + 20 * len(tools)
            span.set_result(
                LLMResult(
                    response=response or None,
                    tool_calls=[{"name": tool, "arguments": {}} for tool in tools] or None,
                    finish_reason="tool_calls" if tools else "stop",
                    token_usage=TokenUsage(
                        prompt_tokens=asked, completion_tokens=said, total_tokens=asked + said
                    ),
                    cost=round(asked * 3e-6 + said * 15e-6, 6),
                    time_to_first_token=round(seconds / 4, 2),
                )
            )

    async def use(
        self, seconds: float, tool: str, arguments: Mapping[str, object], output: object
    ) -> None:
        """A call of a tool; an ``output`` that is an exception is what it fails with."""
        async with self.instance.span(ToolCall(tool=tool, arguments=arguments)) as span:
            await self.wait(seconds)
            if isinstance(output, Exception):
                raise output
            span.set_result(ToolResult(output=output))

    async def look_up(self) -> None:
        """Four tools at the same time."""
        route = {"from": "Porto", "to": "Lisbon", "day": "Saturday"}
        trains = [{"departs": "07:40", "price": 31.5}, {"departs": "09:15", "price": 38.0}]
        hotels = [{"name": "Pensão Alegria", "price": 74}, {"name": "Casa do Rio", "price": 131}]
        async with self.instance.span(ToolCall(tool="look_up", arguments={"topics": 4})) as span:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.use, 1.4, "find_trains", route, trains)
                tasks.start_soon(self.use, 2.6, "find_hotels", {"nights": 1, "guests": 2}, hotels)
                tasks.start_soon(self.ask_for_weather)
                tasks.start_soon(self.read_notes)
            span.set_result(ToolResult(output={"trains": 2, "hotels": 2, "notes": len(NOTES)}))

    async def ask_for_weather(self) -> None:
        place = {"place": "Lisbon", "days": 2}
        try:
            away = ConnectionError("weather.example: no answer within 0.8 s")
            await self.use(0.8, "weather", place, away)  # recorded as failed, with its error
        except ConnectionError:
            await self.wait(0.5)
            await self.use(0.6, "weather", place, {"saturday": "sun, 24 °C", "sunday": "wind"})

    async def read_notes(self) -> None:
        query = Retrieval(query="Lisbon, trains, where to eat", source="notes", top_k=3)
        async with self.instance.span(query) as span:
            await self.wait(1.1)
            found = [
                Document(id=name, text=text, score=0.91 - 0.07 * rank)
                for rank, (name, text) in enumerate(NOTES.items())
            ]
            span.set_result(RetrievalResult(documents=found))

    async def mind_the_budget(self) -> None:
        """An agent inside the agent."""
        question = "Do trains, hotel and meals fit into 400 euros?"
        async with self.instance.span(AgentRun(agent="budget", input=question)) as run:
            await self.think(1.2, question, tools=("add_up",), model="small-1")
            prices = [126, 148, 92, 20]
            await self.use(0.3, "add_up", {"prices": prices}, sum(prices))
            await self.think(
                0.9, "386 of 400 euros", "They do; 14 euros are left.", model="small-1"
            )
            run.set_result(AgentRunResult(output="They do; 14 euros are left."))

    async def plan(self) -> None:
        async with self.instance.span(AgentRun(agent="planner", input=QUESTION)) as run:
            await self.think(1.8, QUESTION, tools=("look_up",))
            await self.look_up()
            await self.wait(2.5)  # the model's rate limit: time that belongs to no step
            await self.think(2.2, "Compare the trains and the hotels", "07:40, Pensão Alegria")
            with anyio.move_on_after(1.0 * self.pace):  # too slow: recorded as cancelled
                await self.use(9.0, "reviews", {"hotel": "Pensão Alegria"}, [])
            await self.mind_the_budget()
            await self.use(4.0, "ask_for_consent", {"euros": 386}, {"consent": True})
            await self.think(2.6, "Write the plan as a table", ANSWER)
            run.set_result(AgentRunResult(output=ANSWER))


async def run_agent(
    api_url: str,
    agent_id: str,
    *,
    pace: float = 1.0,
    started: Callable[[str], None] = lambda instance_id: None,
) -> str:
    """Run the agent once, and give the id of the recorded agent instance, as ``started`` is given
    at the begin. Raises PrefactorTerminatedError if somebody stops it."""
    async with open_prefactor(
        api_url=api_url,
        queue_config=QueueConfig(report_after=0.2),
        termination_poll_interval=1.0,
    ) as client:
        async with client.agent_instance(
            agent_id=agent_id,
            agent_version={"name": "Trip planner", "external_identifier": "trip-planner-1"},
            on_refused="raise",
        ) as instance:
            started(instance.id)
            await Agent(instance, pace).plan()
    return instance.id


def main() -> None:
    parser = argparse.ArgumentParser(description="An agent to watch, and to stop.")
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    parser.add_argument(
        "--api-url", default=os.environ.get("PREFACTOR_API_URL") or "local:prefactor.db"
    )
    parser.add_argument("--agent-id", default=os.environ.get("PREFACTOR_AGENT_ID", "trip-planner"))
    parser.add_argument("--pace", type=float, default=1.0, help="0.1 is ten times as fast")
    options = parser.parse_args()

    async def run() -> str:
        return await run_agent(options.api_url, options.agent_id, pace=options.pace)

    try:
        instance_id = anyio.run(run, backend=options.backend)
    except PrefactorTerminatedError as error:
        print(error)
    except PrefactorCoreError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    else:
        print(f"recorded agent instance {instance_id} at {options.api_url}")


if __name__ == "__main__":
    main()
