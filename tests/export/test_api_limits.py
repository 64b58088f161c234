"""ApiLimits: what the API does not do, as it has shown; each is tried again, and is seen."""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import pairwise
from typing import Final

import pytest

from prefactor_core.export.api_limits import ApiLimits
from prefactor_core.export.counters import Counters
from prefactor_core.operations import OperationType

NOW: Final = 1_000.0
MOST: Final = 1_000_000
CREATE: Final = OperationType.CREATE_SPAN
QUALITY: Final = OperationType.RECORD_QUALITY


class Limits(ApiLimits):
    """Limits with the counters that shows them."""

    def __init__(self) -> None:
        self.counters = Counters()
        super().__init__(self.counters, MOST)

    @property
    def assumed(self) -> tuple[str, ...]:
        return self.counters.statistics().assumed


def test_an_api_that_has_shown_nothing_does_everything() -> None:
    limits = Limits()
    assert set(limits.alone(NOW)) == set()
    assert limits.max_bytes(NOW) == MOST
    assert limits.gives_ids(NOW)
    assert limits.takes_environment(NOW)
    assert not limits.took_given_id
    assert limits.assumed == ()


# Each of them


def no_bulk(limits: ApiLimits, now: float) -> None:
    limits.lacks_bulk(now, "404")


def no_bulk_for_quality(limits: ApiLimits, now: float) -> None:
    limits.accepted_only_alone(QUALITY, now)
    limits.accepted_only_alone(QUALITY, now)


def no_given_ids(limits: ApiLimits, now: float) -> None:
    limits.makes_ids(now)


def no_environment(limits: ApiLimits, now: float) -> None:
    limits.refuses_environment(now)


Shows = Callable[[ApiLimits, float], None]
Holds = Callable[[ApiLimits, float], bool]

GUESSES: list[tuple[str, Shows, Holds]] = [
    ("no bulk", no_bulk, lambda limits, now: set(limits.alone(now)) == set(OperationType)),
    (
        "no bulk for RECORD_QUALITY",
        no_bulk_for_quality,
        lambda limits, now: set(limits.alone(now)) == {QUALITY},
    ),
    ("ids made by the API", no_given_ids, lambda limits, now: not limits.gives_ids(now)),
    (
        "no runtime_environment",
        no_environment,
        lambda limits, now: not limits.takes_environment(now),
    ),
]

each_guess = pytest.mark.parametrize(
    ("name", "shows", "holds"), GUESSES, ids=[name.replace(" ", "-") for name, *_ in GUESSES]
)


@each_guess
def test_what_the_api_has_shown_is_believed_seen_and_tried_again_later_and_later(
    name: str, shows: Shows, holds: Holds
) -> None:
    limits, now = Limits(), NOW
    assert not holds(limits, now)
    for pause in (5, 10, 20):
        shows(limits, now)
        assert limits.assumed == (name,)
        assert holds(limits, now + pause - 0.1)
        assert not holds(limits, now + pause)
        assert limits.assumed == (name,)  # until the API has shown the opposite
        now += pause


@each_guess
def test_what_the_api_has_shown_is_never_believed_for_more_than_an_hour(
    name: str, shows: Shows, holds: Holds
) -> None:
    limits, now = Limits(), NOW
    for _ in range(30):
        shows(limits, now)
        now += 3_600
        assert not holds(limits, now)


def test_bulk_that_works_after_all_is_used_again() -> None:
    limits = Limits()
    limits.lacks_bulk(NOW, "404")
    limits.accepted_in_bulk(CREATE, 1)
    assert (set(limits.alone(NOW)), limits.assumed) == (set(), ())


def test_ids_that_are_accepted_after_all_are_given_again() -> None:
    limits = Limits()
    limits.makes_ids(NOW)
    limits.takes_ids()
    assert (limits.gives_ids(NOW), limits.took_given_id, limits.assumed) == (True, True, ())


def test_each_is_said_once_until_it_has_changed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    limits = Limits()
    for at in (0, 5, 15):
        limits.lacks_bulk(NOW + at, "answered 404")
        limits.makes_ids(NOW + at)
    bulk, ids = caplog.records
    assert "one by one" in bulk.getMessage()
    assert "answered 404" in bulk.getMessage()
    assert "makes the ids" in ids.getMessage()
    limits.accepted_in_bulk(CREATE, 2)
    limits.takes_ids()
    limits.lacks_bulk(NOW, "answered 501")
    limits.makes_ids(NOW)
    assert len(caplog.records) == 4


# Bulk that fails


def test_bulk_that_fails_five_times_while_single_calls_go_through_is_not_used() -> None:
    limits = Limits()
    for _ in range(4):
        limits.bulk_failed(NOW)
    assert set(limits.alone(NOW)) == set()
    limits.bulk_failed(NOW)
    assert set(limits.alone(NOW)) == set(OperationType)
    assert limits.assumed == ("no bulk",)


def test_bulk_that_accepts_several_operations_in_between_works() -> None:
    limits = Limits()
    for _ in range(5):
        for _ in range(4):
            limits.bulk_failed(NOW)
        limits.accepted_in_bulk(CREATE, 2)
    assert set(limits.alone(NOW)) == set()


def test_bulk_that_accepts_one_operation_only_may_still_fail_as_a_whole() -> None:
    limits = Limits()
    for _ in range(5):
        limits.bulk_failed(NOW)
        limits.accepted_in_bulk(CREATE, 1)
    limits.bulk_failed(NOW)
    assert set(limits.alone(NOW)) == set(OperationType)


def test_a_type_is_accepted_only_alone_after_two_times() -> None:
    limits = Limits()
    limits.accepted_only_alone(QUALITY, NOW)
    assert (set(limits.alone(NOW)), limits.assumed) == (set(), ())
    limits.accepted_only_alone(CREATE, NOW)
    assert set(limits.alone(NOW)) == set()  # each type counts apart
    limits.accepted_only_alone(QUALITY, NOW)
    assert set(limits.alone(NOW)) == {QUALITY}


def test_a_type_that_bulk_has_accepted_once_is_known_to_bulk() -> None:
    limits = Limits()
    limits.accepted_in_bulk(QUALITY, 3)
    no_bulk_for_quality(limits, NOW)
    assert (set(limits.alone(NOW)), limits.assumed) == (set(), ())
    limits = Limits()
    no_bulk_for_quality(limits, NOW)
    limits.accepted_in_bulk(QUALITY, 1)
    assert (set(limits.alone(NOW)), limits.assumed) == (set(), ())


# Size


def test_a_request_that_was_too_large_is_made_half_as_large() -> None:
    limits = Limits()
    limits.too_large(600_000, NOW)
    assert limits.max_bytes(NOW) == 300_000
    assert limits.assumed == ("smaller requests",)
    # Others that were on their way are larger still, and say nothing new.
    limits.too_large(500_000, NOW)
    assert limits.max_bytes(NOW) == 300_000
    limits.too_large(300_000, NOW)
    assert limits.max_bytes(NOW) == 150_000


def test_after_a_while_a_request_of_full_size_shows_whether_it_is_too_large_still() -> None:
    limits = Limits()
    limits.too_large(400_000, NOW)
    assert limits.max_bytes(NOW + 4.9) == 200_000
    assert limits.max_bytes(NOW + 5) == MOST
    assert limits.assumed == ("smaller requests",)
    limits.too_large(MOST, NOW + 5)
    assert limits.max_bytes(NOW + 14.9) == 200_000  # which is known to be small enough
    assert limits.max_bytes(NOW + 15) == MOST
    limits.accepted_size(150_000)  # says nothing
    assert limits.assumed == ("smaller requests",)
    limits.accepted_size(MOST)
    assert limits.assumed == ()
    assert limits.max_bytes(NOW + 16) == MOST


def test_a_moment_in_which_every_request_was_too_large_is_over_within_half_a_minute() -> None:
    # As a gateway says it that is being set up, in the form of the API.
    limits, now = Limits(), NOW
    for _ in range(20):
        limits.too_large(limits.max_bytes(now), now)
        now += 0.1
    assert limits.max_bytes(now) == 1
    while limits.max_bytes(now) < MOST:
        now += 0.1
    assert now - NOW < 30


def test_a_size_that_is_too_large_again_is_tried_less_and_less_often() -> None:
    limits, now, tries = Limits(), NOW, list[float]()
    limits.too_large(400_000, now)
    for _ in range(6):
        while limits.max_bytes(now) == 200_000:
            now += 1
        tries.append(now - NOW)
        limits.too_large(400_000, now)
    pauses = [later - earlier for earlier, later in pairwise(tries)]
    assert all(shorter < longer for shorter, longer in pairwise(pauses))


def test_the_size_comes_back_within_an_hour_each_time() -> None:
    limits, now = Limits(), NOW
    for _ in range(15):
        limits.too_large(MOST, now)
        assert limits.max_bytes(now + 4.9) == MOST // 2
        now += 3_600
        assert limits.max_bytes(now) == MOST
        limits.accepted_size(MOST)
        assert limits.assumed == ()


def test_no_request_is_so_small_that_nothing_fits() -> None:
    limits = Limits()
    for _ in range(30):
        limits.too_large(1, NOW)
    assert limits.max_bytes(NOW) == 1
