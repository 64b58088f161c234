"""Backends: every async test runs on asyncio and trio; with ``--uvloop``, on uvloop."""

from __future__ import annotations

import gc
import os
from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import settings

# Else the first client to open imports these in a thread: no test on virtual time may wait for it.
import prefactor_core.client.default_types
import prefactor_core.client.scope  # noqa: F401

pytest_plugins = ["pytester"]

# A developer's own journals are no matter of a test.
os.environ.pop("PREFACTOR_JOURNAL", None)

# Continuous integration and developers see the same examples, and no machine's speed counts. Few:
# the same examples each time find nothing new.
settings.register_profile("prefactor", deadline=None, derandomize=True, max_examples=20)
# For looking for more, with other examples each time: just fuzz.
settings.register_profile("fuzz", deadline=None, derandomize=False, max_examples=1250)
# For looking whether it works at all, with other versions of what it needs: just test-lowest.
settings.register_profile("few", deadline=None, derandomize=True, max_examples=15)
settings.load_profile("prefactor")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--uvloop", action="store_true", help="run async tests on uvloop")
    parser.addoption(
        "--served-by",
        choices=["hypercorn", "uvicorn"],
        help="let the requests of tests/local to its apps go through a server",
    )


def pytest_configure(config: pytest.Config) -> None:
    if server := config.getoption("--served-by"):
        from support import transport

        transport.served_by = server


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "anyio_backend" in metafunc.fixturenames:
        uvloop = metafunc.config.getoption("--uvloop")
        backends = ["uvloop"] if uvloop else ["asyncio", "trio"]
        metafunc.parametrize("anyio_backend", backends, indirect=True)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep the modules and the items of the tests, which stay to the end, out of every garbage
    collection: there are 400,000 objects, and many tests collect, or look at all objects."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With an option, run only what it concerns: virtual time has a loop of its own."""
    if config.getoption("--uvloop"):
        selected = [item for item in items if _runs_on_a_loop(item)]
    elif config.getoption("--served-by"):
        selected = [item for item in items if item.get_closest_marker("in_process") is None]
    else:
        return
    selected = [item for item in selected if item.get_closest_marker("virtual_time") is None]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(selected)])
    items[:] = selected


def _runs_on_a_loop(item: pytest.Item) -> bool:
    return "anyio_backend" in getattr(item, "fixturenames", ())


@pytest.fixture
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """The backend's name and options; on virtual time for tests marked ``virtual_time``."""
    if request.node.get_closest_marker("virtual_time") is None:
        if request.param == "uvloop":
            return "asyncio", {"use_uvloop": True}
        return request.param, {}
    from support.virtual_time import virtual_time

    backend = "trio" if request.param == "trio" else "asyncio"
    return backend, virtual_time(backend)
