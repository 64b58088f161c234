"""Pattern finds the same as re, in a bounded number of steps."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.cases import for_each
from support.examples import examples

from prefactor_core.schema_registry.patterns import UnknownPatternError, compile_pattern


def is_in(pattern: str, text: str) -> bool:
    return compile_pattern(pattern).is_in(text, lambda steps: None)


def steps_of(pattern: str, text: str) -> int:
    spent: list[int] = []
    compile_pattern(pattern).is_in(text, spent.append)
    return sum(spent)


characters = [
    *("a", "b", ".", r"\d", r"\D", r"\w", r"\W", r"\s", r"\S", r"\.", "é"),
    *("[ab]", "[^a]", r"[^\d_]", "[a-c-]", r"[\w.]", "[^\\n]", "-", "0"),
]
places = ["^", "$", r"\b", r"\B", r"\A", r"\Z", ""]


def larger(parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    repeats = st.sampled_from(["*", "+", "?", "*?", "+?", "??", "{2}", "{0,2}", "{1,}", "{1,3}?"])
    groups = parts.map("(?:{})".format) | parts.map("({})".format)
    return (
        st.lists(parts, min_size=1, max_size=3).map("".join)
        | st.lists(parts, min_size=2, max_size=3).map(lambda each: f"(?:{'|'.join(each)})")
        | st.builds("{}{}".format, groups, repeats)
        | parts.map("(?={})".format)
        | parts.map("(?!{})".format)
    )


patterns = st.recursive(st.sampled_from(characters + places), larger, max_leaves=6)
texts = st.text("ab.-_0é \n", max_size=7)


@settings(max_examples=examples(1_500))
@given(patterns, texts)
@example(r"^\d{4}-\d{2}$", "2026-01")
@example(r"^(\([0-9]{3}\))?[0-9]{3}-[0-9]{4}$", "(888)555-1212")
@example("^[a-z]+(-[a-z]+)*$", "a-slug-of-words")
@example("(?!.*--)^a", "a--")
@example(r"\B", "")
@example("a$", "a\n")
@example(r"a\Z", "a\n")
def test_a_pattern_is_found_where_re_finds_it(pattern: str, text: str) -> None:
    assert is_in(pattern, text) == (re.search(pattern, text) is not None)


@for_each(
    "pattern",
    ["^(a+)+$", "^(a|a)*$", "^(a|aa)+$", "^(.*a){12}$", "(a*)*b", "^(([a-z])+.)+[A-Z]([a-z])+$",
     "a*a*a*a*a*b", f"{'a?' * 30}{'a' * 30}b", "^((a+)+)+$"],
)  # fmt: skip
def test_a_search_takes_steps_in_proportion_to_the_text(pattern: str) -> None:
    few, many = (steps_of(pattern, "a" * size + "!") for size in (500, 1_000))
    assert many < 2.1 * few + 100
    assert many < 100 * 1_000


def test_what_is_ahead_is_counted_at_every_place() -> None:
    assert 300 * 300 / 2 < steps_of("(?=(a+)+b)", "a" * 300) < 100 * 300 * 300


@for_each(
    "pattern",
    [
        r"(a)\1",
        "(?<=a)b",
        "(?<!a)b",
        "(?i)a",
        "(?i:a)",
        "(?s:.)",
        "(?>a+)b",
        "a++b",
        "(a)?(?(1)b|c)",
    ],
)
def test_what_cannot_be_followed_side_by_side_is_refused(pattern: str) -> None:
    re.compile(pattern)
    with pytest.raises(UnknownPatternError, match="a pattern has "):
        compile_pattern(pattern)


@for_each(
    "pattern",
    ["a{5000}", "(a{100}){100}", "(){4000000000}", "(){0,4000000000}", "a" * 5_000],
    ids=lambda pattern: pattern[:20],
)
def test_a_pattern_that_is_too_large_is_refused(pattern: str) -> None:
    with pytest.raises(UnknownPatternError, match="a pattern (has too many repet|of 5000 char)"):
        compile_pattern(pattern)
