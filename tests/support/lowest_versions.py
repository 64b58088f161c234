"""Prints the lowest version of each run-time dependency, as pip takes it."""

from __future__ import annotations

import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text("utf-8"))["project"]
print(*(dependency.replace(" >=", "==") for dependency in project["dependencies"]))  # noqa: T201
