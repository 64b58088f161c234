"""The progress and the metrics of a relay."""

from __future__ import annotations

import io
import logging
import re
from contextlib import redirect_stderr
from datetime import UTC, datetime

import pytest
from msgspec.structs import replace
from support.cases import for_each

from prefactor_core.cli.relay_progress import progress, progress_text
from prefactor_core.cli.relay_tables import age_text
from prefactor_core.relay.metrics import metrics
from prefactor_core.relay.monitor import Moment
from prefactor_core.relay.relay import RelayStatistics
from prefactor_core.relay.status import ShardStatus

STATISTICS = RelayStatistics(
    name='relay "one"',
    shards=[1, 3],
    delivered=12_000,
    refused=0,
    pending=7,
    requests=60,
    retries=2,
    terminated=1,
    buried=0,
    outage_since=None,
    redis_outage_since=None,
    last_error=None,
)
SHARDS = [
    ShardStatus(shard=1, owner="one", waiting=4, pending=1, age=2.5),
    ShardStatus(shard=2, owner="two", waiting=9, pending=9, age=3.5),
    ShardStatus(shard=3, owner="one", waiting=0, pending=0, age=None),
]
MOMENT = Moment(at=10.0, statistics=STATISTICS, shards=SHARDS, outage=0.0)
NOW = datetime.now(UTC)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def later(seconds: float, **changes: object) -> Moment:
    return replace(MOMENT, at=10.0 + seconds, statistics=replace(STATISTICS, **changes))


def test_one_line_says_how_it_goes() -> None:
    assert progress_text(MOMENT, None) == "delivered 12,000, lag 3.5 s, 2 shards"
    text = progress_text(later(2.0, delivered=13_000, refused=1, shards=[1]), MOMENT)
    assert text == "delivered 13,000 (500/s), lag 3.5 s, 1 shard, 1 refused"


def test_outages_are_in_it_and_nothing_of_an_error_but_its_line() -> None:
    away = replace(later(1, outage_since=NOW, last_error="503\n\x1b[2J"), outage=75.0)
    assert progress_text(away, None).endswith("2 shards, no answer from the API for 75 s: 503 �[2J")
    gone = replace(later(1, redis_outage_since=NOW), shards=None)
    assert (
        progress_text(gone, None) == "delivered 12,000, no answer from the Redis server, 2 shards"
    )


def test_a_log_has_the_first_moment_changes_and_one_line_in_30_seconds() -> None:
    with redirect_stderr(io.StringIO()) as said, progress() as shown:
        for second in range(70):
            shown.show(later(second, shards=[1, 3] if second < 40 else [1]))
        shown.end(later(71, delivered=12_100))
    lines = said.getvalue().splitlines()
    assert [re.sub(r"^[\d-]+ [\d:,]+ INFO ", "", line) for line in lines] == [
        "delivered 12,000, lag 3.5 s, 2 shards",
        "delivered 12,000 (0/s), lag 3.5 s, 2 shards",
        "delivered 12,000 (0/s), lag 3.5 s, 1 shard",
        "stopped: delivered 12,100, lag 3.5 s, 2 shards",
    ]


def test_a_relay_that_has_nothing_to_do_says_so_once() -> None:
    idle = replace(MOMENT, shards=[replace(shard, age=None) for shard in SHARDS])
    with redirect_stderr(io.StringIO()) as said, progress() as shown:
        for second in range(200):
            shown.show(replace(idle, at=10.0 + second))
    assert len(said.getvalue().splitlines()) == 1


def test_a_terminal_has_one_line_which_other_lines_do_not_meet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    with redirect_stderr(Terminal()) as said, progress() as shown:
        shown.show(MOMENT)
        logging.getLogger("prefactor_core.relay").warning("an outage")
        logging.getLogger("httpx").info("a request")
        shown.show(later(1))
    assert re.fullmatch(
        r"\rdelivered 12,000, lag 3\.5 s, \r {29}\r[\d-]+ [\d:,]+ WARNING an outage\n"
        r"\rdelivered 12,000 \(0/s\), lag 3",
        said.getvalue(),
    )


def test_nothing_of_the_log_stays_set_up() -> None:
    package = logging.getLogger("prefactor_core")
    before = package.level, list(logging.root.handlers)
    with redirect_stderr(io.StringIO()), progress():
        assert (package.level, list(logging.root.handlers)) != before
    assert (package.level, list(logging.root.handlers)) == before


def test_the_metrics_are_those_of_the_relay_and_of_the_shards_that_it_holds() -> None:
    lines = metrics(MOMENT).splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert {name.removeprefix("prefactor_relay_"): value for name, value in values.items()} == {
        'info{name="relay \\"one\\""}': "1",
        "delivered_operations_total": "12000",
        "refused_operations_total": "0",
        "requests_total": "60",
        "retries_total": "2",
        "buried_runs_total": "0",
        "terminated_runs_total": "1",
        "pending_operations": "7",
        "shards": "2",
        "outage_seconds": "0",
        "redis_up": "1",
        'waiting_entries{shard="1"}': "4",
        'waiting_entries{shard="3"}': "0",
        'pending_entries{shard="1"}': "1",
        'pending_entries{shard="3"}': "0",
        'oldest_entry_seconds{shard="1"}': "2.5",
        'oldest_entry_seconds{shard="3"}': "0",
    }
    for name in {re.split(r"[ {]", line)[0] for line in lines if not line.startswith("#")}:
        assert len([line for line in lines if line.startswith(f"# TYPE {name} ")]) == 1
        assert len([line for line in lines if line.startswith(f"# HELP {name} ")]) == 1


def test_the_metrics_go_on_in_outages() -> None:
    away = replace(later(1, outage_since=NOW, redis_outage_since=NOW), shards=None, outage=1.5)
    text = metrics(away)
    assert "\nprefactor_relay_outage_seconds 1.5\n" in text
    assert "\nprefactor_relay_redis_up 0\n" in text
    assert "\nprefactor_relay_delivered_operations_total 12000\n" in text
    assert "waiting_entries{" not in text


@for_each(
    "seconds, text",
    [
        (None, ""),
        (-1.0, "0.0 s"),
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (119, "119 s"),
        (120, "2 min"),
        (7199, "120 min"),
        (7200, "2 h"),
        (200_000, "2 d"),
    ],
)
def test_an_age_has_one_unit(seconds: float | None, text: str) -> None:
    assert age_text(seconds) == text
