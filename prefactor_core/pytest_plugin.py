"""The pytest plugin: the fixture ``prefactor``, and what it recorded in the report of a failure.

pytest loads it wherever this package is installed.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the recorded runs with the failure of a test that uses the fixture."""
    report = yield
    recording: Any = getattr(item, "funcargs", {}).get("prefactor")
    # Another plugin may have a fixture of this name.
    if report.when == "call" and report.failed and type(recording).__module__ == testing.__name__:
        report.sections.append(("prefactor", recording.outline))
    return report
