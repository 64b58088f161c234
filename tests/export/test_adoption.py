"""Adoption: what dead processes left in a folder is delivered by the next client that has it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from support.dying import dying
from support.harness import (
    AGENT,
    FaultyApi,
    make_config,
    open_faulty_api,
    stored_run,
)

from prefactor_core import PrefactorCoreClient, PrefactorValidationError, open_prefactor

pytestmark = pytest.mark.virtual_time


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "journals"


@asynccontextmanager
async def adopting(
    folder: Path, api: FaultyApi, **options: Any
) -> AsyncGenerator[PrefactorCoreClient]:
    """A client that has ``folder``; the block begins when it has had time to adopt."""
    config = make_config(journal=folder, **options)
    async with open_prefactor(config, asgi_app=api) as client:
        await anyio.sleep(5.0)
        yield client


def left(folder: Path) -> list[str]:
    """The files in the journals that nobody has, without the locks."""
    return sorted(file.name for file in folder.glob("*/*") if file.name != "lock")


async def test_a_run_that_was_refused_to_its_caller_does_not_keep_a_journal_from_its_end(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_faulty_api() as api:
        async with dying(folder, api) as client:
            instance = await client.create_agent_instance(**AGENT)
            await instance.start()
            api.faults["register"] = 422
            with pytest.raises(PrefactorValidationError):
                await client.create_agent_instance(**AGENT)
            api.faults.clear()
        caplog.clear()
        async with adopting(folder, api):
            pass
        run = await stored_run(api)
    assert run.status == "failed"
    assert left(folder) == []
    assert caplog.messages == []
