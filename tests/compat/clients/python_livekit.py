"""A session of LiveKit under prefactor-livekit: a text turn with a tool, without audio or a room.
Argument: the URL of the API. Prints one line of JSON: the id of the run.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from livekit.agents import Agent, AgentSession, function_tool, llm
from livekit.agents.types import DEFAULT_API_CONNECT_OPTIONS
from prefactor_livekit import PrefactorLiveKitSession

URL = sys.argv[1]


class Answer(llm.LLMStream):
    """Asks for the tool first; answers when the tool did."""

    async def _run(self) -> None:
        asked = any(item.type == "function_call_output" for item in self._chat_ctx.items)
        call = llm.FunctionToolCall(name="height", arguments='{"mountain": "K2"}', call_id="call-1")
        delta = (
            llm.ChoiceDelta(role="assistant", content="8611 m")
            if asked
            else llm.ChoiceDelta(role="assistant", tool_calls=[call])
        )
        usage = llm.CompletionUsage(completion_tokens=5, prompt_tokens=11, total_tokens=16)
        self._event_ch.send_nowait(llm.ChatChunk(id="chunk", delta=delta))
        self._event_ch.send_nowait(llm.ChatChunk(id="chunk", usage=usage))


class Model(llm.LLM):
    def chat(self, *, chat_ctx: Any, tools: Any = None, conn_options: Any = None, **_: Any) -> Any:
        options = conn_options or DEFAULT_API_CONNECT_OPTIONS
        return Answer(self, chat_ctx=chat_ctx, tools=tools or [], conn_options=options)


class Guide(Agent):
    def __init__(self) -> None:
        super().__init__(instructions="You know mountains.")

    @function_tool
    async def height(self, mountain: str) -> str:
        """The height of a mountain in metres."""
        return "8611"


async def main() -> None:
    session = AgentSession(llm=Model())
    tracer = PrefactorLiveKitSession.from_config(
        api_url=URL, api_token="token-of-compat", agent_id="compat-livekit", agent_name="Compat"
    )
    run = (await tracer.ensure_initialized()).id
    await tracer.start(session=session, agent=Guide())
    await session.run(user_input="How high is K2?")
    await tracer.close()
    await session.aclose()
    print(json.dumps({"run": str(run)}))


asyncio.run(main())
