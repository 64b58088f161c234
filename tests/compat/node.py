"""Folders with packages from npm, beside the sources."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from support.environments import CHECKOUT, last_line


@dataclass(frozen=True)
class NodeEnvironment:
    """A folder with npm packages. ``shown``: the packages whose versions are shown."""

    name: str
    requirements: tuple[str, ...]
    shown: tuple[str, ...]

    @property
    def folder(self) -> Path:
        return CHECKOUT / f".venv-compat-npm-{self.name}"

    def make(self) -> None:
        """Install the packages, unless they are there: ``latest`` is looked up each time."""
        marker = self.folder / ".installed"
        wanted = "\n".join(self.requirements)
        if marker.exists() and marker.read_text() == wanted and "@latest" not in wanted:
            return
        if shutil.which("npm") is None:
            raise RuntimeError("npm is not installed: apt-get install npm")
        self.folder.mkdir(exist_ok=True)
        (self.folder / "package.json").write_text('{"type": "module", "private": true}\n')
        # Node 20 is what Debian has; the packages ask for 22 and run on it.
        options = ("--no-audit", "--no-fund", "--ignore-scripts", "--engine-strict=false")
        try:
            self._run("npm", "install", *options, *self.requirements, timeout=300)
        except subprocess.CalledProcessError as error:
            raise RuntimeError(f"{self.name}: npm failed: {last_line(error.stderr)}") from None
        marker.write_text(wanted)

    def versions(self) -> str:
        """The packages shown, with their versions."""
        manifests = {
            name: self.folder / "node_modules" / name / "package.json" for name in self.shown
        }
        return ", ".join(
            f"{name} {json.loads(path.read_text())['version']}" for name, path in manifests.items()
        )

    def run_script(self, script: Path, *arguments: str) -> str:
        """Run ``script`` on Node and return its output. Node looks for packages beside it: it is
        copied."""
        here = self.folder / script.name
        shutil.copyfile(script, here)
        return self._run("node", str(here), *arguments, timeout=120)

    def _run(self, *command: str, timeout: float) -> str:
        return subprocess.run(
            command,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=True,
        ).stdout
