"""``prefactor_core serve`` as a process, as a user starts it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def serving(path: Path, *options: str) -> Generator[str]:
    """Serve the database file ``path`` on a free port until the block is left; gives the URL,
    without a slash at the end."""
    command = ["serve", "--db", str(path), "--port", "0", *options]
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("PREFACTOR_")
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "prefactor_core", *command],
        stdout=subprocess.PIPE,
        text=True,
        env={**environment, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        found = re.search(r"http://[^\s/]+", line)
        assert found is not None, f"the server printed {line!r}"
        yield found[0]
        process.terminate()
        # Pages are open, and it ends all the same.
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.stdout.close()
        process.wait()
