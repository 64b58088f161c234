"""A run as HTML, as a notebook shows it."""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from typing import Any

import anyio
import pytest
from support.harness import AGENT, make_config

from prefactor_core import PrefactorTerminatedError, open_prefactor
from prefactor_core.agent.run_html import MOST_CHARACTERS, MOST_SPANS
from prefactor_core.testing import open_recording


class Outline(HTMLParser):
    """The text of HTML whose elements are all closed, by the depth of its lists."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.lines: list[tuple[int, str]] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.open.append(tag)
        if tag in ("div", "li", "p"):
            self.lines.append((self.open.count("ul"), ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        depth, text = self.lines.pop()
        self.lines.append((depth, text + data))


def shown(run: Any) -> list[tuple[int, str]]:
    html = run._repr_html_()
    assert len(html) < 100_000
    html.encode()
    return Outline(html).lines


async def test_a_recorded_run_shows_its_whole_tree() -> None:
    with anyio.fail_after(10), open_recording() as recording:
        async with recording.open() as client, client.agent_instance(**AGENT) as instance:
            async with instance.span("agent:run", payload={"question": "?"}) as run:
                with pytest.raises(ConnectionError):
                    async with instance.span("agent:llm"):
                        raise ConnectionError("no <b>route</b>")
                run.set_result({"answer": "!"})
            async with instance.span("agent:tool") as tool:
                await tool.cancel()
        lines = shown(recording.run)
    texts = [re.split(" m?s ", text)[-1] for _, text in lines]
    assert [depth for depth, _ in lines] == [0, 1, 2, 1]
    assert lines[0][1].startswith(f"agent instance {instance.id} complete ")
    assert texts[1:] == [
        '{"question":"?"} → {"answer":"!"}',
        "ConnectionError: no <b>route</b>",
        "agent:tool cancelled",
    ]


async def test_text_is_escaped_cut_and_on_one_line() -> None:
    nasty = "<script>alert(1)</script>&\"'\n\x00" + "\N{GRINNING FACE}" * 10_000
    with anyio.fail_after(10), open_recording() as recording:
        async with recording.open() as client, client.agent_instance(**AGENT) as instance:
            async with instance.span(nasty, payload={nasty: nasty}):
                html = instance._repr_html_()
                assert html == instance._repr_html_()
        recorded = recording.run._repr_html_()
    for text in (html, recorded):
        assert "<script" not in text
        assert "\n" not in text
        assert len(text) < 10 * MOST_CHARACTERS


async def test_a_large_and_deep_run_is_cut() -> None:
    depth = sys.getrecursionlimit() + 100
    with anyio.fail_after(30), open_recording() as recording:
        async with recording.open() as client, client.agent_instance(**AGENT) as instance:
            for _ in range(depth):
                await instance.create_span("s")
            lines = shown(instance)
            assert len(lines) == 1 + MOST_SPANS + 2
            assert lines[-2] == (0, f"and {depth - MOST_SPANS} more spans")
        lines = shown(recording.run)
    assert [depth for depth, _ in lines] == [*range(MOST_SPANS + 1), 0]
    assert lines[-1] == (0, f"and {depth - MOST_SPANS} more spans")


async def test_a_run_of_this_process_shows_its_open_spans() -> None:
    with anyio.fail_after(10), open_recording() as recording:
        async with recording.open() as client, client.agent_instance(**AGENT) as instance:
            async with instance.span("agent:run"):
                async with instance.span("agent:llm"):
                    pass
                async with instance.span("agent:tool"):
                    *tree, note = shown(instance)
        *ended, _ = shown(instance)
    assert tree == [
        (0, f"agent instance {instance.id} active"),
        (1, "agent:run open"),
        (2, "agent:tool open"),
    ]
    assert note[1].endswith(f"python -m prefactor_core tree {instance.id}")
    ((_, line),) = ended
    assert line.startswith(f"agent instance {instance.id} complete ")
    assert line.endswith(("ms", " s"))


async def test_a_run_that_is_not_recorded_or_was_terminated_says_so() -> None:
    with anyio.fail_after(10):
        async with open_prefactor(make_config(enabled=False)) as client:
            async with client.agent_instance(**AGENT) as instance:
                assert shown(instance)[-1] == (0, "This run is not recorded.")
        with open_recording() as recording:
            async with recording.open() as client:
                with pytest.raises(PrefactorTerminatedError):
                    async with client.agent_instance(**AGENT) as instance:
                        recording.terminate(instance.id, "over <budget>")
                        await anyio.sleep_forever()
                first = (0, f"agent instance {instance.id} terminated over <budget>")
                assert shown(instance)[0][1].startswith(first[1][:50])
                assert "over <budget>" in shown(instance)[0][1]
