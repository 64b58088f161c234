"""The processes of a crash: forked, one after another, from one that has imported everything."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages

import anyio
import anyio.to_thread
import jsonschema  # noqa: F401
import msgspec
from msgspec import Struct
from support.crash_agent import Agent
from support.crash_scripts import Crash

import prefactor_core

_MOST_SECONDS = 30.0
_ROOMS = tuple(
    f"prefactor_core.{room}." for room in ("client", "export", "journal", "payloads", "recording")
)


class Death(Struct):
    """How a process ended: its exit code (negative: a signal), and when, on the wall clock."""

    code: int
    at: int


class _Order(Struct):
    folder: str
    crash: Crash
    place: int


class Processes:
    """Performs the lives of crashes. Each is a process of its own, with a loop of its own."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def perform(self, folder: Path, crash: Crash) -> list[Death]:
        """Perform all lives of a crash, and those of adopters of what they left."""
        places = range(len(crash.lives) + crash.adopters)
        return [self._live(folder, crash, place) for place in places]

    def _live(self, folder: Path, crash: Crash, place: int) -> Death:
        asked, answers = self._process.stdin, self._process.stdout
        assert asked is not None
        assert answers is not None
        asked.write(msgspec.json.encode(_Order(str(folder), crash, place)) + b"\n")
        asked.flush()
        return msgspec.json.decode(answers.readline(), type=Death)


@contextmanager
def processes() -> Generator[Processes]:
    """One process from which others are forked; it has neither threads nor loops."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFACTOR_")}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    code = "from support.crash_processes import serve; serve()"
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        try:
            yield Processes(process)
        finally:
            process.kill()


def serve() -> None:
    """Perform what is asked for, until there is nothing more."""
    # Else each process would import what only an open client needs.
    for module in walk_packages(prefactor_core.__path__, "prefactor_core."):
        if module.name.startswith(_ROOMS):
            import_module(module.name)
    for backend in anyio.get_all_backends():
        import_module(f"anyio._backends._{backend}")
    decode = msgspec.json.Decoder(_Order).decode
    for line in sys.stdin.buffer:
        order = decode(line)
        child = os.fork()
        if child == 0:
            _live(order)
        death = Death(_wait(child), time.time_ns())
        sys.stdout.buffer.write(msgspec.json.encode(death) + b"\n")
        sys.stdout.buffer.flush()


def _live(order: _Order) -> None:
    folder, code = Path(order.folder), 1
    log = os.open(folder / f"{order.place}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        Agent(order.crash, order.place, folder).live()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _wait(child: int) -> int:
    """The exit code of a child. One that takes too long is killed, and has the code 1."""
    until, pause = time.monotonic() + _MOST_SECONDS, 0.002
    while time.monotonic() < until:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(pause)
    os.kill(child, signal.SIGABRT)
    os.waitpid(child, 0)
    return 1
