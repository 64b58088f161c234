"""The command line, as a user runs it: in a process, its output and errors read from pipes.

``run_here()`` needs no process, and a hundredth of the time.
"""

from __future__ import annotations

import io
import logging
import os
import re
import subprocess
import sys
from collections.abc import Generator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path

import pytest

from prefactor_core.cli.main import main

REPOSITORY = Path(__file__).parents[2]


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PREFACTOR_")}
    return subprocess.run(
        [sys.executable, "-W", "error", *command],
        cwd=cwd,
        env={**inherited, **environment, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def run_here(
    *command: str | Path, cwd: Path, encoding: str = "utf-8", typed: str = "", **environment: str
) -> tuple[int, str, str]:
    """The exit code, output and errors of a command that runs in this process.

    ``typed``: the answer to its question.
    """
    output, errors = io.BytesIO(), io.BytesIO()
    with (
        io.TextIOWrapper(output, encoding, write_through=True) as stdout,
        io.TextIOWrapper(errors, encoding, "backslashreplace", write_through=True) as stderr,
        redirect_stdout(stdout),
        redirect_stderr(stderr),
        chdir(cwd),
        _surroundings(typed, environment),
    ):
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in command], prog_name="python -m prefactor_core")
        code = ended.value.code
        assert isinstance(code, int)
        # click writes errors in UTF-8 where the encoding is ASCII.
        said = errors.getvalue().decode(encoding, "replace")
        return code, output.getvalue().decode(encoding), said


@contextmanager
def _surroundings(typed: str, environment: dict[str, str]) -> Generator[None]:
    """Those of a new process: its variables, its input, and logging that nobody has set up."""
    before, stdin, handlers = dict(os.environ), sys.stdin, logging.root.handlers
    for name in before:
        if name.startswith("PREFACTOR_"):
            del os.environ[name]
    os.environ.update(environment)
    sys.stdin, logging.root.handlers = io.TextIOWrapper(io.BytesIO(typed.encode())), []
    try:
        yield
    finally:
        sys.stdin, logging.root.handlers = stdin, handlers
        os.environ.clear()
        os.environ.update(before)


def run_in_terminal(
    *command: str,
    cwd: Path,
    encoding: str = "utf-8",
    columns: int = 80,
    typed: str = "",
    errors_too: bool = False,
) -> tuple[int, str, str]:
    """The exit code, output and errors of a command that writes to a terminal.

    The output is without colours. ``typed``: the answer to its question. ``errors_too``: the
    terminal gets the errors, too.
    """
    ours, theirs = os.openpty()
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "prefactor_core", *command],
            cwd=cwd,
            env={
                **{k: v for k, v in os.environ.items() if not k.startswith("PREFACTOR_")},
                "PYTHONIOENCODING": encoding,
                "PYTHONPATH": str(REPOSITORY),
                "COLUMNS": str(columns),
                "TERM": "xterm",
            },
            stdin=subprocess.PIPE,
            stdout=theirs,
            stderr=theirs if errors_too else subprocess.PIPE,
        )
        os.close(theirs)
        assert process.stdin is not None
        process.stdin.write(typed.encode())
        process.stdin.close()
        process.stdin = None  # or communicate() flushes it
        content = b""
        with suppress(OSError):  # how a terminal ends, on Linux
            while part := terminal.read(65536):
                content += part
        _, errors = process.communicate(timeout=60)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", content.decode(encoding))
    return process.returncode, text.replace("\r\n", "\n"), (errors or b"").decode()
