"""An API that relays bring operations to, and the comparison with what agents wrote to Redis."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

import msgspec
from starlette.types import ASGIApp
from support.harness import FaultyApi
from support.redis_server import WAIT, RedisServerProcess
from support.server import serving_app

from prefactor_core.local import Faults, LocalPrefactor, open_local_prefactor
from prefactor_core.operations import Operation
from prefactor_core.operations.identifiers import without_partition
from prefactor_core.relay.keys import SHARDS, Keys


@dataclass
class ServedApi:
    """The local Prefactor on the file ``path``, served at ``url`` by a thread; ``faulty`` is before
    it, has seen every request, and can spoil them."""

    path: Path
    url: str
    local: LocalPrefactor
    faulty: FaultyApi


@contextmanager
def served_api(path: Path, faults: Faults | None = None) -> Generator[ServedApi]:
    opened: Queue[tuple[LocalPrefactor, FaultyApi]] = Queue()

    @asynccontextmanager
    async def opening() -> AsyncGenerator[ASGIApp]:
        async with open_local_prefactor(str(path), faults=faults) as app:
            faulty = FaultyApi(app)
            opened.put((app, faulty))
            yield faulty

    with serving_app(opening()) as port:
        local, faulty = opened.get(timeout=WAIT)
        yield ServedApi(path, f"http://127.0.0.1:{port}", local, faulty)


@dataclass
class Written:
    """What agents wrote to Redis: the idempotency keys of each run, in order, each once."""

    runs: dict[str, list[str]]

    @property
    def run_of(self) -> dict[str, str]:
        return {key: run for run, keys in self.runs.items() for key in keys}


def written(redis: RedisServerProcess, prefix: str = "pf") -> Written:
    keys = Keys(prefix)
    streams = {keys.operations(shard).encode() for shard in range(SHARDS)}
    decode = msgspec.json.Decoder(list[Operation]).decode
    runs: dict[str, dict[str, None]] = {}
    for words in redis.written("XADD"):
        if words[1] in streams:
            for operation in decode(words[words.index(b"ops") + 1]):
                run = runs.setdefault(without_partition(operation.instance_id), {})
                # An entry whose XADD got no answer is written again.
                run.setdefault(operation.idempotency_key)
    return Written({run: list(keys) for run, keys in runs.items()})


def problems(
    api: ServedApi,
    redis: RedisServerProcess,
    prefix: str = "pf",
    *,
    gone: frozenset[str] = frozenset(),
    refuses: bool = False,
) -> list[str]:
    """What the API did that is not what agents wrote: out of order, missing, or twice.

    ``gone``: the runs that Redis lost on purpose. ``refuses``: whether the API refuses some
    requests, which are sent again in another form.
    """
    wrote = written(redis, prefix)
    run_of = wrote.run_of
    done: dict[str, dict[str, None]] = {run: {} for run in wrote.runs}
    wrong: list[str] = []
    for call in api.faulty.operations:
        if call.method != "POST" or "idempotency_key" not in (call.body or ()):
            continue
        # A relay that asks for the final id of a run registers it under another key.
        key = call.body["idempotency_key"].removesuffix("-by-id")
        if key not in run_of:
            wrong.append(f"{call.name} {key} was sent, and never written")
        elif call.status == 200:
            # Once more, it is a replay, which changes nothing.
            done[run_of[key]].setdefault(key)
    for run, keys in wrote.runs.items():
        if run in gone or list(done[run]) == keys:
            continue
        missing = [key for key in keys if key not in done[run]]
        wrong.append(f"run {run}: missing {missing}, done in this order: {list(done[run])}")
    if api.local.refusals and not refuses:
        wrong.append(f"refused: {api.local.refusals}")
    return wrong


def leftovers(redis: RedisServerProcess, prefix: str = "pf") -> list[str]:
    """What is still on the server although all runs have ended and all is settled."""
    keys = Keys(prefix)
    sets = [key for shard in range(SHARDS) if redis.cli("SCARD", key := keys.runs(shard))]
    entries = redis.cli("XRANGE", keys.refused, "-", "+")
    refused = [f"{keys.refused}: {fields}" for _, fields in entries]
    streams = [f"{lag(redis, prefix)} entries"] if lag(redis, prefix) else []
    return [*streams, *sets, *refused, *redis.cli("KEYS", f"{prefix}:run:*")]


_LAG = """
local sum = 0
for _, key in ipairs(KEYS) do sum = sum + redis.call('XLEN', key) end
return sum
"""


def lag(redis: RedisServerProcess, prefix: str = "pf") -> int:
    """How many entries are not settled."""
    streams = [Keys(prefix).operations(shard) for shard in range(SHARDS)]
    count: int = redis.cli("EVAL", _LAG, len(streams), *streams)
    return count
