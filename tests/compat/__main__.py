"""Install the published clients, the adapters and the frameworks of the chapters, run each, and
print a line for each.

With arguments: only those whose environments have such a word in their names, ``chapter`` for the
chapters, ``cli`` and ``dashboard`` included. Ends with 1 if any fails.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
from support.environments import last_line
from support.serving import serving_file

from compat.adapters import ADAPTERS, Adapter
from compat.calls import Line
from compat.chapters import CHAPTERS, Chapter
from compat.cli import command_lines
from compat.dashboard import dashboard_lines
from compat.instrumentations import INSTRUMENTATIONS
from compat.published import CLIENTS, Client


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

    for client in (*CLIENTS, *INSTRUMENTATIONS, *ADAPTERS, *CHAPTERS):
        if wanted(client.environment.folder.name):
            yield _line(client, url)
    if wanted("cli"):
        yield from command_lines(url)
    if wanted("dashboard"):
        yield from dashboard_lines(url)


def _line(client: Client | Adapter | Chapter, url: str) -> Line:
    name = client.environment.folder.name
    try:
        client.environment.make()
        name = client.environment.versions()
        problems = client.problems(url)
    except subprocess.CalledProcessError as error:
        problems = [last_line(error.stderr)]
    except (OSError, RuntimeError, ValueError, LookupError, httpx.HTTPError) as error:
        problems = [repr(error)]
    if client.note:
        name += f" ({client.note})"
    return Line(name, "; ".join(problems))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
