"""The runtime environment of an agent, as the API accepts it."""

from __future__ import annotations

import sys

from prefactor_core import __version__, build_runtime_environment


def test_it_has_the_packages_the_system_and_the_interpreter() -> None:
    for entry in (None, "prefactor-langchain@0.3.0", "outer@2 inner@1.0rc1"):
        environment = build_runtime_environment(entry)
        system = environment.pop("os")
        major, minor, *_ = sys.version_info
        assert environment == {
            "agent_sdk": [] if entry is None else entry.split(" "),
            "prefactor_sdk": [f"prefactor-core@{__version__}"],
            "runtime": f"{sys.implementation.name}@{major}.{minor}",
        }
        assert isinstance(system, str)
        assert system == system.lower() != ""
        if sys.platform == "linux":
            assert system == "linux"


def test_each_caller_has_one_of_its_own() -> None:
    first = build_runtime_environment("a@1")
    first.clear()
    assert build_runtime_environment("a@1")["agent_sdk"] == ["a@1"]
