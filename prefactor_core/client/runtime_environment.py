"""The runtime environment of an agent: its SDKs, the system, the interpreter."""

from __future__ import annotations

import sys
from functools import cache
from typing import Final

from prefactor_core.config._version import __version__

SDK: Final = f"prefactor-core@{__version__}"
"""The name of this package in the SDK header of every request."""


def build_runtime_environment(sdk_header_entry: str | None = None) -> dict[str, object]:
    """The ``runtime_environment`` that a run adds to its agent's version, at its registration.

    ``agent_sdk``: the packages of ``sdk_header_entry`` (``package@version``, separated by blanks),
    or none. ``os``: ``linux``, for example. ``prefactor_sdk``: this package. ``runtime``: the
    interpreter, such as ``cpython@3.11``.
    """
    return {
        "agent_sdk": (sdk_header_entry or "").split(),
        "os": _os(),
        "prefactor_sdk": [SDK],
        "runtime": f"{sys.implementation.name}@{sys.version_info.major}.{sys.version_info.minor}",
    }


@cache
def _os() -> str:
    import platform  # imported here: it takes milliseconds, and only a run needs it

    return platform.system().lower()
