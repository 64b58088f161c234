"""What an agent runs on: its SDK, the system, the interpreter. Pure, but for looking there."""

from __future__ import annotations

import sys
from functools import cache
from typing import Final

from prefactor_core.config._version import __version__

SDK: Final = f"prefactor-core@{__version__}"
"""How this package names itself to the API (API.md section 1)."""


def build_runtime_environment(sdk_header_entry: str | None = None) -> dict[str, object]:
    """What a run is registered with as ``runtime_environment`` of its agent's version.

    ``agent_sdk``: the packages of ``sdk_header_entry`` (``package@version``, divided by blanks);
    empty without one. ``os``: ``linux``, say. ``prefactor_sdk``: this package. ``runtime``:
    ``cpython@3.11``, say.
    """
    return {
        "agent_sdk": (sdk_header_entry or "").split(),
        "os": _os(),
        "prefactor_sdk": [SDK],
        "runtime": f"{sys.implementation.name}@{sys.version_info.major}.{sys.version_info.minor}",
    }


@cache
def _os() -> str:
    import platform  # here: it takes milliseconds to import, and only a run needs it

    return platform.system().lower()
