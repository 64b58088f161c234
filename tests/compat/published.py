"""The published clients: their versions, their scripts, and what must be stored after each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.environments import Environment, last_line

from compat.calls import Calls
from compat.node import NodeEnvironment

SCRIPTS = Path(__file__).parent / "clients"


@dataclass(frozen=True)
class Run:
    """A run as it must be stored.

    ``tree``: a line for each span, indented below its parent: span type and status; None for any
    whose spans have ended.
    ``holds``: texts that must be somewhere in the payloads and results. ``tokens``: the sum of the
    tokens of all spans, if it is checked.
    """

    status: str
    tree: str | None
    holds: tuple[str, ...] = ()
    tokens: int | None = None
    quality: Mapping[str, str] = field(default_factory=dict)
    reason: str | None = None


@dataclass(frozen=True)
class Client:
    """A published client.

    ``runs``: by the name under which the script prints a run's id. ``says``: what else it prints.
    ``note``: what the client does not do.
    """

    environment: Environment | NodeEnvironment
    script: str
    runs: Mapping[str, Run]
    says: Mapping[str, object] = field(default_factory=dict)
    note: str = ""

    def problems(self, url: str) -> list[str]:
        """Run the script against the API at ``url``; how the stored rows differ."""
        report = json.loads(last_line(self.environment.run_script(SCRIPTS / self.script, url)))
        problems = [
            f"it says {name} {report.get(name)!r} instead of {value!r}"
            for name, value in self.says.items()
            if report.get(name) != value
        ]
        calls = Calls(url)
        for name, expected in self.runs.items():
            found = _stored(calls, report.get(name), expected)
            if found != expected:
                problems.append(f"{name}: {found}\n instead of {expected}")
        return problems


def _stored(calls: Calls, run: str, expected: Run) -> Run:
    details = calls.get(f"agent_instance/{run}")["details"]
    spans = calls.get("agent_spans", agent_instance_id=run)["summaries"]
    # Ids that were made within one millisecond are in no order.
    spans.sort(key=lambda span: span["started_at"] or span["finished_at"] or span["inserted_at"])
    text = json.dumps([[span["payload"], span["result_payload"]] for span in spans])
    is_shown = expected.tree or any(span["finished_at"] is None for span in spans)
    counts = [(span["payload"].get("token_usage") or {}).get("total_tokens", 0) for span in spans]
    return Run(
        status=details["status"],
        tree="\n".join(_lines(spans, None, "")) if is_shown else None,
        holds=tuple(words for words in expected.holds if words in text),
        tokens=expected.tokens and sum(counts),
        quality=details["quality_summaries"],
        reason=details["termination_reason"],
    )


def _lines(spans: Sequence[Mapping[str, Any]], parent: str | None, indent: str) -> list[str]:
    lines: list[str] = []
    for span in spans:
        if span["parent_span_id"] == parent:
            lines.append(f"{indent}{span['schema_name']} {span['status']}")
            lines += _lines(spans, span["id"], indent + "  ")
    return lines


def _tree(*lines: str) -> str:
    return "\n".join(lines)


_CORE = _tree(
    "agent:run complete",
    "  agent:llm_call complete",
    "  agent:tool_call failed",
    "  agent:tool_call cancelled",
)
_CORE_TEXTS = ("Which mountain is higher?", "unknown unit", '"total_tokens": 38')

# What is recorded of an agent that asks its model, calls a tool, and asks again.
_ASKED = (
    "agent:run complete",
    "  agent:llm_call complete",
    "  agent:tool_call complete",
    "  agent:llm_call complete",
)
_FAILED = ("agent:run failed", "  agent:llm_call complete", "  agent:tool_call failed")
_OTEL_TEXTS = ("How high is K2?", "8611 m", '"total_tokens": 16', '"mountain": "K2"')


def _instrumented(
    name: str,
    requirements: tuple[str, ...],
    shown: tuple[str, ...],
    *,
    script: str = "",
    asked: tuple[str, ...] = _ASKED,
    failed: tuple[str, ...] = _FAILED,
    failed_status: str = "failed",
    texts: tuple[str, ...] = _OTEL_TEXTS,
    error: str = "PrefactorTerminatedError",
    note: str = "",
) -> Client:
    """An agent whose instrumentation emits spans of OpenTelemetry, with PrefactorSpanProcessor.

    ``script``: by default that of the name. ``asked``: the tree of a run that the processor opens,
    and of one in a span by hand. ``texts``: what these hold; the first one also if terminated.
    """
    tokens = 16 * sum("agent:llm_call" in line for line in asked)
    return Client(
        Environment(
            "compat",
            f"otel-{name}",
            ("-e", ".[otel]", *requirements),
            (*shown, "opentelemetry-sdk"),
        ),
        script or f"otel_{name.replace('-', '_')}.py",
        {
            "opened": Run("complete", _tree(*asked), texts, tokens),
            "inside": Run(
                "complete",
                _tree("otel:span complete", *(f"  {line}" for line in asked)),
                texts,
                tokens,
            ),
            "failing": Run(failed_status, _tree(*failed), ("unknown mountain Olymp",)),
            "terminated": Run("terminated", None, texts[:1], reason="enough"),
        },
        {"answer": "8611 m", "error": error, "lost": 0, "given_up": 0},
        note=note,
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


CLIENTS = (
    Client(
        Environment(
            "compat",
            "core-0.1.0",
            ("prefactor-core==0.1.0", "prefactor-http==0.1.0"),
            ("prefactor-core", "prefactor-http"),
        ),
        "python_core.py",
        {"run": Run("pending", _CORE, _CORE_TEXTS)},
        note="sends times without an offset, which the API refuses: its runs stay pending",
    ),
    Client(
        Environment(
            "compat",
            "core-0.5.3",
            ("prefactor-core==0.5.3", "prefactor-http==0.4.3"),
            ("prefactor-core", "prefactor-http"),
        ),
        "python_core.py",
        {
            # "review" is recorded, too, but has no template, and so no summary.
            "run": Run("complete", _CORE, _CORE_TEXTS, {"score": "7 of 10"}),
            "terminated": Run("terminated", "agent:run complete", reason="enough"),
        },
        {"reason": "enough"},
    ),
    Client(
        Environment(
            "compat",
            "langchain",
            ("prefactor-langchain==0.3.0", "langchain>=1,<2"),
            ("prefactor-langchain", "prefactor-core", "langchain"),
        ),
        "python_langchain.py",
        {
            "run": Run(
                "complete",
                _tree(
                    "langchain:agent complete",
                    "langchain:llm complete",
                    "langchain:tool complete",
                    "langchain:llm complete",
                ),
                ("How high is K2?", "8611 m", '"total_tokens": 16'),
            ),
            "failing": Run(
                "complete",
                _tree("langchain:agent active", "langchain:llm complete", "langchain:tool failed"),
                ("unknown mountain Olymp",),
            ),
            "graph": Run(
                "complete",
                _tree(
                    "langchain:agent complete",
                    "  langchain:node complete",
                    "    langchain:llm complete",
                    "  langchain:node complete",
                    "  langchain:node complete",
                    "    langchain:llm complete",
                ),
                ("How high is K2?", "8611 m"),
            ),
            # The signal comes in the background: the agent may call the model once more.
            "terminated": Run("terminated", None, ("How high is K2?",), reason="enough"),
        },
        {"error": "PrefactorTerminatedError: Agent instance terminated by p2: enough"},
        note="its middleware leaves the span of an agent that raises active",
    ),
    Client(
        Environment(
            "compat",
            "livekit",
            ("prefactor-livekit==0.1.5",),
            ("prefactor-livekit", "prefactor-core", "livekit-agents"),
        ),
        "python_livekit.py",
        {
            "run": Run(
                "complete",
                _tree(
                    "livekit:session complete",
                    "  livekit:assistant_turn complete",
                    "    livekit:llm complete",
                    "    livekit:tool complete",
                    "    livekit:llm complete",
                ),
                ("8611 m",),
            )
        },
    ),
    _instrumented("pydantic-ai", ("pydantic-ai-slim[openai]>=2,<3",), ("pydantic-ai-slim",)),
    _instrumented(
        "openllmetry",
        ("openai>=3,<4", "opentelemetry-instrumentation-openai"),
        ("opentelemetry-instrumentation-openai", "openai"),
        # The last answer is asked for twice, the second time as a stream.
        asked=(*_ASKED, "  agent:llm_call complete"),
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
        texts=(*_OTEL_TEXTS, '"asked How high is K2?"', '"answered 8611 m"'),
    ),
    *(
        _instrumented(
            "openai-v2",
            # The last version of it imports what later versions of the other do not have.
            (
                "openai>=3,<4",
                "opentelemetry-instrumentation-openai-v2==2.4b0",
                "opentelemetry-util-genai==0.4b0",
            ),
            ("opentelemetry-instrumentation-openai-v2", "openai"),
            script=script,
            asked=(*_ASKED, "  agent:llm_call complete"),
            texts=texts,
            note=note,
        )
        for script, texts, note in (
            ("otel_openai_v2.py", _OTEL_TEXTS, "gen_ai_latest_experimental"),
            ("otel_openai_v2_default.py", ('"small-1"', '"total_tokens": 16'), "without content"),
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
        asked=(
            "otel:span complete",
            "  otel:span complete",
            "    agent:llm_call complete",
            "  otel:span complete",
            "    agent:tool_call complete",
            "  otel:span complete",
            "    agent:llm_call complete",
        ),
        failed=(
            "otel:span failed",
            "  otel:span complete",
            "    agent:llm_call complete",
            "  otel:span failed",
            "    agent:tool_call failed",
        ),
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
    _instrumented(
        "livekit",
        ("livekit-agents[openai]>=1,<2",),
        ("livekit-agents",),
        asked=_livekit("complete"),
        failed=_livekit("failed"),  # the model is told of the error, and goes on
        failed_status="complete",
    ),
    Client(
        NodeEnvironment("core", ("@prefactor/core@0.2.9", "zod@4"), ("@prefactor/core",)),
        "core.mjs",
        {
            "run": Run(
                "complete",
                _tree("agent complete", "  llm complete", "  tool failed"),
                ("small-1", "unknown unit"),
            )
        },
    ),
    Client(
        NodeEnvironment("core-latest", ("@prefactor/core@latest", "zod@4"), ("@prefactor/core",)),
        "core.mjs",
        {
            "run": Run(
                "complete",
                _tree("agent complete", "  llm complete", "  tool failed"),
                ("small-1", "unknown unit"),
            )
        },
    ),
    Client(
        NodeEnvironment(
            "langchain",
            ("@prefactor/langchain@latest", "langchain@1", "zod@4"),
            ("@prefactor/langchain", "@prefactor/core", "langchain"),
        ),
        "langchain.mjs",
        {
            "run": Run(
                "complete",
                _tree(
                    "agent complete",
                    "  langchain:llm complete",
                    "  langchain:tool complete",
                    "  langchain:llm complete",
                    "agent failed",
                    "  langchain:llm complete",
                    "  langchain:tool failed",
                ),
                ("How high is K2?", "8611", "unknown mountain Olymp"),
            )
        },
    ),
)
