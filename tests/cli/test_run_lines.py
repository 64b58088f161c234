"""Stored runs as the lines that the terminal shows: the tree of one, a list of many."""

from __future__ import annotations

import sys
from typing import Any

import msgspec
from support.cases import case

from prefactor_core.api.answers import AgentInstanceAnswer, AgentSpanAnswer
from prefactor_core.cli.lines import fitted
from prefactor_core.cli.run_lines import tree_lines

NOON = "2026-01-01T12:00:00.000000Z"


def run(**fields: Any) -> AgentInstanceAnswer:
    return AgentInstanceAnswer(**{"id": "i1", "status": "active", **fields})


def span(id: str, parent: str | None = None, **fields: Any) -> AgentSpanAnswer:
    given = {"status": "active", "schema_name": id, "started_at": NOON, **fields}
    for name in ("payload", "result_payload"):
        if name in given:
            given[name] = msgspec.Raw(msgspec.json.encode(given[name]))
    return AgentSpanAnswer(id=id, agent_instance_id="i1", parent_span_id=parent, **given)


def lines(instance: AgentInstanceAnswer, *spans: AgentSpanAnswer) -> list[str]:
    """The lines on a terminal of 120 columns."""
    return [fitted(line, 120).plain for line in tree_lines(instance, spans)]


def test_a_run_is_shown_as_a_tree_of_its_spans() -> None:
    times = {"started_at": NOON, "finished_at": "2026-01-01T12:00:01.500000Z"}
    shown = lines(
        run(status="complete", **times),
        span("research", status="complete", result_payload={"found": 2}, **times),
        span("plan", "research", status="complete", payload={"goal": "x"}, **times),
        span("search", "research", status="failed", **times),
        span("fetch", "search", status="cancelled"),
        span("report", status="active"),
    )
    assert shown == [
        "agent instance i1  complete  1.50 s",
        '├── research  complete  1.50 s → {"found":2}',
        '│   ├── plan  complete  1.50 s  {"goal":"x"}',
        "│   └── search  failed  1.50 s",
        "│       └── fetch  cancelled",
        "└── report  active",
    ]


def test_the_step_that_caused_a_run_stands_below_it() -> None:
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    run_id, span_id = "1" * 32, "2" * 32
    for ids, step in (
        ({"run_id": run_id, "span_id": span_id}, f"span {span_id} of agent instance {run_id}"),
        ({"run_id": run_id}, f"agent instance {run_id}"),
        ({}, traceparent),
    ):
        with case(ids):
            named = {"prefactor_caused_by": {**ids, "traceparent": traceparent}}
            shown = lines(run(), span("late", "other"), span("first", payload=named))
            assert shown[:2] == ["agent instance i1  active", f"├── caused by  {step}"]
            assert len(shown) == 4


def test_a_run_without_spans_is_one_line() -> None:
    assert lines(run(status="pending")) == ["agent instance i1  pending"]


def test_the_status_of_a_span_is_shown() -> None:
    for status in ["pending", "active", "complete", "failed", "cancelled", "new"]:
        with case(status):
            assert lines(run(), span("llm", status=status))[1] == f"└── llm  {status}"


def test_a_terminated_run_is_shown_as_terminated() -> None:
    assert lines(run(status="terminated")) == ["agent instance i1  terminated"]


def test_a_terminated_run_shows_why_on_its_line() -> None:
    times = {"started_at": NOON, "finished_at": "2026-01-01T12:00:01.500000Z"}
    reason = 'over\nthe "budget" [red]\x1b'
    shown = lines(run(status="terminated", termination_reason=reason, **times), span("llm"))
    assert shown == [
        r'agent instance i1  terminated  1.50 s  "over\nthe \"budget\" [red]\u001b"',
        "└── llm  active",
    ]


DURATIONS = [
    (NOON, "2026-01-01T12:00:00.000300Z", "  0.3 ms"),
    (NOON, NOON, "  0.0 ms"),
    ("2026-01-01T12:00:00Z", "2026-01-01T14:00:01+02:00", "  1.00 s"),
    (NOON, "2026-01-02T11:59:59.900000Z", "  1 d 0 h"),
    (NOON, "2026-01-01T11:59:58.500000Z", "  -1.50 s"),
    (NOON, None, ""),
    (None, NOON, ""),
]


def test_a_span_with_both_times_shows_how_long_it_took() -> None:
    for started_at, finished_at, duration in DURATIONS:
        with case(started_at, finished_at, duration):
            llm = span("llm", started_at=started_at, finished_at=finished_at)
            assert lines(run(), llm)[1] == f"└── llm  active{duration}"


PAYLOADS = [
    ({}, ""),
    ({"payload": {}, "result_payload": {}}, ""),
    ({"payload": None, "result_payload": None}, ""),
    ({"payload": {"a": 1}}, '  {"a":1}'),
    ({"result_payload": {"b": []}}, ' → {"b":[]}'),
    ({"payload": {"a": 1}, "result_payload": {"b": 2}}, '  {"a":1} → {"b":2}'),
    ({"payload": {"a": "Größe"}}, '  {"a":"Größe"}'),
    ({"payload": {"a": "two\nlines"}}, '  {"a":"two\\nlines"}'),
]


def test_payload_and_result_are_shown_unless_empty() -> None:
    for payloads, shown in PAYLOADS:
        with case(payloads, shown):
            assert lines(run(), span("llm", **payloads))[1] == f"└── llm  active{shown}"


def test_what_looks_like_markup_is_shown_literally() -> None:
    for text in ["[bold]loud[/bold]", "[/]", ":rocket:", "[link=x]y", "\\[red]"]:
        with case(text):
            quoted = msgspec.json.encode({"text": text}).decode()
            shown = lines(
                run(id=text),
                span("llm", schema_name=text, payload={"text": text}, result_payload=[text]),
            )
            result = msgspec.json.encode([text]).decode()
            assert shown == [
                f"agent instance {text}  active",
                f"└── {text}  active  {quoted} → {result}",
            ]


def test_nothing_that_is_shown_reaches_the_terminal_as_a_command() -> None:
    # CSI as one character, an escape sequence, a line separator, a change of direction.
    text = "a\x9b2Jb\x1b]0;c\x07\u2028\n\u202ed\x7f"
    payload = {text: text}
    instance = run(
        id=text,
        status=text,
        termination_reason=text,
        quality_payloads={text: msgspec.Raw(msgspec.json.encode(payload))},
        quality_flags={text: [text]},
    )
    fields: dict[str, Any] = {
        "schema_name": text,
        "status": text,
        "payload": payload,
        "result_payload": payload,
    }
    for status in (text, "failed"):
        fields["status"] = status
        shown = [
            fitted(line, 500).plain
            for line in tree_lines(instance, [span("s", **fields, flags=[text])])
        ]
        assert len(shown) == 5
        assert all(line.isprintable() for line in shown)


def test_a_long_payload_is_cut_at_the_end_of_the_line() -> None:
    shown = lines(run(), span("llm", payload={"prompt": "why " * 100}), span("tool"))
    assert len(shown) == 3
    assert len(shown[1]) == 120
    assert shown[1].endswith("…")


def test_what_fits_on_no_line_costs_nothing() -> None:
    def calls(size: int) -> int:
        payload = {"prompt": "wh\x80y é" * size}
        spans = [span(f"s{n}", payload=payload, result_payload=payload) for n in range(10)]
        count = 0

        def profile(frame: object, event: str, argument: object) -> None:
            nonlocal count
            count += event in ("call", "c_call")

        sys.setprofile(profile)
        try:
            shown = lines(run(), *spans)
        finally:
            sys.setprofile(None)
        assert all(len(line) == 120 for line in shown[1:])
        return count

    assert calls(20_000) < 1.5 * calls(1_000)


def test_the_lines_of_a_tree_are_whole_however_deep_it_is() -> None:
    spans = [span(f"s{n}", f"s{n - 1}" if n else None) for n in range(100)]
    spans += [span("t1", "s0", payload={"a": "x" * 5_000}), span("t2")]
    shown = [line.plain for line in tree_lines(run(), spans, most=None)]
    assert shown[:3] == [
        "agent instance i1  active",
        "├── s0  active",
        "│   ├── s1  active",
    ]
    assert shown[100] == f"│   │   {'    ' * 97}└── s99  active"
    assert shown[101:] == [f'│   └── t1  active  {{"a":"{"x" * 5_000}"}}', "└── t2  active"]
    cut = [line.plain.removeprefix(line.branches) for line in tree_lines(run(), spans)]
    assert [line.split()[0] for line in cut[1:]] == [*(f"s{n}" for n in range(100)), "t1", "t2"]


def test_a_summary_is_shown_in_place_of_payload_and_result() -> None:
    llm = span("llm", payload={"a": 1}, result_payload={"b": 2}, summary="asked\n\x1b[2Ja  model")
    assert lines(run(), llm)[1] == "└── llm  active  asked \N{REPLACEMENT CHARACTER}[2Ja model"
    assert lines(run(), span("llm", payload={"a": 1}, summary=" "))[1].endswith('{"a":1}')


FAILURES = [
    (
        {"error": {"type": "ValueError", "message": "a\n\x1bb", "stacktrace": "…"}},
        "  ValueError: a �b",
    ),
    ({"error": {"type": "ValueError"}, "found": 2}, "  ValueError"),
    ({"error": "no answer"}, "  no answer"),
    ({"error": {"code": 7}}, ' → {"error":{"code":7}}'),
    ({"error": 1}, ' → {"error":1}'),
    ({"found": 2}, ' → {"found":2}'),
    ([1], " → [1]"),
    (None, ""),
]


def test_a_failed_span_shows_its_error_before_its_payload() -> None:
    for result, shown in FAILURES:
        with case(result, shown):
            failed = {"status": "failed", "result_payload": result}
            line = lines(run(), span("llm", payload={"a": 1}, **failed))[1]
            assert line == f'└── llm  failed{shown}  {{"a":1}}'


def test_a_failed_span_shows_its_error_before_its_summary_and_no_payload() -> None:
    for result, shown in FAILURES:
        with case(result, shown):
            failed = {"status": "failed", "result_payload": result, "summary": "asked ✕ a model"}
            line = lines(run(), span("llm", payload={"a": 1}, **failed))[1]
            assert line == f"└── llm  failed{shown}  asked ✕ a model"


def test_a_failed_span_shows_once_an_error_that_ends_its_summary() -> None:
    message = "a\n   b ✕ c " + "x" * 5_000
    failed = {"status": "failed", "result_payload": {"error": {"type": "E", "message": message}}}
    for shown in (message, f"{message[:497]}...", f"{message[:4]}...", ""):
        with case(shown):
            llm = span("llm", summary=f"t(a: 1) ✕ E{': ' if shown else ''}{shown}", **failed)
            (_, line) = tree_lines(run(), [llm])
            assert line.parts[-1] == ("  t(a: 1)", "dim")
            assert line.plain.count("E: a b ✕ c xx") == 1
    long = span("llm", summary=f"{'y' * 994} ✕ E: a b", **failed)
    (_, line) = tree_lines(run(), [long])
    assert line.parts[-1] == (f"  {'y' * 994}", "dim")
    assert lines(run(), span("llm", summary=f" ✕ E: {message}", payload={"a": 1}, **failed)) == [
        "agent instance i1  active",
        f"└── llm  failed  E: a b ✕ c {'x' * 200}"[:119] + "…",
    ]


def test_what_does_not_fit_is_shown_below_its_span_and_above_its_children() -> None:
    shown = lines(run(), span("llm", flags=["payload.a: 1", "result: [b]"]), span("c", "llm"))
    assert shown[1:] == [
        "└── llm  active",
        "    ├── ⚠ payload.a: 1",
        "    ├── ⚠ result: [b]",
        "    └── c  active",
    ]


def test_quality_payloads_are_shown_with_the_run() -> None:
    quality = {"score": msgspec.Raw(b'{"n":9}')}
    flags = {"score": ["quality.n: 9"]}
    shown = lines(run(quality_payloads=quality, quality_flags=flags), span("llm"))
    assert shown[1:] == ['├── quality score  {"n":9}', "│   └── ⚠ quality.n: 9", "└── llm  active"]


def test_siblings_are_in_the_order_of_their_start() -> None:
    spans = [
        span("third", started_at="2026-01-01T12:00:01Z"),
        span("second", started_at="2026-01-01T12:00:00.500Z"),
        span("first", started_at="2026-01-01T12:00:00Z"),
        span("fifth", started_at="2026-01-01T11:00:03-01:00"),
        span("fourth", started_at=None, finished_at="2026-01-01T12:00:02Z"),
    ]
    shown = [line.split()[1] for line in lines(run(), *spans)[1:]]
    assert shown == ["first", "second", "third", "fourth", "fifth"]


def test_siblings_of_one_moment_keep_their_order() -> None:
    shown = lines(run(), *(span(name) for name in "cab"))
    assert [line.split()[1] for line in shown[1:]] == ["c", "a", "b"]


def test_a_child_that_is_listed_before_its_parent_is_shown_below_it() -> None:
    assert lines(run(), span("child", "parent"), span("parent")) == [
        "agent instance i1  active",
        "└── parent  active",
        "    └── child  active",
    ]


def test_spans_that_are_each_others_parents_are_shown_all_the_same() -> None:
    spans = span("a", "b"), span("b", "a"), span("c", "c"), span("d", "b")
    assert {line.split()[-2] for line in lines(run(), *spans)[1:]} == set("abcd")


def test_a_span_whose_parent_is_not_there_is_shown_all_the_same() -> None:
    shown = lines(run(), span("llm"), span("orphan", "gone"), span("child", "orphan"))
    assert {line.split()[-2] for line in shown[1:]} == {"llm", "orphan", "child"}


def test_a_run_may_be_nested_deeper_than_python_is() -> None:
    depth = 1_500
    spans = [span(f"s{n}", f"s{n - 1}" if n else None) for n in range(depth)]
    shown = list(tree_lines(run(), spans))
    assert len(shown) == 1 + depth
    for n, line in enumerate(shown[1:]):
        assert len(line.branches) == 4 * (n + 1)
        assert line.plain.endswith(f"── s{n}  active")


def test_what_is_sensitive_is_shown_as_its_labels() -> None:
    marked = {"$sensitive": "string", "labels": ["minors_data"], "value": "xyzzy"}
    shown = lines(
        run(quality_payloads={"score": msgspec.Raw(msgspec.json.encode({"by": [marked]}))}),
        span("ask", payload={"name": marked}, result_payload={"names": [marked, "Ada"]}),
    )
    assert shown[1:] == [
        '├── quality score  {"by":["[minors_data]"]}',
        '└── ask  active  {"name":"[minors_data]"} → {"names":["[minors_data]","Ada"]}',
    ]


def test_quality_is_shown_by_its_summary() -> None:
    payloads = {"score": msgspec.Raw(b'{"n":1}'), "cost": msgspec.Raw(b'{"n":2}')}
    summaries = {"score": "one", "cost": None}
    shown = lines(run(quality_payloads=payloads, quality_summaries=summaries))
    assert shown[1:] == ["├── quality score  one", '└── quality cost  {"n":2}']
