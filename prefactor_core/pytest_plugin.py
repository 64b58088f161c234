"""The pytest plugin: the fixture ``prefactor``. Loaded by pytest wherever this is installed."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from prefactor_core.testing import Recording


@pytest.fixture
def prefactor() -> Generator[Recording]:
    """A :class:`~prefactor_core.testing.Recording` of its own for each test."""
    # Here and not above: tests that do not use it need neither the extra nor the time.
    from prefactor_core.testing import open_recording

    with open_recording() as recording:
        yield recording
