"""Templates that would take the server's time."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from support.cases import case

from prefactor_core.local.summaries import Template

LONG = "a" * 1_900_000
FIELDS: dict[str, Any] = {
    "text": LONG,
    "other": LONG[:-1] + "b",
    "part": "a" * 900_000 + "b",
    "list": list(range(200_000)),
    "number": 10**1000,
}
WORK = [
    "{{ text | upcase | size }}",
    "{{ text | split: '' | size }}",
    "{{ text | replace: 'a', 'b' | size }}",
    "{{ list | sort | size }}",
    "{{ list | join: ',' | size }}",
    "{{ list | map: 'x' | size }}",
    "{% if text == other %}x{% endif %}",
    "{% if text contains part %}x{% endif %}",
    "{% if list contains -1 %}x{% endif %}",
    "{% assign x = text | append: other %}",
    "{% for each in list limit: 900 %}{{ text | size }}{% endfor %}",
]


@pytest.mark.parametrize("rounds", [100, 900, 1_000_000_000])
def test_work_that_is_done_again_and_again_is_given_up(rounds: int) -> None:
    for work, chained in product(WORK, ["", "{{ text | upcase | downcase | size }}"]):
        with case(work, chained):
            text = f"{{% for i in (1..{rounds}) %}}{work}{chained}{{% endfor %}}"
            assert Template(text).render(FIELDS) is None


def test_numbers_do_not_grow_without_end() -> None:
    squares = (
        "{% assign x = number %}{% for i in (1..30) %}{% assign x = x | times: x %}{% endfor %}"
    )
    assert Template(squares + "{{ x | size }}").render(FIELDS) is None


def test_a_long_text_is_shown_shortened() -> None:
    template = "{{ text | truncate: 5 }} {{ list | size }} {{ part | truncate: 4, '' }}"
    assert Template(template).render(FIELDS) == "aa... 200000 aaaa"
    loop = "{% for i in list limit: 900 %}{{ i }}{% endfor %}"
    assert Template(loop).render({"list": [1] * 1_000}) == "1" * 900


def test_each_rendering_has_steps_of_its_own() -> None:
    template = Template("{{ text | truncate: 5 }}")
    assert {template.render(FIELDS) for _ in range(20)} == {"aa..."}
