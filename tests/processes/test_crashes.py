"""A killed agent is complete after a restart: each operation once, and nothing open."""

from __future__ import annotations

import tempfile
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from msgspec.structs import replace
from support.crash_check import play
from support.crash_processes import Processes, processes
from support.crash_scripts import (
    CRASHES,
    NESTED,
    PROVISIONAL,
    REFUSED,
    TWO_RUNS,
    Crash,
    Kill,
    Life,
)
from support.examples import examples


@pytest.fixture(scope="module")
def forked() -> Generator[Processes]:
    with processes() as started:
        yield started
