"""Every chapter of ``examples/`` runs as a program, and records the tree that it shows."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import anyio
import pytest
from compat.chapters import CHAPTERS as CHAPTERS_IN_COMPAT
from support.harness import StoredRun, StoredSpan, stored_runs

from prefactor_core.local import open_local_prefactor

EXAMPLES = Path(__file__).parent.parent / "examples"
FILES = {path.name for path in EXAMPLES.glob("*.py")}
ON_TRIO, ON_ASYNCIO = "trio", ""
SECONDS = 60

# By file: its argument (without one it runs on asyncio), the agent's id, and what it prints.
CHAPTERS = {
    "quick_start.py": (
        ON_TRIO,
        "quick-start",
        r"the agent answers: Gipfel\n(\d+) of \1 operations delivered\n",
    ),
    "web_service.py": (ON_TRIO, "web-service", r"/ask: Olympus Mons\n/blocking: Olympus Mons\n"),
    "threads.py": (ON_TRIO, "threads", r"\d+ operations delivered while the client was open\n"),
    "synchronous_script.py": (ON_ASYNCIO, "script", r"5 words; delivered in time: True\n"),
    "streaming_generators.py": (ON_TRIO, "streams", r"'Olympus Mons', then \[0, 1\]\n"),
    "framework_callbacks.py": (ON_TRIO, "callbacks", r"lost operations: 0; bytes still held: 0\n"),
    "notebook.py": (
        ON_ASYNCIO,
        "notebook",
        r"LookupError: nothing there\n\d+ operations delivered\n",
    ),
    "typed_steps.py": (
        ON_TRIO,
        "typed-steps",
        r"refused: .*agent:transfer.*\nlost operations: 0\n",
    ),
    "decorated_functions.py": (
        ON_TRIO,
        "decorated-functions",
        r"21\.9 km high\nlost operations: 0\n",
    ),
    "across_processes.py": (
        ON_TRIO,
        "across-processes",
        r"the worker has found: Olympus Mons; one trace: True\n",
    ),
    "crash_proof.py": (
        ON_TRIO,
        "crash-proof",
        r"the agent was ended by signal 9, and left 1 journal\nafter the next start 0 are left\n",
    ),
    "from_0_5_3.py": (ON_TRIO, "older-agent", r"lost operations: 0\n"),
    "stop_signals.py": (
        ON_TRIO,
        "stop-signals",
        r"job 2 puts its work back\nstopped by SIGTERM; lost operations: 0\n",
    ),
}
# What they print is what they recorded, or what they tested.
SHOWN = {
    "payloads.py": r"(?s).*\nnothing of it leaked\n",
    "test_with_pytest.py": r"(?s).*7 passed in .*",
}
ELSEWHERE = {"agent_e2e.py", "kill_switch.py", "slow_agent.py"}
"""Tested as a user runs them, in ``cli/``."""

FRAMEWORKS = {f"frameworks/{path.name}" for path in EXAMPLES.glob("frameworks/*.py")}
"""They need other packages: ``just compat`` runs them."""


def run(name: str, *arguments: str, cwd: Path, **environment: str) -> str:
    """What an example prints; it must neither fail nor warn."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PREFACTOR_")}
    result = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / name, *filter(None, arguments)],
        cwd=cwd,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, ""), result.stdout + result.stderr
    return result.stdout


def shown_outline(name: str) -> str:
    """The tree in the docstring of an example."""
    docstring = ast.get_docstring(ast.parse((EXAMPLES / name).read_text("utf-8")))
    assert docstring is not None
    shown = re.search(r" leaves this tree::\n\n((?:    .*\n?)+)", docstring)
    assert shown is not None
    return dedent(shown[1]).strip()


def outline(run: StoredRun) -> str:
    """The status of a run, and a line for each span, indented under its parent."""
    lines = [run.status]

    def add(spans: list[StoredSpan], indent: str) -> None:
        for span in spans:
            lines.append(f"{indent}{span.name} {span.status}")
            add(span.children, indent + "  ")

    add(run.roots, "")
    return "\n".join(lines)


async def stored_outlines(path: Path, agent_id: str) -> set[str]:
    async with open_local_prefactor(str(path)) as app:
        return {outline(run) for run in await stored_runs(app, agent_id)}


def test_every_example_is_tested() -> None:
    assert {*CHAPTERS, *SHOWN, *ELSEWHERE} == FILES
    assert {chapter.file for chapter in CHAPTERS_IN_COMPAT} == FRAMEWORKS | {"web_service.py"}


def test_the_readme_lists_every_chapter() -> None:
    readme = (EXAMPLES.parent / "README.md").read_text("utf-8")
    listed = set(re.findall(r"\]\(examples/([\w/]+\.py)\)", readme))
    assert listed == FILES | FRAMEWORKS


@pytest.mark.parametrize("name", [*CHAPTERS, *SHOWN])
def test_a_chapter_needs_no_environment_and_leaves_no_file(name: str, tmp_path: Path) -> None:
    printed = CHAPTERS[name][2] if name in CHAPTERS else SHOWN[name]
    said = run(name, cwd=tmp_path)
    assert re.fullmatch(printed, said), said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_records_the_tree_that_it_shows(name: str, tmp_path: Path) -> None:
    """On trio if it can; the other test has run it on asyncio."""
    backend, agent_id, printed = CHAPTERS[name]
    path = tmp_path / "runs.db"
    said = run(name, backend, cwd=tmp_path, PREFACTOR_API_URL=f"local:{path}")
    assert re.fullmatch(printed, said), said
    assert anyio.run(stored_outlines, path, agent_id) == {shown_outline(name)}
    if name == "across_processes.py":
        service, worker = anyio.run(stored_pair, path)
        the_worker_names_the_span_that_caused_its_run(service, worker)


async def stored_pair(path: Path) -> tuple[StoredRun, StoredRun]:
    async with open_local_prefactor(str(path)) as app:
        (service,) = await stored_runs(app, "across-processes")
        (worker,) = await stored_runs(app, "across-worker")
        return service, worker


def the_worker_names_the_span_that_caused_its_run(service: StoredRun, worker: StoredRun) -> None:
    assert outline(worker) == "complete\nagent:retrieval complete"
    cause = worker.named("agent:retrieval").payload["prefactor_caused_by"]
    assert (cause["run_id"], cause["span_id"]) == (service.id, service.named("agent:tool_call").id)
