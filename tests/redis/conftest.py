"""A real Redis server and an API on loopback for each test."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest
from support.redis_server import RedisServerProcess, redis_server
from support.relayed import ServedApi, served_api


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--minute", action="store_true", help="disturb the relays of the command for a minute"
    )
    parser.addoption("--seed", type=int, help="which relays to disturb, and how")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without ``--minute``, leave out what takes one."""
    if config.getoption("--minute"):
        return
    left_out = [item for item in items if item.get_closest_marker("minute") is not None]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in set(left_out)]


@pytest.fixture
def redis() -> Generator[RedisServerProcess]:
    """A server that is empty; it starts in some hundredths of a second."""
    with redis_server() as server:
        yield server


@pytest.fixture
def api(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Generator[ServedApi]:
    """The local Prefactor behind a port; its log must stay empty."""
    with served_api(tmp_path / "prefactor.db") as served:
        yield served
    said = [record for record in caplog.records if record.name.startswith("prefactor_core.local")]
    assert said == []
