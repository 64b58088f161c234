"""The waits between attempts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefactor_core.queue.retry_policy import Backoff

seconds = st.floats(0.001, 1_000)
attempts = st.integers(1, 100)


@pytest.mark.parametrize(
    ("attempt", "wait"), [(1, 1), (2, 2), (3, 4), (4, 8), (6, 32), (7, 60), (8, 60), (1_000, 60)]
)
def test_a_wait_doubles_up_to_a_minute_and_varies_by_a_quarter(attempt: int, wait: float) -> None:
    waits = [Backoff().delay(attempt) for _ in range(1_000)]
    assert 0.75 * wait <= min(waits) < 0.8 * wait
    assert 1.2 * wait < max(waits) <= 1.25 * wait


@given(seconds, st.floats(1, 10), seconds, attempts)
def test_a_wait_is_the_base_multiplied_after_each_attempt_within_cap_and_jitter(
    base: float, multiplier: float, cap: float, attempt: int
) -> None:
    wait = base
    for _ in range(attempt - 1):
        wait *= multiplier
    delay = Backoff(base=base, multiplier=multiplier, cap=cap).delay(attempt)
    assert delay == pytest.approx(min(wait, cap), rel=0.2500001)


@pytest.mark.parametrize("attempt", [10**6, 10**30, 10**400])
def test_after_any_number_of_attempts_the_wait_is_the_cap(attempt: int) -> None:
    assert Backoff(cap=8).delay(attempt) == pytest.approx(8, rel=0.25)
