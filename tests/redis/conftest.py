"""A real Redis server for each test."""

from __future__ import annotations

from collections.abc import Generator

import pytest
from support.redis_server import RedisServerProcess, redis_server


@pytest.fixture
def redis() -> Generator[RedisServerProcess]:
    """A server that is empty; it starts in some hundredths of a second."""
    with redis_server() as server:
        yield server
