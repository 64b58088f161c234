"""Any attributes, any order of starts and ends, any thread: nothing raises, the trees are right."""

from __future__ import annotations

import logging
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.sdk.trace import Span
from opentelemetry.trace import Status, StatusCode
from support.examples import examples
from support.tracing import Problems, make_provider

from prefactor_core.otel import PrefactorSpanProcessor
from prefactor_core.otel.reading import _DIALECTS, read
from prefactor_core.otel.steps import fields_of, to_step
from prefactor_core.testing import open_recording

KINDS = {key: [*types, "other"] for d in _DIALECTS for key, types in d.kinds.items()}
FACTS = sorted({key for dialect in _DIALECTS for key in dialect.facts})
LISTS = sorted({prefix for dialect in _DIALECTS for prefix in dialect.lists})
WORDS = ["message", "role", "content", "contents", "tool_calls", "function", "name", "0", "1", "x"]
SCOPES = ["tests", "openinference.instrumentation.langchain", "livekit-agents"]
NAMES = ["work", "openai.chat", "llm_request", ""]

# Few, and drawn in one step: most of the time of such a test goes into drawing.
values = st.sampled_from(
    [
        *(
            True,
            0,
            -1,
            7,
            1 << 62,
            0.5,
            math.nan,
            math.inf,
            "",
            "a",
            "\0\ud800",
            "K2",
            (),
            ("a", "b"),
        ),
        *("null", "[", "{", "[[[", '"text"', "12", "[1, 2]", '{"messages": 1}', '{"a": {"b": []}}'),
        '[{"role": "user", "parts": [{"type": "text", "content": "Hi"}]}]',
        '[{"parts": [{"type": "tool_call", "name": 1}, null, "x"]}, 7, null, "text"]',
        '{"role": null, "content": [{"text": "x"}, {"toolUse": {"input": 1}}], "tool_calls": "x"}',
        '{"message": {"contents": [{"message_content": {"text": 1}}], "tool_calls": [1, {}]}}',
        '{"message": [{"function": "f", "args": "{}"}], "finish_reason": ["stop"]}',
        "[" * 50_000,
        '{"a":' * 50_000,
    ]
)
texts = st.sampled_from(["a", "b.c", "é", "0", ".", "gen_ai.", "http.route", "db.system"])
keys = (
    st.sampled_from(FACTS)
    | st.builds(
        lambda prefix, path: prefix + ".".join(path),
        st.sampled_from(LISTS),
        st.lists(st.sampled_from(WORDS), min_size=1, max_size=5),
    )
    | texts
)
kinds = st.sampled_from(sorted(KINDS)).flatmap(
    lambda key: st.dictionaries(st.just(key), st.sampled_from(KINDS[key]), max_size=1)
)
attributes = st.builds(
    lambda kind, rest: {**rest, **kind}, kinds, st.dictionaries(keys, values, max_size=6)
)
events = st.tuples(
    st.sampled_from(["gen_ai.user.message", "gen_ai.choice", "exception", "other"]),
    st.dictionaries(
        st.sampled_from(["content", "message", "role", "exception.type", "gen_ai.event.content"]),
        values,
        max_size=3,
    ),
)
number = st.integers(0, 9)
names, scopes = st.sampled_from(NAMES), st.sampled_from(SCOPES)
steps = st.one_of(
    st.tuples(
        st.just("start"), number, st.sampled_from(NAMES), st.sampled_from(SCOPES), attributes
    ),
    st.tuples(st.just("root"), st.just(0), st.sampled_from(NAMES), st.just("tests"), attributes),
    st.tuples(st.just("set"), number, attributes),
    st.tuples(st.just("event"), number, events),
    st.tuples(st.just("fail"), number),
    st.tuples(st.just("end"), number),
)


class Event:
    def __init__(self, name: str, attributes: dict[str, Any]) -> None:
        self.name, self.attributes, self.timestamp = name, attributes, 1


@given(attributes, st.lists(events, max_size=3), names, scopes)
def test_every_attribute_is_recorded_or_a_fact(
    attributes: dict[str, Any], events: list[Any], name: str, scope: str
) -> None:
    facts = read(name, scope, attributes, [Event(*event) for event in events])
    params, result = to_step(name, facts)
    fields_of(params), fields_of(result)
    assert facts.rest().keys() <= attributes.keys() | {prefix.rstrip(".") for prefix in LISTS}
    known = {*FACTS, *KINDS}
    for key in attributes:
        assert key in known or key.startswith(tuple(LISTS)) or key in facts.rest()


class Schedule:
    """Plays steps, each in one of some threads; ``parents``: by the ids in OpenTelemetry."""

    def __init__(self) -> None:
        self.provider = make_provider()
        self.open: list[Span] = []
        self.parents: dict[str, str | None] = {}

    def play(self, step: tuple[Any, ...]) -> None:
        word, number, *rest = step
        if word in ("root", "start"):
            name, scope, attributes = rest
            parent = self.open[number % len(self.open)] if self.open and word == "start" else None
            context = trace.set_span_in_context(parent or trace.INVALID_SPAN)
            tracer = self.provider.get_tracer(scope)
            span: Any = tracer.start_span(name, context, attributes=attributes)
            self.open.append(span)
            id = f"{span.context.span_id:016x}"
            self.parents[id] = None if parent is None else f"{parent.context.span_id:016x}"
        elif self.open:
            span = self.open[number % len(self.open)]
            if word == "set":
                span.set_attributes(rest[0])
            elif word == "event":
                span.add_event(*rest[0])
            elif word == "fail":
                span.set_status(Status(StatusCode.ERROR, "no"))
            else:
                self.open.remove(span)
                span.end()


@settings(max_examples=examples(20))  # each opens a client
@given(st.lists(steps, max_size=20), st.booleans())
def test_any_schedule_gives_the_trees_of_opentelemetry(
    steps: list[tuple[Any, ...]], ends_all: bool
) -> None:
    schedule, problems = Schedule(), Problems(logging.WARNING)
    logging.getLogger("prefactor_core.otel").addHandler(problems)
    with open_recording() as recording, ThreadPoolExecutor(3) as threads:
        with recording.open_sync() as client:
            processor = PrefactorSpanProcessor(client, "tested-agent")
            schedule.provider.add_span_processor(processor)
            for step in steps:
                threads.submit(schedule.play, step).result()
            while ends_all and schedule.open:
                schedule.play(("end", 0))
            if not ends_all:
                schedule.provider.shutdown()
            assert client.core.instance_manager.open_instances() == []
            assert client.core.span_manager.recorder.index.count(None) == 0
        runs = recording.runs
    spans = {span.payload["otel"]["span_id"]: span for run in runs for span in run.spans}
    plumbing = len(schedule.parents) - len(spans)
    by_id = {span.id: name for name, span in spans.items()}
    for name, span in spans.items():
        parent = None if span.parent_id is None else by_id[span.parent_id]
        if schedule.parents[name] in spans:
            assert parent == schedule.parents[name]
        else:
            assert parent is None
    assert plumbing == 0 or any("." in key for step in steps for key in step[-1])
    assert {run.status for run in runs} <= {"complete", "failed", "cancelled"}
    assert [flag for run in runs for flag in run.flags] == []
    assert problems.messages == []
    logging.getLogger("prefactor_core.otel").removeHandler(problems)
