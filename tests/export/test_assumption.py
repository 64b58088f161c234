"""Assumption: a conclusion about the API, doubted again after a while, on made-up times."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from prefactor_core.export.assumption import Assumption

NOW = 1_000.0
HOUR = 3_600.0


def test_nothing_is_believed_before_the_api_has_shown_it() -> None:
    guess = Assumption()
    assert not guess.holds(NOW)
    assert not guess.made


def test_it_is_believed_for_five_seconds_and_then_one_attempt_finds_out() -> None:
    guess = Assumption()
    guess.make(NOW)
    assert guess.holds(NOW + 4.9)
    assert not guess.holds(NOW + 5)
    # It still counts as what is assumed, until the API shows the opposite.
    assert guess.made


def test_each_time_it_is_believed_twice_as_long_and_an_hour_at_most() -> None:
    guess, now, pauses = Assumption(), NOW, list[float]()
    for _ in range(14):
        guess.make(now)
        pauses.append(pause_of(guess, now))
        now += pauses[-1]
    assert pauses == [5.0 * 2**n for n in range(10)] + [HOUR] * 4


def pause_of(guess: Assumption, now: float) -> float:
    """For how many seconds it is believed."""
    seconds = 0
    while guess.holds(now + seconds):
        seconds += 5
    return float(seconds)


def test_the_answers_to_requests_of_one_moment_say_it_once() -> None:
    guess = Assumption()
    for later in range(5):
        guess.make(NOW + later)
    assert not guess.holds(NOW + 5)
    guess.make(NOW + 5)
    assert pause_of(guess, NOW + 5) == 10


def test_what_the_api_does_after_all_is_forgotten_and_begins_anew() -> None:
    guess, now = Assumption(), NOW
    for _ in range(5):
        guess.make(now)
        now += pause_of(guess, now)
    guess.make(now)
    guess.refute()
    assert not guess.holds(now)
    guess.make(now)
    assert pause_of(guess, now) == 5


def test_only_what_changes_is_news() -> None:
    guess = Assumption()
    assert not guess.refute()
    assert [guess.make(NOW), guess.make(NOW), guess.make(NOW + 5)] == [True, False, False]
    assert [guess.refute(), guess.refute()] == [True, False]
    assert guess.make(NOW + 6)


@given(st.lists(st.tuples(st.sampled_from(["make", "refute"]), st.floats(0, 2 * HOUR))))
def test_whatever_the_api_shows_it_is_tried_again_within_an_hour(
    events: list[tuple[str, float]],
) -> None:
    guess, now = Assumption(), NOW
    for event, seconds in events:
        now += seconds
        believed = guess.holds(now)
        if event == "make":
            guess.make(now)
            # Whatever is shown now is believed for a while, and no longer than before if it was.
            assert guess.holds(now)
            assert not guess.holds(now + HOUR)
        else:
            guess.refute()
            assert not guess.holds(now)
            believed = False
        assert guess.made == (event == "make")
        assert guess.holds(now) or not believed
