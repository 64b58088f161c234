"""Heartbeat: the death of an idle process has a time."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
from support.journal_writing import Writing

from prefactor_core.journal.format import Kind
from prefactor_core.journal.heartbeat import Heartbeat


@pytest.mark.virtual_time
async def test_a_process_notes_every_thirty_seconds_that_it_lives(tmp_path: Path) -> None:
    writing = Writing(tmp_path)
    heartbeat = Heartbeat(writing.journal)

    def beats() -> int:
        return len([kind for _, kind, _ in writing.records() if kind == Kind.BEAT])

    before = beats()
    with anyio.fail_after(200):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(heartbeat.serve)
            await anyio.sleep(29)
            assert beats() == before
            await anyio.sleep(92)
            assert beats() == before + 4
            heartbeat.close()
    assert beats() == before + 4


async def test_a_file_that_somebody_deletes_is_missed_by_an_idle_process_too(
    tmp_path: Path,
) -> None:
    writing = Writing(tmp_path)
    writing.files[0].unlink()
    writing.journal.beat()
    assert writing.journal.is_resting
