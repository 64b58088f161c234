"""Relays: in this process, or as processes that tests kill and pause."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec

from prefactor_core.client.connection import open_api
from prefactor_core.config import HttpClientConfig, QueueConfig
from prefactor_core.config.redis import RedisAddress, without_password
from prefactor_core.relay.relay import Relay, RelayConfig, open_relay

# Not from support.commands, which imports pytest: each process of a relay would, too.
REPOSITORY = Path(__file__).parents[2]

WAIT = 60
"""Seconds for what takes some, on a machine that is busy."""

LONG_WAIT = 300
"""The same for processes that are killed again and again."""


@asynccontextmanager
async def a_relay(redis: str, api_url: str, **options: Any) -> AsyncGenerator[Relay]:
    """Open a relay whose pauses are short; it does not run yet."""
    url, password = without_password(redis)
    config = RelayConfig(
        redis=RedisAddress.parse(url),
        redis_password=password,
        max_retry_delay=0.2,
        **{"queue_config": QueueConfig(retry_delay_base=0.02), **options},
    )
    async with open_api(HttpClientConfig(api_url)) as api, open_relay(api, config) as relay:
        yield relay


@asynccontextmanager
async def relaying(redis: str, api_url: str, **options: Any) -> AsyncGenerator[Relay]:
    """Run a relay beside the block; end it in order when the block is left."""
    async with (
        a_relay(redis, api_url, **options) as relay,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(relay.run)
        yield relay
        relay.stop()


async def until(holds: Callable[[], object]) -> None:
    """Wait for what other processes and threads do."""
    with anyio.fail_after(WAIT):
        while not holds():  # noqa: ASYNC110 - nobody here could set an event
            await anyio.sleep(0.02)


class RelayProcess:
    def __init__(self, command: Sequence[str], log: Path) -> None:
        self.log = log
        self.is_paused = False
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFACTOR_")}
        environment["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-W", "error", *command],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def pause(self) -> None:
        self.is_paused = True
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.is_paused = False
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(WAIT)

    def stop(self) -> None:
        """End it in order; it must say nothing of a failure."""
        self.resume()
        self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(WAIT)
        # One that has said nothing was still importing when the signal came.
        assert code == 0 or (code == -signal.SIGTERM and not self.said), (code, self.said)
        assert "Traceback" not in self.said
        assert " ERROR " not in self.said

    @property
    def runs(self) -> bool:
        return self._process.poll() is None

    @property
    def said(self) -> str:
        return self.log.read_text()


class RelayProcesses:
    """``count`` relays, in processes that ``command`` starts, given the name of a relay."""

    def __init__(self, command: Callable[[str], Sequence[str]], count: int, folder: Path) -> None:
        self._command = command
        self._folder = folder
        self._numbers = itertools.count()
        self.all: list[RelayProcess] = []
        self.alive = [self._start() for _ in range(count)]

    def disturb(self, chance: random.Random) -> None:
        """Kill, pause or resume one of them. Another takes the place of one that is killed."""
        place = chance.randrange(len(self.alive))
        relay = self.alive[place]
        if chance.random() < 0.4:
            relay.kill()
            self.alive[place] = self._start()
        elif relay.is_paused:
            relay.resume()
        else:
            relay.pause()

    def resume(self) -> None:
        for relay in self.alive:
            relay.resume()

    def stop(self) -> None:
        for relay in self.alive:
            relay.stop()
        for relay in self.all:
            assert "Traceback" not in relay.said, relay.said

    def _start(self) -> RelayProcess:
        name = f"relay-{next(self._numbers)}"
        relay = RelayProcess(self._command(name), self._folder / f"{name}.log")
        self.all.append(relay)
        return relay


@contextmanager
def relay_processes(
    command: Callable[[str], Sequence[str]], count: int, folder: Path
) -> Generator[RelayProcesses]:
    """Run relays until the block is left, and kill those that still run."""
    relays = RelayProcesses(command, count, folder)
    try:
        yield relays
    finally:
        for relay in relays.all:
            if relay.runs:
                relay.kill()
            # pytest shows it if the test fails.
            sys.stdout.write(f"{relay.log.name}:\n{relay.said[-2000:]}\n")


def the_command(redis: str, api_url: str) -> Callable[[str], Sequence[str]]:
    """The relay of the command line, as a user runs it."""
    command = ["-m", "prefactor_core", "relay", "--redis", redis, "--api-url", api_url]
    return lambda name: [*command, "--name", name]


def relay_on(backend: str, redis: str, api_url: str) -> Callable[[str], Sequence[str]]:
    """A relay with a short lease, on the loop of ``backend``."""

    def command(name: str) -> Sequence[str]:
        # Another takes over soon.
        options = {"redis": redis, "api_url": api_url, "name": name, "lease": 1.0}
        return ["-m", "support.relay_process", backend, msgspec.json.encode(options).decode()]

    return command


def wait_until(holds: Callable[[], object]) -> None:
    """As :func:`until`, without a loop."""
    deadline = time.monotonic() + LONG_WAIT
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)
