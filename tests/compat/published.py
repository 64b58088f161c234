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
    tokens of all spans, if it is checked. ``leaves_active``: the client leaves spans active.
    """

    status: str
    tree: str | None
    holds: tuple[str, ...] = ()
    quality: Mapping[str, str] = field(default_factory=dict)
    reason: str | None = None
    tokens: int | None = None
    leaves_active: bool = False


@dataclass(frozen=True)
class Client:
    """A published client.

    ``runs``: by the name under which the script prints a run's id. ``says``: what else it prints.
    ``note``: what the client does not do. ``arguments``: of the script, after the URL.
    """

    environment: Environment | NodeEnvironment
    script: str
    runs: Mapping[str, Run]
    says: Mapping[str, object] = field(default_factory=dict)
    note: str = ""
    arguments: tuple[str, ...] = ()

    def problems(self, url: str) -> list[str]:
        """Run the script against the API at ``url``; how the stored rows differ."""
        said = self.environment.run_script(SCRIPTS / self.script, url, *self.arguments)
        report = json.loads(last_line(said))
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
    is_left = not expected.leaves_active and any(span["finished_at"] is None for span in spans)
    is_shown = expected.tree or is_left
    counts = [(span["payload"].get("token_usage") or {}).get("total_tokens", 0) for span in spans]
    return Run(
        status=details["status"],
        tree="\n".join(_lines(spans, None, "")) if is_shown else None,
        holds=tuple(words for words in expected.holds if words in text),
        quality=details["quality_summaries"],
        reason=details["termination_reason"],
        tokens=expected.tokens and sum(counts),
        leaves_active=expected.leaves_active,
    )


def _lines(spans: Sequence[Mapping[str, Any]], parent: str | None, indent: str) -> list[str]:
    lines: list[str] = []
    for span in spans:
        if span["parent_span_id"] == parent:
            lines.append(f"{indent}{span['schema_name']} {span['status']}")
            lines += _lines(spans, span["id"], indent + "  ")
    return lines


def tree(*lines: str) -> str:
    return "\n".join(lines)


_CORE = tree(
    "agent:run complete",
    "  agent:llm_call complete",
    "  agent:tool_call failed",
    "  agent:tool_call cancelled",
)
_CORE_TEXTS = ("Which mountain is higher?", "unknown unit", '"total_tokens": 38')

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
                tree(
                    "langchain:agent complete",
                    "langchain:llm complete",
                    "langchain:tool complete",
                    "langchain:llm complete",
                ),
                ("How high is K2?", "8611 m", '"total_tokens": 16'),
            ),
            "failing": Run(
                "complete",
                tree("langchain:agent active", "langchain:llm complete", "langchain:tool failed"),
                ("unknown mountain Olymp",),
            ),
            "graph": Run(
                "complete",
                tree(
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
            "terminated": Run(
                "terminated", None, ("How high is K2?",), reason="enough", leaves_active=True
            ),
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
                tree(
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
    Client(
        NodeEnvironment("core", ("@prefactor/core@0.2.9", "zod@4"), ("@prefactor/core",)),
        "core.mjs",
        {
            "run": Run(
                "complete",
                tree("agent complete", "  llm complete", "  tool failed"),
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
                tree("agent complete", "  llm complete", "  tool failed"),
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
                tree(
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
