"""A killed agent is complete after a restart: what it recorded is there once, and nothing is open.

A point is repeated by its name, say ``-k "trio and nested and sending"``; a failure of the fuzz by
``--hypothesis-seed``, or by the crash that it prints, in ``_crashes()``. Which task or thread goes
first may differ.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from support.crash_check import play
from support.crash_processes import Processes, processes
from support.crash_scripts import (
    LARGE,
    NESTED,
    PROVISIONAL,
    REFUSED,
    TWO_RUNS,
    Backend,
    Crash,
    Kill,
    Life,
    Run,
    Span,
    crashes,
)
from support.examples import examples

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

LIVES = {
    "nested": NESTED,
    "two runs": TWO_RUNS,
    "provisional": PROVISIONAL,
    "refused": REFUSED,
    "large": LARGE,
}
FUZZES = examples(1) > 1
BACKENDS: tuple[Backend, ...] = ("asyncio", "trio")

# In the life of an agent: before an append and after it, the form noted, sent and not answered,
# answered and not settled.
AGENT = (
    "JournalWriter.append call",
    "JournalWriter.append return",
    "JournalWriter.sending return",
    "sent",
    "JournalWriter.settled call",
)
# In that of an adopter: a point, and which time.
ADOPTER = (
    ("write before", 1),
    ("JournalReader.scan return", 1),
    ("Segments.begin call", 2),
    ("AdoptedJournal.take_over return", 1),
    ("JournalWriter.append call", 2),
    ("JournalWriter.append return", 1),
    ("JournalReader.entries_in_turns return", 2),
    ("JournalWriter.sending return", 1),
    ("sent", 1),
    ("sent", 2),
    ("JournalWriter.settled call", 1),
    ("JournalWriter.settled return", 2),
    ("unlink before", 1),
    ("Hold.remove call", 1),
    ("rmdir before", 1),
)


def _crashes() -> Iterator[object]:
    """Each point of an agent in each life, and each point of an adopter; the backends take
    turns."""
    for place, point in enumerate(AGENT):
        for number, name in enumerate(LIVES):
            crash = Crash((_dies(name, point, 3),), BACKENDS[(place + number) % 2])
            yield pytest.param(crash, id=f"{crash.backend} {name} {point}")
    for place, (point, number) in enumerate(ADOPTER):
        name = [*LIVES][place % len(LIVES)]
        adopter = Life(kill=Kill(number, point))
        crash = Crash((_dies(name, "sent", 4), adopter), BACKENDS[place % 2])
        yield pytest.param(crash, id=f"{crash.backend} {name} adopter {point} {number}")
    # A refusal is an answer: an adopter that has little time goes on.
    steps = (Span("with", kind="refused"), Span("with"), Span("with"))
    agent = Life((Run("steps", steps),), Kill(3, "JournalWriter.opened return"))
    yield pytest.param(Crash((agent,), has_bulk=False), id="refused, without bulk")


def _dies(name: str, point: str, number: int) -> Life:
    return replace(LIVES[name], kill=Kill(number, point))


@pytest.fixture(scope="module")
def forked() -> Generator[Processes]:
    with processes() as started:
        yield started


@pytest.mark.parametrize("crash", [*_crashes()])
def test_what_a_killed_agent_recorded_is_there_once(
    forked: Processes, crash: Crash, tmp_path: Path
) -> None:
    assert play(forked, tmp_path, crash) == []
    for place, life in enumerate(crash.lives):
        assert life.kill is not None
        assert (tmp_path / f"{place}.death").read_text() == life.kill.point


if FUZZES:

    @pytest.mark.parametrize("point", AGENT)
    @pytest.mark.parametrize("name", LIVES)
    @pytest.mark.parametrize("backend", BACKENDS)
    def test_what_an_agent_killed_at_any_operation_recorded_is_there_once(
        forked: Processes, backend: Backend, name: str, point: str
    ) -> None:
        for number in itertools.count(1):
            crash = Crash((_dies(name, point, number),), backend)
            with tempfile.TemporaryDirectory() as folder:
                assert play(forked, Path(folder), crash) == [], crash
                if not (Path(folder) / "0.death").exists():
                    break
        assert number > 3


# Each takes about a second.
@pytest.mark.parametrize("backend", BACKENDS)
@settings(
    max_examples=300 if FUZZES else 2,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_what_agents_killed_anywhere_recorded_is_there_once(
    forked: Processes, backend: Backend, data: st.DataObject
) -> None:
    crash = data.draw(crashes(backend))
    with tempfile.TemporaryDirectory() as folder:
        assert play(forked, Path(folder), crash) == []
