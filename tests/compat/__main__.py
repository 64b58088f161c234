"""Install the published clients, and the frameworks of the chapters; run each, and print a line.

With arguments: only the environments that have such a word in their names, ``chapter`` for all
chapters, ``cli`` and ``dashboard`` included. Ends with 1 if any fails.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import httpx
from support.environments import Environment, last_line
from support.serving import serving_file

from compat.calls import Line
from compat.chapters import CHAPTERS
from compat.cli import command_lines
from compat.dashboard import dashboard_lines
from compat.node import NodeEnvironment
from compat.published import CLIENTS


def main(words: list[str]) -> int:
    lines = []
    with tempfile.TemporaryDirectory() as folder, serving_file(Path(folder) / "runs.db") as url:
        for line in _lines(url, words):
            print(line, flush=True)
            lines.append(line)
    failed = sum(bool(line.problem) for line in lines)
    print(f"{len(lines) - failed} passed, {failed} failed")
    return int(failed > 0)


def _lines(url: str, words: list[str]) -> Iterator[Line]:
    def wanted(name: str) -> bool:
        return not words or any(word in name for word in words)

    for client in CLIENTS:
        if wanted(client.environment.folder.name):
            yield _line(client.environment, partial(client.problems, url), client.note)
    for chapter in CHAPTERS:
        if wanted(chapter.environment.folder.name):
            yield _line(chapter.environment, chapter.problems, f"examples/{chapter.file}")
    if wanted("cli"):
        yield from command_lines(url)
    if wanted("dashboard"):
        yield from dashboard_lines(url, "compat-core")


def _line(
    environment: Environment | NodeEnvironment, run: Callable[[], list[str]], note: str
) -> Line:
    name = environment.folder.name
    try:
        environment.make()
        name = environment.versions()
        problems = run()
    except subprocess.CalledProcessError as error:
        problems = [last_line(error.stderr)]
    except (OSError, RuntimeError, ValueError, LookupError, httpx.HTTPError) as error:
        problems = [repr(error)]
    if note:
        name += f" ({note})"
    return Line(name, "; ".join(problems))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
