"""``python -m benchmarks.relay``: measure producers and relays, and print the tables."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from statistics import median

from support.redis_server import RedisServerProcess, redis_server

from benchmarks.goals import Judgement, at_least, at_most
from benchmarks.relay.processes import cpu_of, produce, relays, wait_for
from benchmarks.results import Spread
from benchmarks.serving import ServerProcess, serve
from benchmarks.tables import make_console, show_goals, show_rows
from benchmarks.wire import make_id
from prefactor_core.operations import identifiers
from prefactor_core.relay.keys import SHARDS, Keys

_LOOPS = ("asyncio", "trio")
_PRODUCERS = (1, 2, 4)
_RELAYS = (1, 2, 3)
_WAIT = 300.0
_RUNS = 16
"""Runs of all producers together: there are as many shards."""

_PACED_SECONDS = 4
_PACE = 1_000

Row = dict[str, Spread | float | None]


class Measuring:
    """``rounds``: of each measurement; ``size``: operations of all producers together."""

    def __init__(self, server: ServerProcess, rounds: int, size: int) -> None:
        self._server = server
        self._rounds = rounds
        self._size = size
        self.judgements: list[Judgement] = []

    def carriers(self) -> dict[str, Row]:
        """What brings batches of 200 operations to Redis, alone."""
        rows: dict[str, Row] = {}
        for loop in _LOOPS:
            for producers in _PRODUCERS:
                rates: list[float] = []
                costs: list[float] = []
                of_redis: list[float] = []
                for _ in range(self._rounds):
                    with redis_server("--appendfsync", "everysec") as redis:
                        done = produce("carrier", redis.url, producers, 4 * self._size, loop)
                        used = _cpu(redis)
                    rates.append(sum(one.operations / one.seconds for one in done))
                    costs.append(median(1e6 * one.cpu / one.operations for one in done))
                    of_redis.append(1e6 * used / sum(one.operations for one in done))
                rows[f"{producers} producers, {loop}"] = {
                    "operations/s": Spread.of(rates),
                    "CPU µs/operation": Spread.of(costs),
                    "Redis' CPU µs/operation": Spread.of(of_redis),
                }
                if producers == 1:
                    self.judgements += [
                        at_least(f"to Redis, {loop}: >= 100,000/s", Spread.of(rates), 100_000),
                        at_most(f"to Redis, {loop}: <= 5 µs each", Spread.of(costs), 5),
                    ]
        return rows

    def clients(self) -> dict[str, Row]:
        """Agents, from the recording of spans to their delivery: to Redis, and to the API."""
        rows: dict[str, Row] = {}
        for loop in _LOOPS:
            costs: dict[str, list[float]] = {"to Redis": [], "to the API": []}
            rates: dict[str, list[float]] = {name: [] for name in costs}
            for _ in range(self._rounds):
                with redis_server("--appendfsync", "everysec") as redis:
                    for name, url in (
                        ("to Redis", redis.url),
                        ("to the API", self._server.api_url),
                    ):
                        self._server.prepare(0.0)
                        (done,) = produce("client", url, 1, self._size, loop)
                        rates[name].append(done.operations / done.seconds)
                        costs[name].append(1e6 * done.cpu / done.operations)
            for name in costs:
                rows[f"a client {name}, {loop}"] = {
                    "spans/s": Spread.of(rates[name]),
                    "CPU µs/span": Spread.of(costs[name]),
                }
        return rows

    def relays(self) -> dict[str, Row]:
        """Relays that empty full streams; and a client that sends as much by itself."""
        rows: dict[str, Row] = {}
        direct: list[float] = []
        rates: dict[int, list[float]] = {number: [] for number in _RELAYS}
        costs: dict[int, list[float]] = {number: [] for number in _RELAYS}
        for _ in range(self._rounds):
            self._server.prepare(0.0)
            (done,) = produce("client", self._server.api_url, 1, self._size)
            direct.append(done.operations / done.seconds)
            for number in _RELAYS:
                with redis_server("--appendfsync", "everysec") as redis:
                    rate, cost = self._empty(redis, number)
                rates[number].append(rate)
                costs[number].append(cost)
        rows["a client, without relays"] = {"operations/s": Spread.of(direct)}
        for number in _RELAYS:
            rows[f"{number} relays"] = {
                "operations/s": Spread.of(rates[number]),
                "relays' CPU µs/operation": Spread.of(costs[number]),
            }
        one = [relay / client for relay, client in zip(rates[1], direct, strict=True)]
        two = [two / one for two, one in zip(rates[2], rates[1], strict=True)]
        self.judgements += [
            at_least("one relay: >= a client", Spread.of(one), 1.0),
            at_least("two relays: >= 1.6 of one", Spread.of(two), 1.6),
        ]
        return rows

    def _empty(self, redis: RedisServerProcess, number: int) -> tuple[float, float]:
        self._server.prepare(0.0)
        self._know_partition(redis)
        done = produce("client", redis.url, 1, self._size, runs=_RUNS)
        operations = sum(one.operations for one in done)
        with relays(redis.url, self._server.api_url, number) as processes:
            # From the first spans on: a relay needs a second to start.
            wait_for(1, _WAIT, self._delivered)
            began, used = time.perf_counter(), sum(map(cpu_of, processes))
            already = self._delivered()
            wait_for(operations, _WAIT, self._delivered)
            took = time.perf_counter() - began
            cost = sum(map(cpu_of, processes)) - used
        left = operations - already
        return left / took, 1e6 * cost / left

    def lag(self) -> dict[str, Row]:
        """Producers that record 1,000 spans a second each, and relays that deliver them."""
        rows: dict[str, Row] = {}
        for producers in _PRODUCERS:
            for number in _RELAYS:
                lags: list[float] = []
                most: list[float] = []
                for _ in range(self._rounds):
                    with redis_server("--appendfsync", "everysec") as redis:
                        seen = self._follow(redis, producers, number)
                    lags.append(median(seen))
                    most.append(max(seen))
                rows[f"{producers} producers, {number} relays"] = {
                    "median lag ms": Spread.of(lags),
                    "largest": Spread.of(most),
                }
        return rows

    def _follow(self, redis: RedisServerProcess, producers: int, number: int) -> list[float]:
        """The age of the oldest entry that is not settled, again and again."""
        self._server.prepare(0.0)
        self._know_partition(redis)
        seen: list[float] = []
        with relays(redis.url, self._server.api_url, number):
            wait_for(number, _WAIT, lambda: redis.cli("ZCARD", Keys("pf").relays))
            spans = _PACED_SECONDS * _PACE
            produce(
                *("paced", redis.url, producers, spans),
                runs=_RUNS // producers,
                meanwhile=lambda: seen.append(_oldest(redis)),
            )
        return seen

    def _know_partition(self, redis: RedisServerProcess) -> None:
        # As the first relay would have left it: the ids of agents are final.
        partition = identifiers.partition_of(make_id(1))
        redis.cli("HSET", Keys("pf").config, "partition", partition)

    def _delivered(self) -> int:
        return self._server.counts()["delivered"]


def _cpu(redis: RedisServerProcess) -> float:
    """The seconds of processor time that the server has used."""
    lines = [line.partition(":") for line in redis.cli("INFO", "cpu").splitlines()]
    return sum(
        float(value) for name, _, value in lines if name in ("used_cpu_sys", "used_cpu_user")
    )


def _oldest(redis: RedisServerProcess) -> float:
    """The age of the oldest entry in milliseconds; 0 without one."""
    seconds, microseconds = redis.cli("TIME")
    firsts = [
        redis.cli("XRANGE", Keys("pf").operations(shard), "-", "+", "COUNT", 1)
        for shard in range(SHARDS)
    ]
    times = [int(entries[0][0].partition("-")[0]) for entries in firsts if entries]
    now = 1_000 * int(seconds) + int(microseconds) / 1_000
    return max([0.0, *(now - time for time in times)])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.relay", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round")
    quick: bool = parser.parse_args(arguments).quick
    console = make_console()
    with serve() as server:
        measuring = Measuring(server, 1 if quick else 5, 32_000 if quick else 160_000)
        show_rows(console, "batches of 200 operations to Redis", measuring.carriers())
        show_rows(console, "an agent, delivery included", measuring.clients())
        show_rows(console, "relays, from full streams to the API", measuring.relays())
        show_rows(console, "producers of 1,000 spans/s, beside relays", measuring.lag())
    show_goals(console, measuring.judgements)


if __name__ == "__main__":
    main()
