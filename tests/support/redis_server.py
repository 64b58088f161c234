"""A Redis server of its own, in a process that tests kill, pause and start again."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

WAIT = 60
"""Seconds for what takes one, on a machine that is busy."""


class RedisError(Exception):
    """An error that the server answered."""


class RedisServerProcess:
    """A server that keeps its data in ``folder``, and listens on a socket there.

    ``url``: its ``api_url``. ``socket``: that of the server, also while it does not run.
    """

    def __init__(self, folder: Path, options: tuple[str, ...]) -> None:
        self.socket = folder / "redis.sock"
        self.url = f"unix://{self.socket}"
        self._folder = folder
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; return when it answers, with what it had on the disk."""
        assert self._process is None, "it runs"
        ours = ("--port", "0", "--unixsocket", str(self.socket), "--dir", str(self._folder))
        # "no" writes before each answer, and leaves it to the system when it goes to the disk. With
        # "everysec" an answer does not wait for the write while an earlier sync takes its time.
        kept = ("--appendonly", "yes", "--appendfsync", "no", "--save", "")
        kept += ("--auto-aof-rewrite-percentage", "0")
        log = ("--logfile", str(self._folder / "redis.log"))
        try:
            self._process = subprocess.Popen(["redis-server", *ours, *kept, *log, *self._options])
        except FileNotFoundError:
            raise AssertionError(
                "redis-server is not installed: apt-get install redis-server"
            ) from None
        deadline = time.monotonic() + WAIT
        while not self._answers():
            assert self._process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.01)

    def kill(self) -> None:
        """Kill it with SIGKILL. What it acknowledged and the system has not written is kept: the
        system lives."""
        self.resume()
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it in order."""
        self.resume()
        self._end(signal.SIGTERM)

    def restart(self) -> None:
        """Kill it, and start it again with the same data."""
        self.kill()
        self.start()

    def pause(self) -> None:
        """Stop the process: connections stay open, and nothing answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused process go on."""
        self._signal(signal.SIGCONT)

    def cli(self, *words: str | bytes | float) -> Any:
        """Run one command as the default user: numbers, texts, lists of those, or None.

        Raises :class:`RedisError` for an error.
        """
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(WAIT)
            connection.connect(str(self.socket))
            encoded = [w if isinstance(w, bytes) else str(w).encode() for w in words]
            parts = [b"$%d\r\n%b\r\n" % (len(word), word) for word in encoded]
            connection.sendall(b"*%d\r\n%b" % (len(parts), b"".join(parts)))
            with connection.makefile("rb") as answer:
                return _read(answer)

    def written(self, command: str) -> list[list[bytes]]:
        """The words of every ``command`` that has ever changed the data, oldest first."""
        commands: list[list[bytes]] = []
        for path in sorted(self._folder.glob("appendonlydir/*.incr.aof")):
            with path.open("rb") as file:
                while line := file.readline():
                    words = [_read_word(file) for _ in range(int(line[1:]))]
                    if words[0].upper() == command.encode():
                        commands.append(words)
        return commands

    def log(self) -> str:
        """What the server has written to its log."""
        path = self._folder / "redis.log"
        return path.read_text() if path.exists() else ""

    def _answers(self) -> bool:
        try:
            return bool(self.cli("PING") == "PONG")
        except (OSError, RedisError):  # not there yet, or it loads its data
            return False

    def _signal(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def _end(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(WAIT)
            self._process = None


@contextmanager
def redis_server(*options: str) -> Generator[RedisServerProcess]:
    """Run a server until the block is left. ``options``: words of its command line, such as
    ``"--maxmemory", "4mb"``."""
    # A folder of its own: the path of a socket has 107 bytes at most, and pytest's can be longer.
    with TemporaryDirectory(prefix="redis-") as folder:
        server = RedisServerProcess(Path(folder), options)
        try:
            server.start()
            yield server
        finally:
            server.kill()


def _read(answer: Any) -> Any:
    line = answer.readline()
    if not line.endswith(b"\r\n"):
        raise ConnectionResetError("the server closed the connection")
    kind, rest = line[:1], line[1:-2]
    match kind:
        case b"+":
            return rest.decode()
        case b"-":
            raise RedisError(rest.decode())
        case b":":
            return int(rest)
        case b"$":
            size = int(rest)
            if size < 0:
                return None
            return answer.read(size + 2)[:-2].decode("utf-8", "surrogateescape")
        case b"*":
            size = int(rest)
            return None if size < 0 else [_read_nested(answer) for _ in range(size)]
    raise AssertionError(f"unknown answer {line!r}")


def _read_word(file: Any) -> bytes:
    size = int(file.readline()[1:])
    word: bytes = file.read(size + 2)[:-2]
    return word


def _read_nested(answer: Any) -> Any:
    # An error within an answer, as of EXEC, is one of its items.
    try:
        return _read(answer)
    except RedisError as error:
        return error
