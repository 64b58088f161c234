"""The pytest plugin: the fixture ``prefactor``. pytest loads it wherever this is installed."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

import pytest

from prefactor_core.config.lazy_module import LazyModule

if TYPE_CHECKING:
    from prefactor_core import testing
else:
    testing = LazyModule("prefactor_core.testing")


@pytest.fixture
def prefactor() -> Generator[testing.Recording]:
    """A :class:`~prefactor_core.testing.Recording` of its own for each test."""
    # Imported here: tests without this fixture need neither the extra nor the time to import it.
    from prefactor_core.testing import open_recording

    with open_recording() as recording:
        yield recording
