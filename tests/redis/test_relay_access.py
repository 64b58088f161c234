"""Who may do what on a Redis server: users with the least that they need, passwords, TLS."""

from __future__ import annotations

import logging
import socket
import subprocess
from pathlib import Path

import anyio
import pytest
from support.harness import AGENT, make_config
from support.redis_server import RedisServerProcess, redis_server
from support.relay_runs import RUNS, all_is_there, record, recording
from support.relayed import ServedApi
from support.relays import WAIT, a_relay, relaying, until

from prefactor_core import (
    PrefactorAuthError,
    PrefactorContractError,
    PrefactorUnreachableError,
    open_prefactor,
)
from prefactor_core.config.redis import RedisAddress, without_password
from prefactor_core.relay.server import RedisServer, Script, open_server

# The least that users need, for the prefix "pf"; the docstring of the room says the same.
CONNECTION = "+hello +auth +ping +select"
AGENT_USER = (
    f"resetkeys ~{{pf:*}}:ops ~pf:agents ~pf:relays ~pf:config ~pf:stop:* {CONNECTION} "
    "+info +xadd +hget +hset +hdel +mget +exists +eval +evalsha"
)
RELAY_USER = (
    f"resetkeys ~{{pf:*}}:* ~pf:* {CONNECTION} "
    "+info +time +eval +evalsha +get +set +del +pexpire +hget +hset +hsetnx +hdel +hgetall "
    "+sadd +srem +smembers +zadd +zrange +zrem +zremrangebyscore "
    "+xadd +xread +xreadgroup +xgroup +xack +xdel +xlen"
)


def allow(redis: RedisServerProcess, user: str, password: str, rules: str) -> None:
    """Make a user that may do nothing but what ``rules`` say."""
    redis.cli("ACL", "SETUSER", user, "reset", "on", f">{password}", *rules.split())


def url_of(redis: RedisServerProcess, user: str, password: str) -> str:
    return redis.url.replace("unix://", f"unix://{user}:{password}@")


async def test_users_need_no_more_than_these_commands_and_keys(
    redis: RedisServerProcess, api: ServedApi
) -> None:
    allow(redis, "agent", "word-of-agents", AGENT_USER)
    allow(redis, "relay", "word-of-relays", RELAY_USER)
    redis.cli("ACL", "LOG", "RESET")
    async with relaying(url_of(redis, "relay", "word-of-relays"), api.url):
        async with recording(url_of(redis, "agent", "word-of-agents")) as client:
            await record(client)
        await all_is_there(api, redis, RUNS)
    assert redis.cli("ACL", "LOG") == []


async def test_a_forbidden_command_in_a_script_is_an_error_of_access(
    redis: RedisServerProcess,
) -> None:
    """Redis 7.0 says it in other words than 7.2 does."""
    allow(redis, "agent", "sesame", f"~* {CONNECTION} +eval +evalsha")
    address = RedisAddress.parse(without_password(url_of(redis, "agent", "sesame"))[0])
    script = Script("return redis.call('HSET', KEYS[1], 'field', ARGV[1])")
    with anyio.fail_after(10):
        async with open_server(RedisServer(address, "sesame")) as server:
            with pytest.raises(PrefactorAuthError, match="a command of the script is forbidden$"):
                await server.call(script, ["pf:x"], "a payload")


async def test_a_wrong_password_is_said_when_a_client_or_a_relay_opens(
    redis: RedisServerProcess, api: ServedApi, caplog: pytest.LogCaptureFixture
) -> None:
    allow(redis, "agent", "word-of-agents", AGENT_USER)
    url = url_of(redis, "agent", "word-of-somebody")
    with pytest.raises(PrefactorAuthError) as refused:
        async with relaying(url, api.url):
            pytest.fail("it opened")
    assert "word-of-somebody" not in f"{refused.value!r} {caplog.text}"


async def test_a_server_that_asks_for_a_password_is_given_one_or_says_where_it_goes(
    redis: RedisServerProcess, api: ServedApi, caplog: pytest.LogCaptureFixture
) -> None:
    redis.cli("ACL", "SETUSER", "default", "resetpass", ">sesame")
    with pytest.raises(PrefactorAuthError, match="asks for a password: redis://USER:PASSWORD@HOST"):
        async with a_relay(redis.url, api.url):
            pytest.fail("it opened")
    async with recording(redis.url, drain_timeout=0) as client:
        await record(client, runs=1)
        await until(lambda: client.statistics().outage_since is not None)
    (error,) = [each.getMessage() for each in caplog.records if each.levelno == logging.ERROR]
    assert "asks for a password" in error
    assert "heartbeat" not in caplog.text  # one reason, one line


async def test_a_relay_that_has_waited_for_its_server_ends_if_that_may_not_be_used(
    redis: RedisServerProcess, api: ServedApi, caplog: pytest.LogCaptureFixture
) -> None:
    url = redis.url.replace("unix://", "unix://:sesame@")
    redis.kill()
    async with a_relay(url, api.url) as relay:
        redis.start()
        redis.cli("ACL", "SETUSER", "default", ">another")
        with pytest.raises(PrefactorAuthError) as refused, anyio.fail_after(WAIT):
            await relay.run()
    assert "sesame" not in f"{refused.value!r} {caplog.text}"
    said = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    assert len([message for message in said if "does not serve" in message]) == 1


async def test_a_database_that_is_none_is_said_when_a_relay_opens(
    redis: RedisServerProcess, api: ServedApi
) -> None:
    with pytest.raises(PrefactorContractError, match="there is no database 99$"):
        async with a_relay(f"{redis.url}?db=99", api.url):
            pytest.fail("it opened")


async def test_a_command_that_is_forbidden_is_an_outage_without_a_secret_in_its_log(
    redis: RedisServerProcess, api: ServedApi, caplog: pytest.LogCaptureFixture
) -> None:
    allow(redis, "agent", "word-of-agents", AGENT_USER.replace("+xadd", ""))
    with caplog.at_level(logging.DEBUG):
        async with recording(url_of(redis, "agent", "word-of-agents")) as client:
            await record(client, text="sesame")
            await until(lambda: client.statistics().outage_since is not None)
            assert client.statistics().lost == 0
            allow(redis, "agent", "word-of-agents", AGENT_USER)
            await until(lambda: not client.statistics().pending)
    async with relaying(redis.url, api.url):
        await all_is_there(api, redis, RUNS)
    for secret in ("word-of-agents", "sesame"):
        assert secret not in caplog.text


async def test_a_command_that_a_relay_may_not_use_is_said_once(
    redis: RedisServerProcess, api: ServedApi, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "prefactor_core.relay")
    allow(redis, "relay", "word-of-relays", RELAY_USER.replace("+xread ", ""))
    async with relaying(url_of(redis, "relay", "word-of-relays"), api.url):
        # It is refused each second, and others are answered.
        await until(lambda: denied(redis) > 2)
        async with recording(redis.url) as client:
            await record(client)
        await all_is_there(api, redis, RUNS)
    said = [record.getMessage() for record in caplog.records]
    assert len([message for message in said if "does not serve this relay (XREAD" in message]) == 1
    assert not [message for message in said if "serves this relay again" in message]


def denied(redis: RedisServerProcess) -> int:
    """How many commands the server has refused, for want of rights."""
    entries = [dict(zip(each[::2], each[1::2], strict=True)) for each in redis.cli("ACL", "LOG")]
    return sum(int(entry["count"]) for entry in entries)


async def test_agents_and_relays_speak_tls_and_check_the_server(
    api: ServedApi, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    make_certificate(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = (
        *("--tls-port", str(port), "--bind", "127.0.0.1", "--tls-auth-clients", "no"),
        *(
            "--tls-cert-file",
            str(tmp_path / "cert.pem"),
            "--tls-key-file",
            str(tmp_path / "key.pem"),
        ),
    )
    with redis_server(*options) as redis:
        url = f"rediss://127.0.0.1:{port}"
        trusting = f"{url}?ssl_ca_certs={tmp_path / 'cert.pem'}"
        async with relaying(trusting, api.url):
            async with recording(trusting) as client:
                await record(client)
            await all_is_there(api, redis, RUNS)
        # Nobody knows who signed it: nothing is sent.
        config = make_config(http={"api_url": url, "api_token": ""}, drain_timeout=0.5)
        async with open_prefactor(config) as client:
            async with client.agent_instance(**AGENT):
                pass
        assert client.statistics().delivered == 0
        assert "certificate" in (client.statistics().last_error or "")
        # For a relay no wait would change that.
        with pytest.raises(PrefactorUnreachableError, match="certificate"):
            async with a_relay(url, api.url):
                pytest.fail("it opened")
    # The one line about it is ours: coredis would log a traceback for each attempt.
    assert not [record for record in caplog.records if record.name.startswith("coredis")]


def make_certificate(folder: Path) -> None:
    """One that is its own authority, for 127.0.0.1."""
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=redis"
    names = ["-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run(["openssl", *words.split(), *names, *files], check=True, capture_output=True)
