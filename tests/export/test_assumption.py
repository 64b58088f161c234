"""Assumption: a conclusion about the API, doubted again after a while, on made-up times."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from prefactor_core.export.api_limits import Assumption

NOW = 1_000.0
HOUR = 3_600.0


def test_nothing_is_believed_before_the_api_has_shown_it() -> None:
    assumption = Assumption()
    assert not assumption.holds(NOW)
    assert not assumption.made


def test_it_is_believed_for_five_seconds_and_then_one_attempt_finds_out() -> None:
    assumption = Assumption()
    assumption.make(NOW)
    assert assumption.holds(NOW + 4.9)
    assert not assumption.holds(NOW + 5)
    # It still counts as assumed, until the API shows the opposite.
    assert assumption.made


def test_each_time_it_is_believed_twice_as_long_and_an_hour_at_most() -> None:
    assumption, now, pauses = Assumption(), NOW, list[float]()
    for _ in range(14):
        assumption.make(now)
        pauses.append(pause_of(assumption, now))
        now += pauses[-1]
    assert pauses == [5.0 * 2**n for n in range(10)] + [HOUR] * 4


def pause_of(assumption: Assumption, now: float) -> float:
    """For how many seconds it is believed."""
    seconds = 0
    while assumption.holds(now + seconds):
        seconds += 5
    return float(seconds)


def test_the_answers_to_requests_of_one_moment_say_it_once() -> None:
    assumption = Assumption()
    for later in range(5):
        assumption.make(NOW + later)
    assert not assumption.holds(NOW + 5)
    assumption.make(NOW + 5)
    assert pause_of(assumption, NOW + 5) == 10


def test_what_the_api_does_after_all_is_forgotten_and_begins_anew() -> None:
    assumption, now = Assumption(), NOW
    for _ in range(5):
        assumption.make(now)
        now += pause_of(assumption, now)
    assumption.make(now)
    assumption.refute()
    assert not assumption.holds(now)
    assumption.make(now)
    assert pause_of(assumption, now) == 5


def test_only_what_changes_is_news() -> None:
    assumption = Assumption()
    assert not assumption.refute()
    assert [assumption.make(NOW), assumption.make(NOW), assumption.make(NOW + 5)] == [
        True,
        False,
        False,
    ]
    assert [assumption.refute(), assumption.refute()] == [True, False]
    assert assumption.make(NOW + 6)


@given(st.lists(st.tuples(st.sampled_from(["make", "refute"]), st.floats(0, 2 * HOUR))))
def test_whatever_the_api_shows_it_is_tried_again_within_an_hour(
    events: list[tuple[str, float]],
) -> None:
    assumption, now = Assumption(), NOW
    for event, seconds in events:
        now += seconds
        believed = assumption.holds(now)
        if event == "make":
            assumption.make(now)
            # Whatever is shown now is believed for a while, and no longer than before if it was.
            assert assumption.holds(now)
            assert not assumption.holds(now + HOUR)
        else:
            assumption.refute()
            assert not assumption.holds(now)
            believed = False
        assert assumption.made == (event == "make")
        assert assumption.holds(now) or not believed
