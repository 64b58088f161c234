"""Google's Agent Development Kit: ``gcp.vertex.agent.*`` beside ``gen_ai.*``."""

from __future__ import annotations

from typing import Final

from prefactor_core.otel.dialect import LLM, RUN, TOOL, Dialect

GOOGLE_ADK: Final = Dialect(
    facts={
        "gcp.vertex.agent.tool_call_args": "arguments",
        "gcp.vertex.agent.tool_response": "output",
        "gcp.vertex.agent.llm_request": "input",
        "gcp.vertex.agent.llm_response": "output",
        "gcp.vertex.agent.session_id": "conversation_id",
    },
    names={"call_llm": LLM, "execute_tool": TOOL, "invoke_agent": RUN},
    scope="gcp.vertex.agent",
)
