"""The commands about relays, with a real server."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx
import msgspec
import pytest
from support.commands import run, run_here
from support.journal_files import create, register
from support.redis_server import RedisServerProcess, redis_server
from support.relay_runs import WHOLE, record, recording, stored
from support.relayed import ServedApi, lag, written
from support.relays import relaying, until, wait_until
from support.serving import serving

import prefactor_core.relay
from prefactor_core.operations import Operation
from prefactor_core.operations.identifiers import generate
from prefactor_core.relay.entry import encode
from prefactor_core.relay.keys import SHARDS, Keys, shard_of

KEYS = Keys("pf")
RELAY = ("-m", "prefactor_core", "relay")


def relay(redis: RedisServerProcess, *command: str, cwd: Path) -> tuple[int, str, str]:
    return run_here("relay", *command, cwd=cwd, PREFACTOR_REDIS_URL=redis.url)


def write(redis: RedisServerProcess, *operations: Operation) -> None:
    """Write operations of a run, as an agent does."""
    shard = shard_of(operations[0].instance_id)
    redis.cli("XADD", KEYS.operations(shard), "*", *encode("host-1", operations))


def refuse(redis: RedisServerProcess, *operations: Operation, prefix: str = "pf") -> None:
    """Set operations aside, as a relay does."""
    for operation in operations:
        fields = {
            "op": msgspec.json.encode(operation),
            "reason": "refused",
            "error": "422 validation_errors: name: is \x1b[2Jinvalid",
            "agent": "host-1",
            "shard": shard_of(operation.instance_id),
        }
        words = [word for pair in fields.items() for word in pair]
        redis.cli("XADD", Keys(prefix).refused, "*", *words)


def listed(redis: RedisServerProcess, *options: str, cwd: Path) -> list[dict[str, Any]]:
    code, shown, errors = relay(redis, "refused", "--json", *options, cwd=cwd)
    assert (code, errors) == (0, "")
    return list(json.loads(shown))


# --- relay status


def test_an_empty_server_has_shards_and_nothing_in_them(
    redis: RedisServerProcess, tmp_path: Path
) -> None:
    code, shown, errors = relay(redis, "status", cwd=tmp_path)
    assert (code, errors) == (0, "")
    heading, titles, *rows = shown.splitlines()
    assert heading == f"{redis.url}, prefix pf"
    assert titles.split() == ["shard", "relay", "waiting", "pending", "oldest"]
    assert [row.split() for row in rows[:SHARDS]] == [
        [str(shard), "-", "0", "0"] for shard in range(SHARDS)
    ]
    assert rows[SHARDS:] == [
        "",
        "0 entries waiting, 0 pending",
        "no relays alive",
        "0 agents",
        "0 operations refused",
    ]


async def test_status_shows_what_waits_what_is_pending_and_who_has_it(
    redis: RedisServerProcess, api: ServedApi, tmp_path: Path
) -> None:
    run_id = generate(0)
    shard = shard_of(run_id)

    async def status(*options: str) -> str:
        # The errors are not its own: the relay writes its log beside it.
        code, shown, _ = await anyio.to_thread.run_sync(
            lambda: relay(redis, "status", *options, cwd=tmp_path)
        )
        assert code == 0
        return shown

    api.faulty.away = True
    async with relaying(redis.url, api.url, name="build-7") as one:
        redis.cli("HSET", KEYS.config, "partition", "5")
        await until(lambda: len(one.statistics().shards) == SHARDS)
        write(redis, register(run_id))
        await until(lambda: one.statistics().pending)
        refuse(redis, register(generate(0)))
        async with recording(redis.url):
            await until(lambda: redis.cli("HLEN", KEYS.agents))
            document = json.loads(await status("--json"))
            assert f"\n{shard:>5}  build-7 " in (shown := await status())
        (owner,) = document["relays"]
        assert owner["name"].startswith("build-7/")
        assert (owner["shards"], document["api"]) == ([*range(SHARDS)], api.url)
        mine = document["shards"][shard]
        assert mine.pop("age") >= 0
        assert mine == {"shard": shard, "owner": owner["name"], "waiting": 0, "pending": 1}
        assert (document["agents"], document["refused"], document["partition"]) == (1, 1, "5")
        assert 0 <= document["heartbeat_age"] < 60
        assert "\n1 relay alive\n1 agent, oldest heartbeat " in shown
        assert "\n1 operation refused, oldest " in shown
        api.faulty.away = False
        await until(lambda: not lag(redis))
    write(redis, register(run_id))
    document = json.loads(await status("--json"))
    assert (document["relays"], document["shards"][shard]["owner"]) == ([], None)
    assert (document["shards"][shard]["waiting"], document["shards"][shard]["pending"]) == (1, 0)


def test_status_goes_on_until_it_is_ended(redis: RedisServerProcess, tmp_path: Path) -> None:
    command = (*RELAY, "--redis", redis.url, "status", "--watch", "--json")
    with serving(*command, cwd=tmp_path) as watching:
        assert json.loads(watching.line("shards"))["refused"] == 0
        refuse(redis, register(generate(0)))
        while json.loads(watching.line("shards"))["refused"] == 0:
            pass
        assert watching.stop(signal.SIGINT) == 130
        assert "Traceback" not in "".join(watching.rest())


# --- relay refused


def test_refused_operations_are_listed_without_payloads(
    redis: RedisServerProcess, tmp_path: Path
) -> None:
    run_id, other, span_id = generate(0), generate(0), generate(0)
    refuse(redis, create(span_id, run=run_id), register(other))
    redis.cli("XADD", KEYS.refused, "*", "op", "{", "reason", "unreadable")
    code, shown, errors = relay(redis, "refused", cwd=tmp_path)
    assert (code, errors) == (0, "")
    titles, first, second, third, count = shown.splitlines()
    assert titles.split() == ["refused", "reason", "age", "run,", "span,", "error"]
    said = "422 validation_errors: name: is \N{REPLACEMENT CHARACTER}[2Jinvalid"
    assert first.split()[:2] == ["CREATE_SPAN", "refused"]
    assert first.endswith(f"  run {run_id} span {span_id}: {said}")
    assert second.endswith(f"  run {other}: {said}")
    assert third.split()[:2] == ["unreadable", "unreadable"]
    assert count == "3 refused operations"
    (only,) = listed(redis, "--run", run_id, cwd=tmp_path)
    assert only.pop("at").endswith("+00:00")
    assert only.pop("id")
    assert only == {
        "operation_type": "CREATE_SPAN",
        "instance_id": run_id,
        "span_id": span_id,
        "reason": "refused",
        "error": "422 validation_errors: name: is \x1b[2Jinvalid",
        "agent": "host-1",
    }
    assert "Hi" not in shown


DROPPED = '{"dropped":130}\n'
RETRIED = '{"retried":0,"unreadable":0}\n'


def test_operations_are_dropped_all_or_those_of_a_run(
    redis: RedisServerProcess, tmp_path: Path
) -> None:
    run_id = generate(0)
    for _ in range(130):
        refuse(redis, register(generate(0)), register(run_id))
    # The id that the API gave it has another partition.
    final = f"{run_id[:10]}zzzzzz{run_id[16:]}"
    ended = relay(redis, "refused", "--drop", "--run", final, cwd=tmp_path)
    assert ended == (0, f"130 operations of run {final} deleted\n", "")
    assert len(listed(redis, cwd=tmp_path)) == 130
    assert relay(redis, "refused", "--drop", "--json", cwd=tmp_path) == (0, DROPPED, "")
    assert relay(redis, "refused", "--drop", cwd=tmp_path) == (0, "0 operations deleted\n", "")
    assert relay(redis, "refused", "--retry", "--json", cwd=tmp_path) == (0, RETRIED, "")
    said = "no refused operation is kept\n"
    assert relay(redis, "refused", cwd=tmp_path) == (0, said, "")
    assert relay(redis, "refused", "--json", cwd=tmp_path) == (0, "[]\n", "")


async def test_a_run_that_was_refused_is_delivered_when_it_is_given_to_the_relays_again(
    redis: RedisServerProcess, api: ServedApi, tmp_path: Path
) -> None:
    async def retry() -> tuple[int, str]:
        code, shown, _ = await anyio.to_thread.run_sync(
            lambda: relay(redis, "refused", "--retry", cwd=tmp_path)
        )
        return code, shown

    api.faulty.faults = {"register": 422}
    async with relaying(redis.url, api.url):
        async with recording(redis.url) as client:
            await record(client, runs=3)
        await until(lambda: not lag(redis))
        count = redis.cli("XLEN", KEYS.refused)
        # It is refused again, and that is no endless loop.
        again = 0, f"{count} operations given to the relays once more\n"
        assert await retry() == again
        await until(lambda: not lag(redis))
        assert redis.cli("XLEN", KEYS.refused) == count
        assert await stored(api) == []
        api.faulty.faults = {}
        assert await retry() == again
        await until(lambda: not lag(redis))
    assert redis.cli("XLEN", KEYS.refused) == 0
    assert [run.shape for run in await stored(api)] == [WHOLE] * 3


async def test_an_entry_that_a_relay_kept_whole_goes_back_as_it_was(
    redis: RedisServerProcess, api: ServedApi, tmp_path: Path
) -> None:
    fields = ["version", "2", "agent", "host-1", "ops", "of tomorrow"]
    redis.cli("XADD", KEYS.operations(3), "*", *fields)
    async with relaying(redis.url, api.url):
        await until(lambda: redis.cli("XLEN", KEYS.refused) and not lag(redis))
    ended = await anyio.to_thread.run_sync(lambda: relay(redis, "refused", "--retry", cwd=tmp_path))
    assert ended == (0, "1 operation given to the relays once more\n", "")
    ((_, back),) = redis.cli("XRANGE", KEYS.operations(3), "-", "+")
    assert back == fields


def test_what_this_version_cannot_read_stays_and_is_no_success(
    redis: RedisServerProcess, tmp_path: Path
) -> None:
    redis.cli("XADD", KEYS.refused, "*", "op", "{}", "reason", "unreadable")
    code, shown, errors = relay(redis, "refused", "--retry", cwd=tmp_path)
    assert (code, shown) == (1, "0 operations given to the relays once more\n")
    assert errors == (
        "Error: 1 operation not given to the relays, because this command cannot read all: --drop "
        "deletes what stays\n"
    )
    assert redis.cli("XLEN", KEYS.refused) == 1


def test_a_full_server_keeps_what_is_not_given_to_the_relays(tmp_path: Path) -> None:
    with redis_server("--maxmemory", "4mb") as redis:
        refuse(redis, register(generate(0)))
        redis.cli("CONFIG", "SET", "maxmemory", "1mb")
        code, _, errors = relay(redis, "refused", "--retry", cwd=tmp_path)
        assert (code, redis.cli("XLEN", KEYS.refused)) == (1, 1)
        assert errors == (
            f"Error: XADD at {redis.url}: the memory of the server is full (maxmemory)\n"
        )
        # To delete something needs no room.
        assert relay(redis, "refused", "--drop", cwd=tmp_path)[:2] == (0, "1 operation deleted\n")


def test_a_prefix_is_that_of_the_option_before_that_of_the_address(
    redis: RedisServerProcess, tmp_path: Path
) -> None:
    refuse(redis, register(generate(0)), prefix="one")
    refuse(redis, register(generate(0)), register(generate(0)), prefix="two")
    address = {"PREFACTOR_REDIS_URL": f"{redis.url}?prefix=one"}
    for words, count in {
        ("refused",): 1,
        ("refused", "--prefix", "two"): 2,
        # An option of the group is one of its commands.
        ("--prefix", "two", "refused"): 2,
        ("--redis", redis.url, "refused"): 0,
    }.items():
        code, shown, errors = run_here("relay", *words, "--json", cwd=tmp_path, **address)
        assert (code, errors, len(json.loads(shown))) == (0, "", count)


def test_users_need_no_more_for_the_commands_than_the_docstring_says(
    redis: RedisServerProcess, api: ServedApi, tmp_path: Path
) -> None:
    said = prefactor_core.relay.__doc__ or ""
    keys, other_keys, *commands = said.split("\n    relay    ")[1].split("\n\n")[0].split()
    commands += re.findall(r"need ``(.+?)``", said)[0].split()
    rights = [keys, other_keys, *(f"+{command}" for command in commands)]
    redis.cli("ACL", "SETUSER", "relay", "reset", "on", ">sesame", *rights)
    address = {"PREFACTOR_REDIS_URL": redis.url.replace("unix://", "unix://relay:sesame@")}
    address["PREFACTOR_API_URL"] = api.url
    refuse(redis, register(generate(0)))
    redis.cli("ACL", "LOG", "RESET")
    for words in (["status"], ["refused"], ["refused", "--retry"], ["refused", "--drop"]):
        code, shown, errors = run_here("relay", *words, cwd=tmp_path, **address)
        assert (code, errors) == (0, "")
        assert "sesame" not in shown
    with serving(*RELAY, cwd=tmp_path, **address) as process:
        assert " lag " in process.line(" 16 shards")
        assert process.stop(signal.SIGTERM) == 0
        assert "sesame" not in "".join(process.rest())
    assert redis.cli("ACL", "LOG") == []


# --- relay


def test_a_relay_delivers_serves_its_metrics_and_ends_by_a_signal(
    redis: RedisServerProcess, api: ServedApi, tmp_path: Path
) -> None:
    async def send() -> None:
        async with recording(redis.url) as client:
            await record(client, runs=3)

    anyio.run(send)
    sent = len(written(redis).run_of)
    command = (*RELAY, "--name", "build-7", "--listen", "127.0.0.1:0", "--prefix", "pf")
    environment = {"PREFACTOR_REDIS_URL": redis.url, "PREFACTOR_API_URL": api.url}
    with serving(*command, cwd=tmp_path, **environment) as process:
        url = process.line("/metrics are at").split()[-1]
        said = f"relay build-7 delivers from {redis.url} to {api.url}"
        process.line(said)
        wait_until(lambda: not lag(redis))
        with httpx.Client(base_url=url, timeout=30) as http:
            wait_until(lambda: http.get("/healthz").json()["relay"]["delivered"] == sent)
            health = http.get("/healthz")
            assert (health.status_code, health.json()["status"]) == (200, "ok")
            numbers = http.get("/metrics")
            assert numbers.headers["content-type"].startswith("text/plain; version=0.0.4")
            assert f"\nprefactor_relay_delivered_operations_total {sent}\n" in numbers.text
            assert "\nprefactor_relay_shards 16\n" in numbers.text
            assert '\nprefactor_relay_waiting_entries{shard="15"} 0\n' in numbers.text
            assert http.get("/").status_code == 404
            api.faulty.away = True
            write(redis, register(generate(0)))
            wait_until(lambda: http.get("/healthz").json()["status"] == "outage")
            # A restart would not end the outage.
            assert http.get("/healthz").status_code == 200
            api.faulty.away = False
        assert process.stop(signal.SIGTERM) == 0
        rest = process.rest()
        assert "INFO stopped: delivered " in rest[-1]
        assert "Traceback" not in "".join(rest)
    assert redis.cli("KEYS", "*lease") == []
    assert redis.cli("EXISTS", KEYS.relays) == 0


def test_a_relay_started_before_its_server_says_so_once_and_delivers_when_that_is_there(
    redis: RedisServerProcess, api: ServedApi, tmp_path: Path
) -> None:
    write(redis, register(generate(0)))
    redis.kill()
    url = redis.url.replace("unix://", "unix://:sesame@")
    redis_user = {"PREFACTOR_REDIS_URL": url, "PREFACTOR_API_URL": api.url}
    with serving(*RELAY, "--listen", "127.0.0.1:0", cwd=tmp_path, **redis_user) as process:
        pages = process.line("/metrics are at").split()[-1]
        assert " WARNING Redis does not serve this relay (INFO at unix://" in process.line("WARN")
        process.line("no answer from the Redis server")
        with httpx.Client(base_url=pages, timeout=30) as http:
            health = http.get("/healthz")
            # A restart would not bring it.
            assert (health.status_code, health.json()["status"]) == (200, "outage")
        redis.start()
        process.line("Redis serves this relay again")
        wait_until(lambda: not lag(redis))
        assert process.stop(signal.SIGTERM) == 0
        rest = "".join(process.rest())
        assert "does not serve" not in rest
        assert "sesame" not in rest


def test_a_signal_ends_a_relay_that_waits_for_its_server(tmp_path: Path) -> None:
    address = ("--redis", "redis://127.0.0.1:9", "--api-url", "http://127.0.0.1:9")
    with serving(*RELAY, *address, cwd=tmp_path) as process:
        process.line("Unable to establish a connection")
        assert process.stop(signal.SIGTERM) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_a_relay_at_once(
    redis: RedisServerProcess, api: ServedApi, tmp_path: Path, number: signal.Signals
) -> None:
    command = (*RELAY, "--redis", redis.url, "--api-url", api.url)
    with serving(*command, cwd=tmp_path) as process:
        process.line(" 16 shards")
        api.faulty.hanging = True
        write(redis, register(generate(0)))
        wait_until(lambda: any(call.name == "register" for call in api.faulty.calls))
        process.process.send_signal(number)
        # It waits for the answer.
        wait_until(lambda: redis.cli("EXISTS", KEYS.relays) == 0)
        assert process.process.poll() is None
        assert process.stop(number) == -number
        assert "Traceback" not in "".join(process.rest())


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), 2, "Error: set PREFACTOR_REDIS_URL, or give --redis"),
        (("status",), 2, "Error: set PREFACTOR_REDIS_URL, or give --redis"),
        (("status", "--redis", "http://h"), 2, "begins with redis://, rediss://, unix://"),
        (("--redis", "redis://:sesame@h:0"), 2, "Error: --redis must have a host, and a port"),
        (("refused", "--redis", "redis://h", "--prefix", "a b"), 2, "Error: the prefix in --redis"),
        (("refused", "--redis", "redis://h", "--drop", "--retry"), 2, "exclude each other"),
        (("--redis", "redis://h"), 2, "Error: set PREFACTOR_API_URL, or give --api-url"),
        (("--redis", "redis://h", "--api-url", "redis://h"), 2, "names a Redis server"),
        (("--redis", "redis://h", "--api-url", "https://h"), 1, "Error: api_token is required"),
        (("--redis", "redis://h", "--bury-after", "0"), 2, "'--bury-after'"),
        (("--redis", "redis://h", "--bury-after", "nan"), 2, "'--bury-after': nan is not a number"),
        (("--redis", "redis://h", "--poll", "nan"), 2, "'--poll': nan is not a number"),
        (("--redis", "redis://h", "--listen", "9464"), 2, "it must be HOST:PORT"),
        (("--redis", "redis://h", "--listen", "[::1]:99999"), 2, "it must be HOST:PORT"),
        (
            ("status", "--redis", "redis://:sesame@127.0.0.1:9"),
            1,
            "at redis://127.0.0.1:9: Unable to establish a connection",
        ),
    ],
)
def test_a_mistake_is_said_without_a_secret(
    tmp_path: Path, words: tuple[str, ...], code: int, said: str
) -> None:
    ended, shown, errors = run_here("relay", *words, cwd=tmp_path)
    assert (ended, shown) == (code, "")
    assert said in errors
    assert code == 2 or len(errors.splitlines()) == 1
    assert "sesame" not in errors


def test_a_port_in_use_is_one_line(redis: RedisServerProcess, tmp_path: Path) -> None:
    from socket import create_server

    with create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = ("--listen", f"127.0.0.1:{port}", "--api-url", "http://127.0.0.1:9")
        code, shown, errors = relay(redis, *words, cwd=tmp_path)
    assert (code, shown) == (1, "")
    assert errors.startswith(f"Error: cannot listen on port {port} of '127.0.0.1': Address already")


def test_a_server_that_could_forget_is_refused_in_one_line(tmp_path: Path) -> None:
    with redis_server("--maxmemory", "9mb", "--maxmemory-policy", "allkeys-lru") as redis:
        code, _, errors = relay(redis, "--api-url", "http://127.0.0.1:9", cwd=tmp_path)
    assert code == 1
    assert errors.startswith(f"Error: {redis.url} has maxmemory-policy allkeys-lru")
    assert len(errors.splitlines()) == 1


def test_without_the_extra_the_commands_say_what_to_install(tmp_path: Path) -> None:
    for words in (["status"], ["refused"], ["--api-url", "http://127.0.0.1:9"]):
        code = (
            "import runpy, sys\n"
            "sys.modules['coredis'] = None\n"
            f"sys.argv = ['-m', 'relay', '--redis', 'redis://h', *{words!r}]\n"
            "runpy.run_module('prefactor_core', run_name='__main__')"
        )
        result = run("-c", code, cwd=tmp_path)
        assert (result.returncode, result.stdout) == (1, "")
        assert result.stderr.startswith("Error: redis://h:6379 needs the extra 'redis'")
        assert len(result.stderr.splitlines()) == 1
