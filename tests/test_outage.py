"""Outage: the waits that all workers of a client keep together, on times that are made up."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefactor_core.backoff import Backoff
from prefactor_core.delivery.outage import Outage

NOW = 1_000.0
CAP = 60.0


def make(base: float = 1.0) -> Outage:
    return Outage(Backoff(base=base, multiplier=2.0, cap=CAP))


def fail_again(outage: Outage, now: float, *, denied: bool = False) -> bool:
    """A request that is sent at ``now``, in the round of that moment, fails at once."""
    return outage.failed(outage.round, now, denied=denied)


def test_nothing_waits_before_anything_failed() -> None:
    outage = make()
    assert outage.wait(NOW) <= 0
    assert outage.since is None
    assert outage.answered(NOW) is None


def test_the_waits_grow_from_round_to_round_up_to_the_cap() -> None:
    outage, now, waits = make(), NOW, list[float]()
    for _ in range(10):
        fail_again(outage, now)
        waits.append(outage.wait(now))
        now += waits[-1]
        assert outage.wait(now) <= 1e-9
    assert all(shorter < longer for shorter, longer in pairwise(waits[:6]))
    for wait, middle in zip(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60, 60], strict=True):
        assert wait == pytest.approx(middle, rel=0.2500001)


def test_a_wait_passes_with_time() -> None:
    outage = make()
    fail_again(outage, NOW)
    wait = outage.wait(NOW)
    assert outage.wait(NOW + wait / 2) == pytest.approx(wait / 2)
    assert outage.wait(NOW + wait + 1) == pytest.approx(-1)


@pytest.mark.parametrize("workers", [2, 20])
def test_requests_that_were_on_their_way_together_count_as_one_failure(workers: int) -> None:
    outage = make()
    round = outage.round
    told = [outage.failed(round, NOW + number / 100) for number in range(workers)]
    assert told == [False] * workers
    assert outage.wait(NOW) <= 1.25
    fail_again(outage, NOW + 2)
    assert outage.wait(NOW + 2) <= 2.5


def test_a_late_failure_of_an_earlier_round_does_not_lengthen_the_wait() -> None:
    outage = make()
    slow = outage.round
    fail_again(outage, NOW)
    until = NOW + outage.wait(NOW)
    outage.failed(slow, NOW + 0.5)
    assert outage.wait(NOW) == pytest.approx(until - NOW)


# What the API asks for


def test_the_wait_that_the_api_asks_for_is_kept_beyond_the_schedule() -> None:
    outage = make()
    outage.failed(outage.round, NOW, 100.0)
    assert outage.wait(NOW) == pytest.approx(100)
    assert outage.wait(NOW + 99) == pytest.approx(1)


def test_the_wait_that_the_api_asks_for_does_not_shorten_the_schedule() -> None:
    outage = make(base=30.0)
    outage.failed(outage.round, NOW, 0.5)
    assert outage.wait(NOW) >= 22.5


def test_every_worker_is_heard_that_was_asked_to_wait() -> None:
    # The first failure of a round counts, but the wait may be asked for in the second.
    outage = make()
    round = outage.round
    outage.failed(round, NOW)
    outage.failed(round, NOW, 50.0)
    outage.failed(round, NOW, 10.0)
    assert outage.wait(NOW) == pytest.approx(50)


def test_leaving_the_scope_gives_up_waits_but_those_that_the_api_asked_for() -> None:
    outage = make(base=30.0)
    fail_again(outage, NOW)
    outage.hurry()
    assert outage.wait(NOW) <= 0
    outage.failed(outage.round, NOW, 40.0)
    outage.hurry()
    assert outage.wait(NOW) == pytest.approx(40)


def test_after_leaving_the_scope_the_waits_are_short_again() -> None:
    outage = make()
    for _ in range(10):
        fail_again(outage, NOW)
    outage.hurry()
    fail_again(outage, NOW)
    assert outage.wait(NOW) <= 1.25


def test_an_answer_to_one_worker_does_not_hurry_the_others() -> None:
    outage = make()
    fail_again(outage, NOW)
    wait = outage.wait(NOW)
    outage.answered(NOW)
    assert outage.wait(NOW) == wait
    outage.failed(outage.round, NOW, 100.0)
    outage.answered(NOW + 1)
    assert outage.wait(NOW + 1) == pytest.approx(99)


def test_after_an_answer_the_waits_begin_anew() -> None:
    outage = make()
    for _ in range(10):
        fail_again(outage, NOW)
    outage.answered(NOW)
    fail_again(outage, NOW)
    assert outage.wait(NOW) <= 1.25


# A token that is not taken


def test_a_denied_request_is_tried_again_after_the_longest_wait() -> None:
    outage = make()
    outage.failed(outage.round, NOW, denied=True)
    assert outage.wait(NOW) == pytest.approx(CAP)


def test_leaving_the_scope_tries_a_denied_request_once_more_at_once() -> None:
    outage = make()
    outage.failed(outage.round, NOW, denied=True)
    outage.hurry()
    assert outage.wait(NOW) <= 0


# News


def test_a_failure_is_no_news_and_the_second_round_is_told_once() -> None:
    outage = make()
    assert [fail_again(outage, NOW) for _ in range(5)] == [False, True, False, False, False]


def test_a_denied_request_is_told_at_once_and_once() -> None:
    outage = make()
    assert [fail_again(outage, NOW, denied=True) for _ in range(3)] == [True, False, False]
    assert not fail_again(outage, NOW)


def test_each_outage_is_told() -> None:
    outage = make()
    for _ in range(3):
        assert [fail_again(outage, NOW) for _ in range(3)] == [False, True, False]
        assert outage.answered(NOW) is not None


def test_failures_with_answers_in_between_are_no_outage() -> None:
    outage = make()
    for _ in range(5):
        assert not fail_again(outage, NOW)
        assert outage.answered(NOW) is None


def test_the_end_of_an_outage_that_was_told_gives_its_length_once() -> None:
    outage = make()
    fail_again(outage, NOW)
    fail_again(outage, NOW + 5)
    assert outage.answered(NOW + 7.5) == pytest.approx(7.5)
    assert outage.answered(NOW + 8) is None


def test_since_is_when_the_first_failure_was_and_ends_with_an_answer() -> None:
    outage = make()
    before = datetime.now(UTC)
    fail_again(outage, NOW)
    since = outage.since
    assert since is not None
    assert before <= since <= datetime.now(UTC)
    fail_again(outage, NOW + 1)
    assert outage.since is since
    outage.hurry()
    assert outage.since is since
    outage.answered(NOW + 2)
    assert outage.since is None


# Whatever happens

EVENTS = st.lists(
    st.one_of(
        st.tuples(
            st.just("fail"),
            # How many rounds ago the request was sent that fails; what it was asked to wait.
            st.integers(0, 2),
            st.none() | st.floats(0, 1_000),
            st.booleans(),
        ),
        st.tuples(st.just("answered")),
        st.tuples(st.just("hurry")),
        st.tuples(st.just("pass"), st.floats(0, 100)),
    ),
    max_size=30,
)


@given(EVENTS)
def test_nobody_ever_waits_less_than_the_api_asked_for_nor_without_end(
    events: list[tuple[object, ...]],
) -> None:
    outage, now, asked_until, longest = make(), NOW, -math.inf, -math.inf
    for event in events:
        match event:
            case ("fail", int() as ago, asked, bool() as denied):
                assert asked is None or isinstance(asked, float)
                outage.failed(max(0, outage.round - ago), now, asked, denied=denied)
                asked_until = asked_until if asked is None else max(asked_until, now + asked)
                longest = now + 1.25 * CAP
            case ("pass", float() as seconds):
                now += seconds
            case ("answered",):
                outage.answered(now)
            case _:
                outage.hurry()
                longest = -math.inf
        assert outage.wait(now) >= asked_until - now - 1e-9
        assert outage.wait(now) <= max(asked_until, longest) - now + 1e-9


@given(EVENTS)
def test_every_outage_is_told_before_its_end_is(events: list[tuple[object, ...]]) -> None:
    outage, now, told = make(), NOW, False
    for event in events:
        match event:
            case ("fail", int() as ago, _, bool() as denied):
                round = outage.round
                counts = ago == 0
                news = outage.failed(round - ago, now, denied=denied)
                assert not (news and told)
                assert counts or not news
                assert news or told or not (denied and counts)
                told = told or news
            case ("pass", float() as seconds):
                now += seconds
            case ("answered",):
                took = outage.answered(now)
                assert (took is not None) == told
                assert took is None or took >= 0
                told = False
            case _:
                outage.hurry()


def test_the_rounds_count_failures_that_follow_each_other() -> None:
    outage = make()
    rounds = [outage.round]
    for _ in range(3):
        fail_again(outage, NOW)
        rounds.append(outage.round)
    assert all(earlier < later for earlier, later in pairwise(rounds))
