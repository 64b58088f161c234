"""CircuitBreaker: the waits that all workers of a client keep together, on made-up times."""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import UTC, datetime
from itertools import pairwise, product

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.harness import AGENT, make_config, open_faulty_api

from prefactor_core import PrefactorCoreClient, open_prefactor
from prefactor_core.export.circuit_breaker import CircuitBreaker
from prefactor_core.queue.retry_policy import Backoff

NOW = 1_000.0
CAP = 60.0
HOUR = 3_600.0


def make(base: float = 1.0) -> CircuitBreaker:
    return CircuitBreaker(Backoff(base=base, multiplier=2.0, cap=CAP))


def fail_again(
    breaker: CircuitBreaker, now: float = NOW, asked: float | None = None, *, busy: bool = False
) -> bool:
    """A request that is sent at ``now`` fails at once; whether that is news."""
    round = breaker.begin()
    news = breaker.failed(round, now, asked, busy=busy)
    breaker.end(round)
    return news


def fail_often(failures: int, now: float = NOW) -> CircuitBreaker:
    breaker = make()
    for _ in range(failures):
        fail_again(breaker, now)
    return breaker


def test_nothing_waits_before_anything_failed() -> None:
    breaker = make()
    assert breaker.wait(NOW) <= 0
    assert not breaker.is_open
    assert breaker.since is None
    assert breaker.succeeded(NOW) is None


# One failure


def test_one_failure_holds_up_its_own_request_only_and_not_for_long() -> None:
    breaker = fail_often(1)
    assert breaker.wait(NOW) <= 0
    assert not breaker.is_open
    # A tenth of the first wait of the schedule.
    assert {round(breaker.first_wait(), 1) for _ in range(100)} == {0.1}
    assert len({breaker.first_wait() for _ in range(100)}) > 1


@pytest.mark.parametrize("workers", [2, 20])
def test_requests_that_were_on_their_way_together_count_as_one_failure(workers: int) -> None:
    breaker = make()
    rounds = [breaker.begin() for _ in range(workers)]
    reported = [breaker.failed(round, NOW + number / 100) for number, round in enumerate(rounds)]
    assert reported == [False] * workers
    assert (breaker.failures, breaker.is_open) == (1, False)
    assert breaker.wait(NOW + 1) <= 0


def test_failures_with_successes_in_between_limit_nothing() -> None:
    breaker = make()
    for _ in range(20):
        assert not fail_again(breaker)
        assert breaker.succeeded(NOW) is None
        assert (breaker.wait(NOW) <= 0, breaker.is_open) == (True, False)
    assert breaker.recoveries == 0


# From the second on


def test_the_waits_in_an_outage_are_short_beside_its_length() -> None:
    breaker, now, waits = fail_often(1), NOW, list[float]()
    while now < NOW + 3_600:
        fail_again(breaker, now)
        waits.append(breaker.wait(now))
        assert waits[-1] <= max(5.0, 0.1 * (now - NOW)) + 1e-9
        now += waits[-1]
    assert max(waits) > 45
    assert len(waits) < 120  # in an hour, each with one operation


def test_the_waits_grow_from_the_second_failure_in_a_row_on_up_to_the_cap() -> None:
    breaker, now, waits = fail_often(1), NOW, list[float]()
    for _ in range(11):
        # A token that is refused does not come right by itself.
        round = breaker.begin()
        breaker.failed(round, now, denied=True)
        breaker.end(round)
        waits.append(breaker.wait(now))
        now += waits[-1]
        assert breaker.wait(now) <= 1e-9
    assert all(shorter < longer for shorter, longer in pairwise(waits[:7]))
    middles = [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2, 60, 60]
    for wait, middle in zip(waits, middles, strict=True):
        assert wait == pytest.approx(middle, rel=0.2500001)


def test_a_wait_passes_with_time() -> None:
    breaker = fail_often(2)
    wait = breaker.wait(NOW)
    assert breaker.wait(NOW + wait / 2) == pytest.approx(wait / 2)
    assert breaker.wait(NOW + wait + 1) == pytest.approx(-1)


def test_in_an_outage_one_request_at_a_time_is_on_its_way() -> None:
    breaker = fail_often(2)
    later = NOW + 10
    assert breaker.is_open
    assert breaker.wait(later) <= 0
    probe = breaker.begin()
    assert breaker.wait(later) == math.inf
    breaker.end(probe)
    assert breaker.wait(later) <= 0


def test_the_end_of_a_request_from_before_the_outage_is_not_that_of_the_one_on_its_way() -> None:
    breaker = make()
    slow, slower = breaker.begin(), breaker.begin()
    fail_again(breaker)
    late = breaker.begin()
    fail_again(breaker)
    probe = breaker.begin()
    for round in (slow, slower, late):
        breaker.failed(round, NOW + 5)
        breaker.end(round)
        assert breaker.wait(NOW + 100) == math.inf
    assert breaker.failures == 2
    breaker.end(probe)
    assert breaker.wait(NOW + 100) <= 0


def test_a_late_failure_of_an_earlier_round_does_not_lengthen_the_wait() -> None:
    breaker = make()
    slow = breaker.begin()
    fail_again(breaker)
    fail_again(breaker)
    wait = breaker.wait(NOW)
    breaker.failed(slow, NOW + 0.1)
    assert (breaker.wait(NOW), breaker.failures) == (wait, 2)


def test_the_first_success_ends_all_of_it() -> None:
    breaker = fail_often(10)
    breaker.succeeded(NOW)
    assert (breaker.wait(NOW) <= 0, breaker.is_open) == (True, False)
    fail_again(breaker)
    fail_again(breaker)
    assert breaker.wait(NOW) <= 0.25


def test_a_success_while_a_request_finds_out_lets_all_others_go() -> None:
    breaker = fail_often(2)
    probe = breaker.begin()
    breaker.succeeded(NOW)
    assert breaker.wait(NOW) <= 0
    breaker.end(probe)
    assert breaker.wait(NOW) <= 0


def test_ended_counts_the_failures_in_a_row_that_were_several() -> None:
    breaker = make()
    for failures, ended in [(0, 0), (1, 0), (2, 1), (7, 2), (1, 2)]:
        for _ in range(failures):
            fail_again(breaker)
        breaker.succeeded(NOW)
        assert breaker.recoveries == ended
    assert breaker.answers == 5


# What the API asks for


@pytest.mark.parametrize("failures", [1, 2])
def test_the_wait_that_the_api_asks_for_is_kept_beyond_the_schedule(failures: int) -> None:
    breaker = fail_often(failures - 1)
    fail_again(breaker, asked=100.0)
    assert breaker.wait(NOW) == pytest.approx(100)
    assert breaker.wait(NOW + 99) == pytest.approx(1)


def test_the_wait_that_the_api_asks_for_does_not_shorten_the_schedule() -> None:
    breaker = make(base=300.0)
    fail_again(breaker, asked=0.5)
    fail_again(breaker, asked=0.5)
    assert breaker.wait(NOW) == pytest.approx(5)  # as long as any wait may be at the beginning


def test_every_answer_that_asks_a_worker_to_wait_counts() -> None:
    # The first failure of a round counts, but the wait may be asked for in the second.
    breaker = make()
    rounds = [breaker.begin() for _ in range(3)]
    for round, asked in zip(rounds, [None, 50.0, 10.0], strict=True):
        breaker.failed(round, NOW, asked)
    assert breaker.wait(NOW) == pytest.approx(50)


def test_nobody_waits_longer_than_an_hour_for_what_the_api_asks() -> None:
    breaker = make()
    fail_again(breaker, asked=1e9)
    assert breaker.wait(NOW) == pytest.approx(HOUR)


def test_a_success_does_not_end_the_wait_that_the_api_asked_for() -> None:
    breaker = make()
    fail_again(breaker, asked=100.0)
    breaker.succeeded(NOW + 1)
    assert breaker.wait(NOW + 1) == pytest.approx(99)


# The drain


def attempts_of_drain(
    breaker: CircuitBreaker, seconds: float, asked: float | None = None
) -> list[float]:
    """When the requests of a drain are sent, each of which fails after 10 ms."""
    breaker.drain(NOW, NOW + seconds)
    now, attempts = NOW, list[float]()
    for _ in range(1_000):
        if now >= NOW + seconds:
            return attempts
        if (wait := breaker.wait(now)) > 0:
            now += wait
        else:
            attempts.append(now - NOW)
            now += 0.01
            fail_again(breaker, now, asked)
    raise AssertionError("the drain spins")


@pytest.mark.parametrize("seconds", [0.1, 1.0, 8.0, 60.0])
@pytest.mark.parametrize("failures", [0, 1, 2, 10])
def test_a_drain_tries_at_once_and_again_and_again_until_its_end(
    failures: int, seconds: float
) -> None:
    attempts = attempts_of_drain(fail_often(failures), seconds)
    assert attempts[0] == 0
    assert 3 <= len(attempts) <= 20
    # Also late enough to see an API that comes back in the last part of it.
    assert attempts[-1] >= 0.8 * seconds


def test_a_wait_that_the_api_asks_for_leaves_attempts_in_the_drain() -> None:
    breaker = make()
    fail_again(breaker, asked=100.0)
    attempts = attempts_of_drain(breaker, 8.0, asked=100.0)
    assert attempts[:3] == pytest.approx([4.0, 6.0, 7.0], abs=0.02)
    assert len(attempts) <= 20


def test_a_wait_that_ends_within_the_drain_is_kept() -> None:
    breaker = make()
    fail_again(breaker, asked=5.0)
    breaker.drain(NOW, NOW + 8)
    assert breaker.wait(NOW) == pytest.approx(5)
    breaker = make()
    breaker.drain(NOW, NOW + 8)
    fail_again(breaker, asked=5.0)
    assert breaker.wait(NOW) == pytest.approx(5)


def test_a_drain_stays_limited_and_begins_the_waits_anew() -> None:
    breaker = fail_often(10)
    breaker.drain(NOW, NOW + 1_000)
    assert breaker.is_open
    fail_again(breaker)
    assert breaker.wait(NOW) <= 0.5


# News


def test_the_fourth_failure_in_a_row_is_news_once() -> None:
    breaker = make()
    assert [fail_again(breaker) for _ in range(6)] == [False, False, False, True, False, False]


def test_a_failure_five_seconds_after_the_first_is_news() -> None:
    breaker = make()
    assert not fail_again(breaker, NOW)
    assert not fail_again(breaker, NOW + 4.9)
    assert fail_again(breaker, NOW + 5)
    assert not fail_again(breaker, NOW + 6)


def test_a_first_request_that_got_no_answer_for_five_seconds_is_news() -> None:
    breaker = make()
    assert breaker.failed(breaker.begin(), NOW, took=5.0)
    assert breaker.succeeded(NOW + 2) == pytest.approx(7)
    assert not breaker.failed(breaker.begin(), NOW, took=4.9)


def test_each_outage_is_reported() -> None:
    breaker = make()
    for _ in range(3):
        assert [fail_again(breaker) for _ in range(5)] == [False, False, False, True, False]
        assert breaker.succeeded(NOW) is not None


def test_the_end_of_a_reported_outage_gives_its_length_once() -> None:
    breaker = make()
    fail_again(breaker, NOW)
    fail_again(breaker, NOW + 5)
    assert breaker.succeeded(NOW + 7.5) == pytest.approx(7.5)
    assert breaker.succeeded(NOW + 8) is None


def test_an_api_that_is_busy_again_and_again_is_one_outage() -> None:
    breaker = make()
    news = [fail_again(breaker, NOW, busy=True) for _ in range(4)]
    for second in range(1, 60, 2):
        assert breaker.succeeded(NOW + second) is None
        assert not breaker.is_outage
        assert breaker.succeeded(NOW + second + 0.1) is None
        news += [fail_again(breaker, NOW + second + 1, busy=True) for _ in range(4)]
        assert breaker.is_outage
        news.append(breaker.unanswered(NOW + second + 1, 10.0))
    assert sum(news) == 1
    # It is over when nothing failed between two successes that are some seconds apart.
    assert breaker.succeeded(NOW + 70) is None
    assert breaker.succeeded(NOW + 74.9) is None
    assert breaker.succeeded(NOW + 75) == pytest.approx(70)
    assert breaker.succeeded(NOW + 80) is None
    assert [fail_again(breaker, NOW + 90) for _ in range(4)] == [False, False, False, True]
    assert breaker.succeeded(NOW + 91) == pytest.approx(1)


def test_the_end_of_a_busy_outage_can_be_reported_at_once() -> None:
    breaker = make()
    assert sum(fail_again(breaker, NOW, busy=True) for _ in range(4)) == 1
    assert breaker.report_end() is None
    assert breaker.succeeded(NOW + 3) is None
    assert breaker.report_end() == pytest.approx(3)
    assert breaker.report_end() is None


def lines(breaker: CircuitBreaker, *requests: tuple[float, str]) -> list[float | str]:
    """The lines of the log after requests that are ``"well"``, ``"busy"`` or ``"away"``: the
    seconds that an outage took, or ``"outage"`` for its beginning."""
    logged: list[float | str] = []
    for now, outcome in requests:
        took = breaker.report_end(now) if outcome != "well" else breaker.succeeded(now)
        if took is not None:
            logged.append(round(took, 3))
        if outcome != "well" and fail_again(breaker, now, busy=outcome == "busy"):
            logged.append("outage")
    return logged


def each(times: Iterable[float], outcome: str) -> list[tuple[float, str]]:
    return [(now, outcome) for now in times]


def test_an_outage_long_after_the_only_success_of_a_busy_one_is_another() -> None:
    busy, away = each(range(4), "busy"), each(range(3_600, 3_610), "away")
    logged = lines(make(), *busy, (4, "well"), *away, (3_700, "well"))
    assert logged == ["outage", 4, "outage", 100]


def test_a_failure_soon_after_a_success_of_a_busy_api_is_the_same_outage() -> None:
    busy, away = each(range(4), "busy"), each(range(6, 20), "away")
    last = [(20, "well"), (24.9, "well"), (25, "well")]
    assert lines(make(), *busy, (4, "well"), *away, *last) == ["outage", 20]


def test_one_failure_long_after_a_busy_outage_is_its_end_and_no_outage() -> None:
    first = each(range(4), "busy")
    logged = lines(make(), *first, (4, "well"), (9, "busy"), (10, "well"), (60, "well"))
    assert logged == ["outage", 4]


def test_a_busy_failure_before_an_outage_does_not_delay_its_end() -> None:
    breaker = make()
    assert lines(breaker, (0, "busy"), (0.1, "well")) == []
    assert lines(breaker, *each(range(3, 13), "away"), (13, "well")) == ["outage", 10]


@given(st.lists(st.tuples(st.floats(0.01, 20), st.sampled_from(["well", "busy", "away"]))))
def test_no_line_is_missing_or_merges_outages_with_well_seconds_between(
    steps: list[tuple[float, str]],
) -> None:
    breaker, now, logged, well_since = make(), 0.0, list[float | str](), None
    for seconds, outcome in steps:
        now += seconds
        was_over = well_since is not None and now - well_since >= 5
        reported = logged.count("outage") > len(logged) / 2
        new = lines(breaker, (now, outcome))
        if was_over and reported:
            assert isinstance(new[0], float)
        logged += new
        if outcome == "well":
            well_since = now if well_since is None else well_since
            assert not breaker.is_outage
        else:
            well_since = None
            # An outage is reported while it lasts.
            assert breaker.is_outage <= (logged.count("outage") > len(logged) / 2)
    assert all((line == "outage") == (at % 2 == 0) for at, line in enumerate(logged))


def test_since_is_when_the_first_failure_was_and_ends_with_a_success() -> None:
    breaker = make()
    before = datetime.now(UTC)
    fail_again(breaker, NOW)
    since = breaker.since
    assert since is not None
    assert before <= since <= datetime.now(UTC)
    fail_again(breaker, NOW + 1)
    breaker.drain(NOW + 1, NOW + 9)
    assert breaker.since is since
    breaker.succeeded(NOW + 2)
    assert breaker.since is None


# Callers that gave up waiting


def test_a_caller_that_waited_long_without_an_answer_is_news_once() -> None:
    breaker = make()
    assert breaker.unanswered(NOW, 10.0)
    assert breaker.since is not None
    assert not breaker.unanswered(NOW, 10.0)
    assert breaker.succeeded(NOW + 1) == pytest.approx(11)


@pytest.mark.parametrize("waited", [0.1, 10.0])
def test_many_callers_that_give_up_together_do_not_lengthen_the_waits(waited: float) -> None:
    breaker = make()
    news = [breaker.unanswered(NOW, waited) for _ in range(250)]
    assert news.count(True) == 1
    assert breaker.failures <= 4
    assert breaker.wait(NOW) <= 1


def test_a_caller_that_gives_up_lets_no_second_request_go() -> None:
    breaker = fail_often(2)
    probe = breaker.begin()
    breaker.unanswered(NOW, 10.0)
    assert breaker.wait(NOW + 100) == math.inf
    breaker.end(probe)


@pytest.mark.virtual_time
async def test_after_250_runs_that_timed_out_at_once_delivery_goes_on_when_the_api_does() -> None:
    async with open_faulty_api() as api:
        api.hanging = True
        options = {"registration_timeout": 5.0, "drain_timeout": 5.0}
        async with open_prefactor(make_config(**options), asgi_app=api) as client:
            async with anyio.create_task_group() as tasks:
                for _ in range(250):
                    tasks.start_soon(_register, client)
            api.hanging = False
            before = anyio.current_time()
            with anyio.fail_after(600):
                await client.flush()
            # The request that hung ends by its own time-out, of 30 s; then the waits are short.
            assert anyio.current_time() - before <= 35
    assert client.statistics().lost == 0


async def _register(client: PrefactorCoreClient) -> None:
    await client.create_agent_instance(**AGENT)


# Whatever happens

EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("begin")),
        # Which of the requests on their way fails, or succeeds; the wait that it is asked for.
        st.tuples(st.just("fail"), st.integers(0, 3), st.none() | st.floats(0, 1_000)),
        st.tuples(st.just("succeed"), st.integers(0, 3)),
        st.tuples(st.just("give up"), st.floats(0, 20)),
        st.tuples(st.just("pass"), st.floats(0, 100)),
    ),
    max_size=40,
)


@given(EVENTS)
def test_whatever_happens_waits_are_kept_and_bounded_and_outages_reported_in_turn(
    events: list[tuple[object, ...]],
) -> None:
    breaker, now, reported = make(), NOW, False
    asked_until = longest = -math.inf
    # The requests on their way: in which round they were sent, and whether as the only one.
    sent: list[tuple[int, bool]] = []
    for event in events:
        news, took, succeeded = False, None, False
        match event:
            case ("begin",):
                if breaker.wait(now) <= 0:
                    limited = breaker.is_open
                    # One at a time, besides those from before the breaker.
                    assert not limited or not any(only for _, only in sent)
                    sent.append((breaker.begin(), limited))
            case ("fail", int() as place, float() | None as asked) if sent:
                round, _ = sent.pop(place % len(sent))
                news = breaker.failed(round, now, asked)
                breaker.end(round)
                if asked is not None:
                    asked_until = max(asked_until, now + asked)
                longest = now + 1.25 * CAP
            case ("succeed", int() as place) if sent:
                round, _ = sent.pop(place % len(sent))
                took, succeeded = breaker.succeeded(now), True
                breaker.end(round)
                sent = [(round, False) for round, _ in sent]
            case ("give up", float() as waited):
                news = breaker.unanswered(now, waited)
                longest = now + 1.25 * CAP
            case ("pass", float() as seconds):
                now += seconds
            case _:
                pass
        assert not (news and reported)
        assert (took is not None) == (reported and succeeded)
        assert took is None or took >= 0
        reported = (reported or news) and not succeeded
        wait = breaker.wait(now)
        assert wait >= asked_until - now - 1e-9
        if not (breaker.is_open and any(only for _, only in sent)):
            assert wait <= max(asked_until, longest) - now + 1e-9


def test_any_wait_is_cut_to_what_the_drain_has_left() -> None:
    for failures, asked in product((1, 2, 10), (None, 3_600.0)):
        breaker = make(base=600.0)
        breaker.drain(NOW, NOW + 8)
        for _ in range(failures):
            fail_again(breaker, asked=asked)
        assert breaker.wait(NOW) < 8
