"""A local Prefactor in memory, and its calls."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from contextlib import closing

import pytest
from support.local_api import Api, calling

from prefactor_core.local import LocalPrefactor
from prefactor_core.local.store import Store


@pytest.fixture
def store() -> Generator[Store]:
    with closing(Store(":memory:")) as store:
        yield store


@pytest.fixture
async def api(store: Store) -> AsyncGenerator[Api]:
    async with calling(LocalPrefactor(store)) as api:
        yield api
