"""The runs that the pictures show: always the same, apart from ids."""

from __future__ import annotations

from typing import Any

from browser.recording import Recorder, at

QUESTION = "Plan two days in Lisbon for two, from Porto, for 400 euros"
ANSWER = """\
## Two days in Lisbon

| | Saturday | Sunday |
|---|---|---|
| morning | train 07:40 from Porto | Alfama before breakfast |
| midday | Baixa, lunch in Rua das Flores | Belém by boat |
| evening | fado, 21:00 | train 19:10 |

Together **386 euros**: trains 126, hotel 148, meals 92, boat 20."""

_TOOL, _LLM, _RUN = "agent:tool_call", "agent:llm_call", "agent:run"
_PLAN: list[tuple[str, str, str | None, float, float, str, dict[str, str]]] = [
    # key, span type, parent, begin and end in seconds, status, payload
    ("planner", _RUN, None, 0, 19.4, "complete", {"agent": "planner", "input": QUESTION}),
    ("think", _LLM, "planner", 0, 1.8, "complete", {"prompt": QUESTION}),
    ("look_up", _TOOL, "planner", 1.8, 4.5, "complete", {"tool": "look_up"}),
    ("trains", _TOOL, "look_up", 1.8, 3.2, "complete", {"tool": "find_trains"}),
    ("hotels", _TOOL, "look_up", 1.8, 4.4, "complete", {"tool": "find_hotels"}),
    ("weather", _TOOL, "look_up", 1.9, 2.7, "failed", {"tool": "weather"}),
    ("again", _TOOL, "look_up", 3.2, 3.8, "complete", {"tool": "weather"}),
    ("notes", "agent:retrieval", "look_up", 1.9, 3.0, "complete", {"query": "Lisbon, trains"}),
    ("compare", _LLM, "planner", 7.0, 9.2, "complete", {"prompt": "Compare them"}),
    ("reviews", _TOOL, "planner", 9.2, 10.2, "cancelled", {"tool": "reviews"}),
    ("budget", _RUN, "planner", 10.2, 12.7, "complete", {"agent": "budget"}),
    ("add", _LLM, "budget", 10.2, 11.4, "complete", {"prompt": "Do they fit into 400 euros?"}),
    ("sum", _TOOL, "budget", 11.4, 11.7, "complete", {"tool": "add_up"}),
    ("consent", _TOOL, "planner", 12.7, 16.7, "complete", {"tool": "ask_for_consent"}),
    ("write", _LLM, "planner", 16.7, 19.3, "complete", {"prompt": "Write the plan as a table"}),
]
_REFUSED = {"type": "ConnectionError", "message": "weather.example: no answer within 0.8 s"}

_OTHERS = [
    # agent, status, seconds before noon, seconds long, tokens, purpose
    ("research", "complete", 400, 9.1, 4120, "live"),
    ("research", "failed", 900, 31.0, 2210, "live"),
    ("support", "complete", 1500, 2.4, 812, "live"),
    ("trip-planner", "cancelled", 2400, 7.7, 640, "live"),
    ("support", "complete", 3300, 3.1, 955, "eval"),
    ("support", "complete", 4700, 2.8, 903, "eval"),
    ("research", "complete", 8000, 12.9, 5003, "live"),
]


def record_sample(recorder: Recorder) -> tuple[str, str]:
    """Record the runs; the ids of the one to look at, and of its last call of a model."""
    for number, (agent, status, ago, long, tokens, purpose) in enumerate(_OTHERS[::-1]):
        run = recorder.start(
            agent, at(-ago), purpose=purpose, external_identifier=f"{agent}-{number + 31}"
        )
        times = {"started_at": at(-ago), "finished_at": at(long - ago)}
        usage = {"cost": tokens * 6e-6, "token_usage": {"total_tokens": tokens}}
        failed = {"error": {"type": "TimeoutError", "message": "no answer within 30 s"}}
        recorder.span(run, "agent:llm_call", payload={"model": "large-2"}, result=usage, **times)
        result = failed if status == "failed" else None
        recorder.span(run, status=status, payload={"tool": "search"}, result=result, **times)
        recorder.finish(run, status, at(long - ago))

    run = recorder.start("trip-planner", at(0), external_identifier="trip-planner-41")
    ids: dict[str, str] = {}
    for key, name, parent, begin, end, status, payload in _PLAN:
        result: dict[str, Any] = {"error": _REFUSED} if status == "failed" else {"output": "found"}
        if name == _LLM:
            payload = {"model": "large-2", **payload}
            tokens = 40 + 30 * len(ids)
            counts = {"prompt_tokens": tokens - 30, "completion_tokens": 30, "total_tokens": tokens}
            result = {"response": ANSWER, "token_usage": counts, "cost": tokens * 6e-6}
        ids[key] = recorder.span(
            run,
            name,
            status,
            payload=payload,
            result=result,
            parent=parent and ids[parent],
            started_at=at(begin),
            finished_at=at(end),
        )
    recorder.finish(run, timestamp=at(19.4))
    return run, ids["write"]
