"""Durations as text."""

from __future__ import annotations

import pytest

from prefactor_core.models.duration import duration_text

MINUTE, HOUR, DAY = 60, 3600, 86400


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 ms"),
        (0.00056, "0.6 ms"),
        (0.85023, "850.2 ms"),
        (0.9999, "999.9 ms"),
        (0.99996, "1.00 s"),
        (1.234, "1.23 s"),
        (9.994, "9.99 s"),
        (9.996, "10.0 s"),
        (41.1225, "41.1 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (125, "2 min 05 s"),
        (HOUR - 0.6, "59 min 59 s"),
        (HOUR - 0.4, "1 h 00 min"),
        (HOUR + 2 * MINUTE, "1 h 02 min"),
        (DAY - 31, "23 h 59 min"),
        (DAY - 0.0002, "1 d 0 h"),
        (3 * DAY + 4 * HOUR, "3 d 4 h"),
        (-1.5, "-1.50 s"),
    ],
)
def test_a_duration_is_shown_in_the_units_that_suit_it(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text
