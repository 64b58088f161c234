"""Agents whose instrumentations emit spans of OpenTelemetry: versions, and what must be stored
after each."""

from __future__ import annotations

from support.environments import Environment

from compat.published import Client, Run, tree

# What is recorded of an agent that asks its model, calls a tool, and asks again.
_ASKED = (
    "agent:run complete",
    "  agent:llm_call complete",
    "  agent:tool_call complete",
    "  agent:llm_call complete",
)
_FAILED = ("agent:run failed", "  agent:llm_call complete", "  agent:tool_call failed")
_TEXTS = ("How high is K2?", "8611 m", '"total_tokens": 16', '"mountain": "K2"')

# The same of an agent of LangChain.
_LANGCHAIN = (
    "otel:span complete",
    "  otel:span complete",
    "    agent:llm_call complete",
    "  otel:span complete",
    "    agent:tool_call complete",
    "  otel:span complete",
    "    agent:llm_call complete",
)
_LANGCHAIN_FAILED = (
    "otel:span failed",
    "  otel:span complete",
    "    agent:llm_call complete",
    "  otel:span failed",
    "    agent:tool_call failed",
)

_WITHOUT_CONTENT = ('"small-1"', '"total_tokens": 16')
_WITH_CONTENT = (
    "OTEL_SEMCONV_STABILITY_OPT_IN=gen_ai_latest_experimental",
    "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT=span_only",
)


def _instrumented(
    name: str,
    requirements: tuple[str, ...],
    shown: tuple[str, ...],
    *,
    variables: tuple[str, ...] = (),
    asked: tuple[str, ...] = _ASKED,
    failed: tuple[str, ...] = _FAILED,
    failed_status: str = "failed",
    texts: tuple[str, ...] = _TEXTS,
    tokens: int = 32,
    error: str = "PrefactorTerminatedError",
    note: str = "",
) -> Client:
    """An agent whose instrumentation emits spans of OpenTelemetry, with PrefactorSpanProcessor.

    ``variables``: what the instrumentation is told by its environment. ``asked``: the tree of a run
    that the processor opens, and of one in a span by hand. ``texts``: what these hold; the first
    one also if terminated. ``tokens``: their tokens, 16 for each call.
    """
    return Client(
        Environment(
            "compat",
            f"otel-{name}",
            ("-e", ".[otel]", *requirements),
            (*shown, "opentelemetry-sdk"),
        ),
        f"otel_{name.replace('-', '_')}.py",
        {
            "opened": Run("complete", tree(*asked), texts, tokens=tokens),
            "inside": Run(
                "complete",
                tree("otel:span complete", *(f"  {line}" for line in asked)),
                texts,
                tokens=tokens,
            ),
            "failing": Run(failed_status, tree(*failed), ("unknown mountain Olymp",)),
            "terminated": Run("terminated", None, texts[:1], reason="enough"),
        },
        {"answer": "8611 m", "error": error, "lost": 0, "given_up": 0},
        note=note,
        arguments=variables,
    )


# A call of a model in a call of a model: the tokens are those of the inner one.
_CALLED_TWICE = (
    "agent:run complete",
    "  agent:llm_call complete",
    "    agent:llm_call complete",
    "  agent:tool_call complete",
    "  agent:llm_call complete",
    "    agent:llm_call complete",
)


def _livekit(tool: str) -> tuple[str, ...]:
    """A session of LiveKit with one turn; ``tool``: the status of its tool."""
    asks_the_model = (
        "    otel:span complete",  # llm_node
        "      agent:llm_call complete",
        "        otel:span complete",  # an attempt
    )
    return (
        "otel:span complete",
        "  otel:span complete",  # session_start, with what it begins
        "    otel:span complete",
        "      otel:span complete",
        "      otel:span complete",
        "  agent:run complete",
        *asks_the_model,
        f"    agent:tool_call {tool}",
        *asks_the_model,
        "    otel:span complete",  # agent_speaking
        "  otel:span complete",  # session_close, with what it ends
        "    otel:span complete",
        "      otel:span complete",
    )


INSTRUMENTATIONS = (
    _instrumented("pydantic-ai", ("pydantic-ai-slim[openai]>=2,<3",), ("pydantic-ai-slim",)),
    _instrumented(
        "openllmetry",
        ("openai>=3,<4", "opentelemetry-instrumentation-openai"),
        ("opentelemetry-instrumentation-openai", "openai"),
        # The last answer is asked for twice, the second time as a stream.
        asked=(*_ASKED, "  agent:llm_call complete"),
        tokens=48,
    ),
    _instrumented(
        "logfire",
        ("logfire>=5,<6", "pydantic-ai-slim[openai]>=2,<3"),
        ("logfire", "pydantic-ai-slim"),
        asked=(
            "otel:span complete",
            *(f"  {line}" for line in _ASKED),
            "  otel:span complete",  # a message to the log
        ),
        failed=("otel:span failed", *(f"  {line}" for line in _FAILED)),
        texts=(*_TEXTS, '"asked How high is K2?"', '"answered 8611 m"'),
    ),
    _instrumented(
        "genai-openai",
        ("openai>=3,<4", "opentelemetry-instrumentation-genai-openai"),
        ("opentelemetry-instrumentation-genai-openai", "openai"),
        variables=_WITH_CONTENT,
        asked=(*_ASKED, "  agent:llm_call complete"),
        tokens=48,
    ),
    *(
        _instrumented(
            "openai-v2",
            # The one before; its last version needs this one of the other.
            (
                "openai>=3,<4",
                "opentelemetry-instrumentation-openai-v2==2.4b0",
                "opentelemetry-util-genai==0.4b0",
            ),
            ("opentelemetry-instrumentation-openai-v2", "openai"),
            variables=variables,
            asked=(*_ASKED, "  agent:llm_call complete"),
            tokens=48,
            texts=texts,
            note=note,
        )
        for variables, texts, note in (
            (_WITH_CONTENT, _TEXTS, "gen_ai_latest_experimental"),
            ((), _WITHOUT_CONTENT, "without content"),
        )
    ),
    _instrumented(
        "openai-agents",
        ("openai-agents", "openinference-instrumentation-openai-agents"),
        ("openai-agents", "openinference-instrumentation-openai-agents"),
        asked=(
            "agent:run complete",
            "  otel:span complete",
            "    agent:run complete",
            "      otel:span complete",
            "        agent:llm_call complete",
            "        agent:tool_call complete",
            "      otel:span complete",
            "        agent:llm_call complete",
        ),
        failed=(
            "agent:run complete",
            "  otel:span complete",
            "    agent:run failed",
            "      otel:span complete",
            "        agent:llm_call complete",
            "        agent:tool_call failed",
        ),
        failed_status="complete",  # as its root says
        note="swallows what stops it: only the scope of agent_instance() does",
    ),
    _instrumented(
        "langchain",
        ("langchain>=1,<2", "langchain-openai", "openinference-instrumentation-langchain"),
        ("langchain", "openinference-instrumentation-langchain"),
        asked=_LANGCHAIN,
        failed=_LANGCHAIN_FAILED,
        note="swallows what stops it: only the scope of agent_instance() does",
    ),
    _instrumented(
        "strands",
        ("strands-agents[openai,otel]>=1,<2",),
        ("strands-agents",),
        asked=(
            "agent:run complete",
            "  otel:span complete",
            "    agent:llm_call complete",
            "    agent:tool_call complete",
            "  otel:span complete",
            "    agent:llm_call complete",
        ),
        failed=(  # the model is told of the error, and goes on
            "agent:run complete",
            "  otel:span complete",
            "    agent:llm_call complete",
            "    agent:tool_call failed",
            "  otel:span complete",
            "    agent:llm_call complete",
        ),
        failed_status="complete",
        error="EventLoopException",
        note="wraps the error of a terminated run in its own",
    ),
    *(
        _instrumented(
            "google-adk",
            ("google-adk>=2,<3",),
            ("google-adk",),
            variables=variables,
            asked=("otel:span complete", *(f"  {line}" for line in asked)),
            failed=("otel:span failed", *(f"  {line}" for line in failed)),
            texts=texts,
            note=note,
        )
        for variables, asked, failed, texts, note in (
            (_WITH_CONTENT, _ASKED, _FAILED, _TEXTS, "gen_ai_latest_experimental"),
            ((), _ASKED, _FAILED, _WITHOUT_CONTENT, "without content"),
            (
                ("ADK_TELEMETRY_SCHEMA_VERSION_OPT_IN=1",),
                _CALLED_TWICE,
                # The tool fails while the generator around the call is still open.
                (_FAILED[0], "  agent:llm_call cancelled", *_CALLED_TWICE[2:3], *_FAILED[2:]),
                _TEXTS,
                "otel_semconv_1_36",
            ),
        )
    ),
    _instrumented(
        "langsmith",
        ("langsmith[otel]", "langchain>=1,<2", "langchain-openai"),
        ("langsmith", "langchain"),
        variables=("LANGSMITH_TRACING=true", "LANGSMITH_OTEL_ONLY=true"),
        asked=("otel:span complete", *(f"  {line}" for line in _LANGCHAIN)),
        failed=("otel:span failed", *(f"  {line}" for line in _LANGCHAIN_FAILED)),
        note="late, and in a thread of its own: only the scope of agent_instance() stops it",
    ),
    _instrumented(
        "livekit",
        ("livekit-agents[openai]>=1,<2",),
        ("livekit-agents",),
        asked=_livekit("complete"),
        failed=_livekit("failed"),  # the model is told of the error, and goes on
        failed_status="complete",
    ),
)
