"""Virtual environments beside the sources, for software that cannot share one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]

_DISTRIBUTIONS = """
import importlib.metadata, json, sys
print(json.dumps({name: importlib.metadata.version(name) for name in sys.argv[1:]}))
"""


@dataclass(frozen=True)
class Environment:
    """A virtual environment beside the sources.

    ``verb``: which verb of the justfile makes it. ``shown``: the distributions whose versions are
    shown.
    """

    verb: str
    name: str
    requirements: tuple[str, ...]
    shown: tuple[str, ...]

    @property
    def folder(self) -> Path:
        return CHECKOUT / f".venv-{self.verb}-{self.name}"

    @property
    def python(self) -> Path:
        scripts = "Scripts/python.exe" if os.name == "nt" else "bin/python"
        return self.folder / scripts

    def make(self) -> None:
        """Make the environment, unless it is there and up to date."""
        marker = self.folder / ".installed"
        if marker.exists() and marker.read_text() == "\n".join(self.requirements):
            changed = (CHECKOUT / "pyproject.toml").stat().st_mtime
            if "-e" not in self.requirements or marker.stat().st_mtime > changed:
                return
        if not self.python.exists():
            venv.create(self.folder, with_pip=True)
        install = ["-m", "pip", "install", "-q", "--disable-pip-version-check"]
        try:
            self.run([*install, *self.requirements], timeout=600, cwd=CHECKOUT)
        except subprocess.CalledProcessError as error:
            raise RuntimeError(f"{self.name}: pip failed: {last_line(error.stderr)}") from None
        marker.write_text("\n".join(self.requirements))

    def versions(self) -> str:
        """The measured distributions, with their versions."""
        found = json.loads(self.run(["-c", _DISTRIBUTIONS, *self.shown], timeout=60))
        return ", ".join(f"{name} {version}" for name, version in found.items())

    def run(self, arguments: Sequence[str], *, timeout: float, cwd: Path | None = None) -> str:
        """Run this environment's Python and return its output.

        Raises ``subprocess.CalledProcessError`` and ``subprocess.TimeoutExpired``. The working
        folder is not the checkout: Python would import the package from there.
        """
        return self._run(arguments, timeout, cwd).stdout

    def run_script(self, script: Path, *arguments: str) -> str:
        """Run ``script`` with this environment's Python and return its output."""
        return self.run([str(script), *arguments], timeout=120)

    def output_and_errors(self, script: Path, *arguments: str) -> tuple[str, str]:
        """As :meth:`run_script`; also what it has written to stderr."""
        done = self._run([str(script), *arguments], 600, None)
        return done.stdout, done.stderr

    def _run(
        self, arguments: Sequence[str], timeout: float, cwd: Path | None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.python, *arguments],
            cwd=cwd or self.folder,
            env=_variables(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=True,
        )

    def start(self, arguments: Sequence[str]) -> subprocess.Popen[str]:
        """Start this environment's Python, with pipes to and from it."""
        return subprocess.Popen(
            [self.python, *arguments],
            cwd=self.folder,
            env=_variables(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


def _variables() -> dict[str, str]:
    """The variables that pip and drivers need: no setting of a system, no proxy, no PYTHONPATH."""
    kept = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "SYSTEMROOT", "PIP_INDEX_URL")
    return {name: value for name, value in os.environ.items() if name in kept}


def last_line(text: str | None) -> str:
    """The last line that is not blank: the message of an error."""
    lines = [line for line in (text or "").splitlines() if line.strip()]
    return lines[-1].strip() if lines else f"no output ({sys.executable})"
