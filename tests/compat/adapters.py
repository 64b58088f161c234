"""The vendor's adapters on this checkout's package: what must be stored after each scenario."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from support.environments import Environment, last_line

from compat.calls import Calls
from compat.published import SCRIPTS

_MARKS = {"complete": "", "failed": "!", "cancelled": "~", "active": "*", "pending": "?"}


@dataclass(frozen=True)
class Adapter:
    """A published adapter, in an environment where ``prefactor_core`` is this checkout's.

    ``trees``: by the name of a scenario, the spans of its run, as :func:`shape` writes them; None
    for any whose spans have ended. ``statuses``: those of its run, where it is not ``complete``.
    ``says``: what the script prints besides.
    """

    environment: Environment
    script: str
    prefix: str
    trees: Mapping[str, str | None]
    statuses: Mapping[str, str] = field(default_factory=dict)
    says: Mapping[str, str] = field(default_factory=dict)

    @property
    def note(self) -> str:
        return f"{len(self.trees)} runs on this core"

    def problems(self, url: str) -> list[str]:
        """Run the script against the API at ``url``; how the stored rows differ."""
        output, errors = self.environment.output_and_errors(SCRIPTS / self.script, url)
        report: dict[str, str] = json.loads(last_line(output))
        problems = [f"stderr: {errors.strip()[:500]}"] if errors.strip() else []
        names = report.keys() ^ (self.trees.keys() | self.says.keys())
        problems += [f"{name} is only in one of report and expectations" for name in names]
        problems += [
            f"it says {name} {report.get(name)!r} instead of {value!r}"
            for name, value in self.says.items()
            if report.get(name) != value
        ]
        calls = Calls(url)
        for name, tree in self.trees.items():
            if name in report:
                problems += self._differences(calls, name, report[name], tree)
        return problems

    def _differences(self, calls: Calls, name: str, run: str, tree: str | None) -> list[str]:
        status = calls.get(f"agent_instance/{run}")["details"]["status"]
        found = shape(calls.spans(run), None, self.prefix)
        expected = self.statuses.get(name, "complete")
        problems = [f"{name}: {status} instead of {expected}"] if status != expected else []
        if tree is None and any(mark in found for mark in "*?"):
            problems.append(f"{name}: {found} has spans that have not ended")
        elif tree is not None and found != tree:
            problems.append(f"{name}: {found} instead of {tree}")
        return problems


def shape(spans: Sequence[Mapping[str, Any]], parent: str | None, prefix: str) -> str:
    """The spans below ``parent`` in one line, without ``prefix``: ``agent(llm tool!)``.

    ``!`` failed, ``~`` cancelled, ``*`` active, ``?`` pending; of equal siblings the number. They
    are sorted: what goes on at the same time is in no order.
    """
    below = sorted(
        span["schema_name"].removeprefix(prefix)
        + _MARKS[span["status"]]
        + (f"({inside})" if (inside := shape(spans, span["id"], prefix)) else "")
        for span in spans
        if span["parent_span_id"] == parent
    )
    counted = [(text, below.count(text)) for text in dict.fromkeys(below)]
    return " ".join(text if count == 1 else f"{count}x{text}" for text, count in counted)


# In asynchronous agents the spans of models and tools are no children: the hook that opens the
# agent's span runs in a task of its own. It is so on the vendor's core, too.
_LANGCHAIN = {
    "agent_with_a_tool": "agent 2xllm tool",
    "agent_whose_tool_fails": "agent~ llm tool!",
    "agent_whose_model_fails": "agent~ llm!",
    "agent_with_two_tools_at_once": "agent 2xllm 2xtool",
    "agent_that_retries_its_model": "agent llm 2xllm!",
    "agent_that_retries_its_tool": "agent 2xllm tool 2xtool!",
    "agent_that_streams": "agent 2xllm tool",
    "stream_that_is_left_early": None,
    "agent_that_is_interrupted_and_resumed": "agent 2xllm tool tool!",
    "agent_in_a_thread": "agent(2xllm tool)",
    "agent_in_a_pool_without_a_context": "workflow:step(agent(2xllm tool))",
    "agent_in_a_thread_whose_tool_fails": "agent~(llm tool!)",
    "agent_that_streams_in_a_thread": "agent(2xllm tool)",
    "agent_that_is_cancelled": "agent~ llm tool~",
    "agent_below_a_span_of_the_program": "workflow:step(agent 2xllm tool)",
    "agents_one_after_another": "3xagent 6xllm 3xtool",
    "agent_of_an_agent": "agent 2xllm tool(agent llm)",
    "middleware_on_an_open_client": "agent 2xllm tool:height",
    "opened_used_and_closed_in_three_tasks": "agent 2xllm tool",
    "agents_in_a_second_loop": "2xagent 4xllm 2xtool",
    "agent_that_an_operator_stops": None,
    "agent_in_a_thread_that_an_operator_stops": None,
    "stopped agent": None,
    "agent beside a stopped one": "agent 2xllm tool",
    "graph_of_two_nodes": "agent(2xnode(llm))",
    "graph_of_parallel_nodes": "agent(5xnode(llm))",
    "graph_that_sends_to_nodes": "agent(node 5xnode(llm))",
    "graph_with_a_condition": "agent(node node(llm))",
    "graph_in_a_graph": "agent(node(2xllm) node(llm))",
    "graph_with_an_agent_as_a_node": "agent(node(2xllm tool))",
    "graph_whose_node_fails": "agent!(node!(llm))",
    "graph_whose_parallel_node_fails": "agent!(2xnode!)",
    "graph_that_retries_a_node": "agent(node 2xnode!)",
    "model_with_a_fallback": "agent(node(llm llm!))",
    "graph_that_is_interrupted_and_resumed": "agent(node node(llm)) agent(node!)",
    "graph_that_streams": "agent(2xnode(llm))",
    "graph_that_streams_events": "agent(2xnode(llm))",
    "graph_whose_stream_is_left_early": None,
    "graph_that_is_cancelled": "agent!(node!)",
    "graph_of_synchronous_nodes": "agent(2xnode(llm))",
    "graph_in_a_thread": "agent(2xnode(llm))",
    "graph_that_blocks_the_loop_of_its_client": "agent(2xnode(llm))",
    "graphs_in_other_loops": "3xagent(node(llm))",
    "a_batch_of_graphs": "10xagent(node(llm))",
    "a_hundred_graphs_at_once": "100xagent(node(llm))",
    "tool_that_fails_under_a_handler": "agent!(node!(tool!) node(llm))",
    "graph_that_an_operator_stops": None,
    "graph_in_a_thread_that_an_operator_stops": None,
    "graph_without_a_loop_that_an_operator_stops": None,
    "stopped graph": None,
    "graph beside a stopped one": None,
    "never_closed": "agent agent~ 2xllm tool",
}
_STOPPED = (
    "agent_that_an_operator_stops",
    "agent_in_a_thread_that_an_operator_stops",
    "stopped agent",
    "graph_that_an_operator_stops",
    "graph_in_a_thread_that_an_operator_stops",
    "graph_without_a_loop_that_an_operator_stops",
    "stopped graph",
)

_TURN = "assistant_turn(2xllm tool)"
_LIVEKIT = {
    "session_with_a_tool": f"session({_TURN})",
    "session_of_three_turns": f"session(3x{_TURN})",
    "tool_that_fails": "session(assistant_turn(2xllm tool!))",
    "model_that_fails_once": f"session(assistant_turn! {_TURN} error!)",
    "session_that_ends_by_an_error": "session!(assistant_turn! error!)",
    "session_that_is_interrupted": f"session(assistant_turn {_TURN})",
    "session_that_is_closed_before_its_wrapper": f"session({_TURN})",
    "wrapper_on_an_open_client": "session(assistant_turn(2xllm tool:height))",
    "two_sessions_at_once_on_one_run": f"2xsession({_TURN})",
    "session_in_a_second_loop": f"session({_TURN})",
    "opened_used_and_closed_in_three_tasks": f"session({_TURN})",
    "session_that_an_operator_stops": None,
    "never_closed": f"session~({_TURN})",
}

ADAPTERS = (
    Adapter(
        Environment(
            "compat",
            "adapter-langchain",
            ("-e", ".[adapters]", "prefactor-langchain==0.3.0", "langchain>=1,<2"),
            ("prefactor-langchain", "prefactor-core", "langchain", "langgraph"),
        ),
        "adapter_langchain.py",
        "langchain:",
        _LANGCHAIN,
        {**dict.fromkeys(_STOPPED, "terminated"), "never_closed": "cancelled"},
        {
            "agent_that_an_operator_stops, error": "enough",
            "agent_in_a_thread_that_an_operator_stops, error": "enough",
            "stopped agent, error": "None",  # it asks for the reason where another run is current
            "graph_that_an_operator_stops, end": "stopped: enough",
            "graph_in_a_thread_that_an_operator_stops, end": "stopped: enough",
            "graph_without_a_loop_that_an_operator_stops, end": "stopped: enough",
            "stopped graph, end": "stopped: enough",
            "graph beside a stopped one, end": "went on to its end",
            "terminations logged": str(len(_STOPPED)),
        },
    ),
    Adapter(
        Environment(
            "compat",
            "adapter-livekit",
            ("-e", ".[adapters]", "prefactor-livekit==0.1.5"),
            ("prefactor-livekit", "prefactor-core", "livekit-agents"),
        ),
        "adapter_livekit.py",
        "livekit:",
        _LIVEKIT,
        {"session_that_an_operator_stops": "terminated", "never_closed": "cancelled"},
        {"terminations logged": "1"},
    ),
)
