"""The viewer over a file in a folder of its own."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from support.viewing import Site, viewing


@pytest.fixture
async def site(tmp_path: Path) -> AsyncGenerator[Site]:
    async with viewing(str(tmp_path / "runs.db")) as site:
        yield site
