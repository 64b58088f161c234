"""What the pages show of payloads, times and amounts, by the functions that show it."""

from __future__ import annotations

import json
from collections.abc import Generator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from playwright.sync_api import Browser, Page

# Many values at once: each call into the browser takes a while.
many = settings(max_examples=15)

scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=8)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)

BROKEN = ["", "{", "[1,]", '{"a" 1}', '"a', "tru", "01x", "[" * 100_000, '"\\x"', "1 2", '{"a":1']


@pytest.fixture(scope="module")
def page(chromium: Browser, url: str) -> Generator[Page]:
    """A page that holds the functions of some modules."""
    page = chromium.new_page()
    page.goto(url)
    page.evaluate(
        """async () => {
            const boot = document.querySelector("script[src$='/boot.js']").src;
            for (const name of ["format", "json_parse", "markdown", "payload"]) {
                Object.assign(window, await import(new URL(`values/${name}.js`, boot)));
            }
        }"""
    )
    yield page
    page.close()


@many
@given(some=st.lists(values, min_size=1, max_size=25))
def test_json_is_shown_with_every_digit(page: Page, some: list[object]) -> None:
    texts = [json.dumps(value) for value in some]
    shown = page.evaluate("(texts) => texts.map((text) => prettyJson(parseJson(text)))", texts)
    assert [json.loads(text) for text in shown] == some


def test_a_key_that_comes_twice_is_shown_twice(page: Page) -> None:
    shown = page.evaluate("""prettyJson(parseJson('{"a": 1.0, "a": -0, "b": [NaN, 1e400]}'))""")
    assert " ".join(shown.split()) == '{ "a": 1.0, "a": -0, "b": [ NaN, 1e400 ] }'


@pytest.mark.parametrize("text", BROKEN, ids=range(len(BROKEN)))
def test_a_text_that_is_no_json_is_known_as_such(page: Page, text: str) -> None:
    assert page.evaluate("(text) => parseJson(text) === undefined", text)


def test_a_part_knows_its_place_in_the_stored_text(page: Page) -> None:
    text = '{"a":  {"b": [1,2] } , "c": {}}'
    places = page.evaluate(
        """(text) => parseJson(text).entries.map(([, part]) => text.slice(part.start, part.end))""",
        text,
    )
    assert places == ['{"b": [1,2] }', "{}"]


@pytest.mark.parametrize(
    ("flag", "part", "field", "path"),
    [
        ("payload.prompt: 1 is not of type 'string'", "payload", "prompt", ".prompt"),
        ("result.a[0].b: is too long", "result", "a", ".a[0].b"),
        ("payload: 'x' is a required property", "payload", None, ""),
        ("finished_at: 2026 is before the start", None, None, ""),
    ],
)
def test_a_flag_leads_to_its_field(
    page: Page, flag: str, part: str | None, field: str | None, path: str
) -> None:
    parsed = page.evaluate("(flag) => parseFlag(flag)", flag)
    assert (parsed["part"], parsed["field"], parsed["path"]) == (part, field, path)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        ("duration(0)", "0 s"),
        ("duration(0.056)", "56 µs"),
        ("duration(20.34)", "20.3 ms"),
        ("duration(999.7)", "1.00 s"),
        ("duration(59_960)", "1 min 00 s"),
        ("duration(3_725_000)", "1 h 02 min"),
        ("duration(NaN)", "\N{EN DASH}"),
        ("money(0.0000421)", "$0.000042"),
        ("money(0.1)", "$0.10"),
        ("money(12.345)", "$12.35"),
        ("bytes(999)", "999 B"),
        ("bytes(1_260_000)", "1.26 MB"),
        ("count(1204)", "1,204"),
        ("shortName('agent:llm_call')", "llm_call"),
        (
            "['agent:llm_call', 'agent:tool', 'x:retrieval', 'agent:run', 'y'].map(kindOf).join()",
            "llm,tool,retrieval,agent,other",
        ),
    ],
)
def test_amounts_are_shown_with_the_digits_that_matter(
    page: Page, shown: str, expected: str
) -> None:
    assert page.evaluate(shown) == expected


def test_microseconds_of_a_time_count(page: Page) -> None:
    later, earlier = "2026-01-01T12:00:00.000345Z", "2026-01-01T12:00:00.000045Z"
    apart = page.evaluate("([a, b]) => msOf(a) - msOf(b)", [later, earlier])
    assert apart == pytest.approx(0.3, abs=0.001)


@pytest.mark.parametrize("piece", ["*", "[", "`a", "_a ", "[a](", ">", "- ", "|", "**a ", "\\"])
def test_no_text_takes_long_to_become_markdown(page: Page, piece: str) -> None:
    shown = page.evaluate(
        "(piece) => markdown(piece.repeat(150_000 / piece.length)).textContent.length", piece
    )
    assert shown is not None  # the time limit of the test has not passed
